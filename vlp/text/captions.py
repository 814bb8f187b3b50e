"""Caption text before it is tokenised: repair and cleaning as open_clip does it, byte limits, scripts, sentences."""

from __future__ import annotations

import html
import string
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Literal

import ftfy
import regex
from ftfy.badness import is_bad

Clean = Literal["none", "whitespace", "lower", "canonicalize"]

# Characters that ftfy changes only where they are mojibake (is_bad), and curly quotes, which it straightens. No "&".
_is_usual = regex.compile(
    r"[ -%'-~\t\n\r\u00c0-\u0131\u0134-\u0148\u014a-\u017f\u0400-\u045f\u2013\u2014\u2018\u2019\u201c\u201d\u2026"
    r"\u3001\u3002\u3041-\u3096\u30a1-\u30fa\u30fc\u4e00-\u9fa5\uac00-\ud7a3]*"
).fullmatch
_STRAIGHT = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def cut_bytes(text: str, limit: int) -> str:
    """The longest prefix of `text` of at most `limit` UTF-8 bytes that ends between two characters."""
    if len(text) * 4 <= limit:
        return text
    raw = text.encode("utf-8", "surrogatepass")
    return text if len(raw) <= limit else raw[:limit].decode("utf-8", "ignore")


def repair(text: str) -> str:
    """Mojibake, entities, lone surrogates, control characters put right and NFC, exactly as open_clip's `basic_clean`.

    ftfy does the NFC and drops NUL and control characters; plain text skips it, as nothing could change but
    curly quotes.
    """
    if text.isascii() and text.isprintable() and "&" not in text:
        return text.strip()
    if _is_usual(text) and not is_bad(text):
        straight = text.translate(_STRAIGHT)
        if not is_bad(straight):
            return straight.strip()
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def one_line(text: str) -> str:
    """Repaired text with every run of white space made one blank."""
    return " ".join(repair(text).split())


def lower(text: str) -> str:
    """One line, lower case: what open_clip's CLIP tokenizer sees."""
    return one_line(text).lower()


def canonicalize(text: str) -> str:
    """Repaired, without ASCII punctuation, lower case, one line: SigLIP's cleaning (big_vision)."""
    bare = repair(text).replace("_", " ").translate(_NO_PUNCTUATION)
    return " ".join(bare.lower().split())


def encodable(text: str) -> str:
    """As it is but for lone surrogates, which no tokenizer takes: each becomes the replacement character."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


CLEANERS: dict[Clean, Callable[[str], str]] = {
    "none": encodable,
    "whitespace": one_line,
    "lower": lower,
    "canonicalize": canonicalize,
}


def is_blank(text: str) -> bool:
    """Whether nothing in the text can be seen: white space, control and format characters only."""
    if not text or text.isspace():
        return True
    if text.isascii() and text.isprintable():
        return False
    return all(unicodedata.category(char)[0] in "CZ" for char in text)


_SCRIPTS = (
    "Latin", "Han", "Hiragana", "Katakana", "Hangul", "Cyrillic", "Greek", "Arabic", "Hebrew", "Devanagari",
    "Bengali", "Tamil", "Telugu", "Thai", "Ethiopic", "Georgian", "Armenian",
)  # fmt: skip
_SCRIPT = regex.compile("|".join(rf"(?P<{name}>\p{{Script={name}}}+)" for name in _SCRIPTS) + r"|(?P<Other>\p{L})")


def scripts(text: str) -> Counter[str]:
    """Number of letters of each writing system in the text; systems without a name here are "Other"."""
    counts: Counter[str] = Counter()
    for match in _SCRIPT.finditer(text):
        counts[match.lastgroup or "Other"] += match.end() - match.start()
    return counts


def main_script(text: str) -> str:
    """The writing system of most letters ("None" without letters); kana beside Han makes it "Japanese"."""
    counts = scripts(text)
    if kana := counts["Hiragana"] + counts["Katakana"]:
        counts = Counter({name: n for name, n in counts.items() if name not in ("Hiragana", "Katakana", "Han")})
        counts["Japanese"] = kana + scripts(text)["Han"]
    return counts.most_common(1)[0][0] if counts else "None"


_ABBREVIATION = r"(?<!\b(?:Mr|Mrs|Ms|Dr|Prof|St|Fig|Figs|No|Nos|vs|etc|cf|al|approx|ca|e\.g|i\.e|[A-Za-z])\.)"
_SENTENCE_END = regex.compile(
    rf"(?<=[.!?][\"'”’)\]]?){_ABBREVIATION}\s+(?=[\"'“‘(\[]?[\p{{Lu}}\p{{Lo}}\p{{N}}])"  # noqa: RUF001  blank after a full stop
    r"|(?<=[。！？][”’」』）]?)(?![”’」』）])"  # noqa: RUF001  ideographic full stops need no blank
    r"|\s*\n\s*\n\s*|(?<=[.!?;:])\s*\n\s*",
)


def sentences(text: str) -> list[str]:
    """The sentences of a caption in order, blanks around them removed, empty ones left out.

    Splits after . ! ? before a capital, digit or letter without case, after ideographic full stops, and at blank lines;
    not after single letters ("E. coli") and common abbreviations.
    """
    return [part.strip() for part in _SENTENCE_END.split(text) if part and not is_blank(part)]
