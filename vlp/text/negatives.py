"""Captions made false by swapping two of their words, without a parser (NegCLIP, arXiv 2210.01936, 4.1)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np
import regex

_WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+(?:['’-][\p{L}\p{M}\p{N}]+)*")  # noqa: RUF001
_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")
_LETTER = regex.compile(r"\p{L}")
_ARTICLE = regex.compile(r"\b([Aa])(n?)(\s+)$")
_MAX_WORDS = 40  # content words looked at: what stands behind them is cut by most contexts
_FUNCTION_WORDS = """
a an the this that these those it its he him his she her they them their we us our you your i my me who whom whose
which what where when while and or nor but so yet if because than then as also both each every either neither not no
of in on at to from by with without for into onto upon over under above below beneath behind before after between
among beside besides next near through across along around against about inside outside within off out up down left
right upper lower top bottom front back middle center centre is are was were be been being am has have had having do
does did can could will would shall should may might must there here some any all many much more most few several
other another such very too only just like side part photo photograph picture image figure diagram drawing view
shows show shown seen lies lie
"""
_ING_NOUN_WORDS = """
building painting ceiling clothing morning evening string spring wedding railing something nothing anything
everything sibling earring pudding icing frosting
"""
_COLOR_WORDS = """
red green blue yellow orange purple violet pink brown black white gray grey cyan magenta turquoise beige golden silver
navy maroon teal tan
"""
_NUMBER_WORDS = "one two three four five six seven eight nine ten eleven twelve twenty hundred"
_KINDS = {**dict.fromkeys(_COLOR_WORDS.split(), "color"), **dict.fromkeys(_NUMBER_WORDS.split(), "number")}
_SAME = {"large": "big", "huge": "big", "little": "small", "tiny": "small", "grey": "gray"}
_EVEN_WORDS = "and or with near beside besides along together a an the another his her its their"
_EVEN = frozenset(_EVEN_WORDS.split())  # "with": of persons and things alike, whoever has whom
_FUNCTION, _ING_NOUNS = frozenset(_FUNCTION_WORDS.split()), frozenset(_ING_NOUN_WORDS.split())


class _Word(NamedTuple):
    """A content word: where it stands, which run of neighbouring content words it belongs to, and its kind there."""

    start: int
    stop: int
    run: int
    kind: str  # "head": the last of its run, mostly a noun; "modifier": before it; "verb", "color", "number"


def swaps(text: str, count: int, rng: np.random.Generator | None = None) -> list[str]:
    """At most `count` different captions, each with two words of one kind in each other's place; none equals `text`.

    NegCLIP's kinds come from a parser; here neighbouring content words are a run, its last word is taken for its noun
    and the others for what describes it, words in -ing for verbs; colours and numbers are known by lists. Words of one
    run are not swapped ("small red"), nor whole phrases that only "and", a comma, "with" or nearness joins ("a dog and
    a cat", "a black dog next to a white dog"), as that would stay true. "a" and "an" follow the new word. Without a
    generator the first swaps are taken. The lists are English; scripts without blanks give no swap.
    """
    words = _content_words(text)
    pairs = [(a, b) for a, b in combinations(words, 2) if a.kind == b.kind and a.run != b.run]
    order = range(len(pairs)) if rng is None else rng.permutation(len(pairs)).tolist()
    found: dict[str, None] = {}
    for number in order:
        if len(found) == count:
            break
        if _changes_meaning(text, words, *pairs[number]):
            found[_swapped(text, *pairs[number])] = None
    return list(found)


def _content_words(text: str) -> list[_Word]:
    """The first content words with their runs; the last word before a gap is the head of its run."""
    spans = list(_tokens(text))
    words = []
    run = 0
    for place, (start, stop, kind) in enumerate(spans):
        if kind == "function":
            continue
        follows = (
            place + 1 < len(spans) and spans[place + 1][2] == "content" and text[stop : spans[place + 1][0]] == " "
        )
        before = place > 0 and spans[place - 1][2] == "content" and text[spans[place - 1][1] : start] == " "
        run += kind == "verb" or not before
        kind = "modifier" if kind == "content" and follows else "head" if kind == "content" else kind
        words.append(_Word(start, stop, run, _KINDS.get(text[start:stop].lower(), kind)))
    return words[:_MAX_WORDS]


def _tokens(text: str) -> Iterator[tuple[int, int, str]]:
    """Start, end and "function", "verb" or "content" of every word."""
    for match in _WORD.finditer(text):
        word = match.group().lower()
        if word in _FUNCTION or len(word) < 3 or not _LETTER.search(word) or _UNSPACED.search(word):
            kind = "function"
        else:
            kind = "verb" if len(word) > 5 and word.endswith("ing") and word not in _ING_NOUNS else "content"
        yield match.start(), match.end(), kind


def _changes_meaning(text: str, words: list[_Word], first: _Word, second: _Word) -> bool:
    """Whether a swap can make the caption false: different words, that no mere list or nearness puts side by side."""
    a, b = (text[word.start : word.stop].casefold() for word in (first, second))
    if _SAME.get(a, a) == _SAME.get(b, b):
        return False
    between = {word.lower() for word in _WORD.findall(text, first.stop, second.start)}
    if between <= {"and", "or"}:  # "black and white"
        return False
    # with equal words around them whole phrases change places: "a black dog and a white dog", "a dog next to a cat"
    return _rest(text, words, first) != _rest(text, words, second) or not _even_handed(text, words, first, second)


def _even_handed(text: str, words: list[_Word], first: _Word, second: _Word) -> bool:
    """Whether all that joins the runs from `first` to `second` says the same of what stands on both its sides."""
    runs: dict[int, tuple[int, int]] = {}
    for word in words:
        if first.run <= word.run <= second.run:
            runs[word.run] = (runs.get(word.run, (word.start, 0))[0], word.stop)
    spans = list(runs.values())
    gaps = (text[stop:start].lower().replace("next to", "beside") for (_, stop), (start, _) in pairwise(spans))
    return all(gap.strip() and _EVEN.issuperset(_WORD.findall(gap)) for gap in gaps)


def _rest(text: str, words: list[_Word], word: _Word) -> list[str]:
    """The other words of a word's run."""
    return [text[w.start : w.stop].casefold() for w in words if w.run == word.run and w is not word]


def _swapped(text: str, first: _Word, second: _Word) -> str:
    a, b = text[first.start : first.stop], text[second.start : second.stop]
    opens = _WORD.search(text)
    if opens is not None and opens.start() == first.start and a[:1].isupper() and b.islower():
        a, b = (a if a.isupper() else a[0].lower() + a[1:]), b[0].upper() + b[1:]
    before = _article(text[: first.start], old=text[first.start : first.stop], new=b)
    between = _article(text[first.stop : second.start], old=text[second.start : second.stop], new=a)
    return before + b + between + a + text[second.stop :]


def _article(text: str, *, old: str, new: str) -> str:
    """`text` with the "a" or "an" at its end as the word behind it now wants it."""
    if (old[0].lower() in "aeiou") == (new[0].lower() in "aeiou"):
        return text
    ending = "n" if new[0].lower() in "aeiou" else ""
    return str(_ARTICLE.sub(lambda match: f"{match[1]}{ending}{match[3]}", text))
