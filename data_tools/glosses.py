"""Word-by-word glosses of English texts: which translation of a dictionary a word gets, and which words get none."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from data_tools.dictionaries import Entries

_HAN = "\u3400-\u4dbf\u4e00-\u9fff"  # each of these is a word, since no blanks stand between them
_WORD = re.compile(rf"[{_HAN}]|[^\W\d_{_HAN}]+(?:'[^\W\d_{_HAN}]+)*")
_BLANK = re.compile(rf"(?<=[{_HAN}]) (?=[{_HAN}])")
_ENDINGS = {  # of English, each with what may stand in its place
    "'s": ("",),
    "s": ("",),
    "es": ("",),
    "ies": ("y",),
    "ves": ("f", "fe"),
    "ed": ("", "e"),
    "ied": ("y",),
    "ing": ("", "e"),
    "er": ("", "e"),
    "est": ("", "e"),
    "ly": ("",),
    "men": ("man",),
}
_STEM = 5  # letters by which an inflected form is taken for a word of the dictionary


def words(text: str) -> list[str]:
    """The words of a text as they are written: letters with apostrophes inside, or one Chinese character."""
    return _WORD.findall(text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))


def base_forms(word: str) -> Iterator[str]:
    """The word in lower case, then what it may be a form of, by English endings ("stop" for "stopping"); some exist."""
    word = word.lower()
    yield word
    for ending, others in _ENDINGS.items():
        stem = word.removesuffix(ending)
        if stem != word and len(stem) > 1:
            yield from (stem + other for other in others)
            if stem[-1] == stem[-2]:
                yield stem[:-1]


def choose(vocabulary: Iterable[str], entries: Entries, said: Mapping[str, int]) -> dict[str, str]:
    """A translation for each word that has one; `said`: how often each word of that language comes in real texts.

    Of a word's translations the one whose words are most often said, in any form with the same first letters; then the
    one that more entries name and that comes earlier. The first form of a word that is in the dictionary counts.
    """
    stems = Counter[str]()
    for word, count in said.items():
        stems[word[:_STEM]] += count
    chosen = {}
    for word in vocabulary:
        for form in base_forms(word):
            if found := [translation for translation in entries.get(form, ()) if words(translation)]:
                chosen[word] = _best(found, said, stems)
                break
    return chosen


def gloss(text: str, chosen: Mapping[str, str]) -> str:
    """The text word by word in the order of the source; a name (an unknown word with a capital letter) stays.

    Other unknown words and all punctuation are left out.
    """
    told = [chosen.get(word.lower(), word if word[:1].isupper() else "") for word in words(text)]
    return _BLANK.sub("", " ".join(filter(None, told)))


def _best(found: list[str], said: Mapping[str, int], stems: Mapping[str, int]) -> str:
    named = Counter(found)

    def score(translation: str) -> float:
        parts = [part.lower() for part in words(translation)]
        heard = sum(math.log1p(said.get(part, 0) + 0.5 * stems.get(part[:_STEM], 0)) for part in parts) / len(parts)
        return heard + math.log(named[translation]) - 0.3 * (len(parts) - 1) - 0.02 * found.index(translation)

    return max(named, key=score)
