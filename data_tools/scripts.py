"""Which script a text is written in, from the names of its letters."""

from __future__ import annotations

import functools
import unicodedata
from collections import Counter

_SHARED = {"HIRAGANA": "Japanese", "KATAKANA": "Japanese", "CJK": "Han", "HANGUL": "Hangul"}


def script_of(text: str) -> str:
    """The script of most letters ("Latin", "Han", "Japanese" with any kana, ...); "none" for a text without letters."""
    counts = Counter(script for char in text if (script := _letter(char)))
    if not counts:
        return "none"
    if counts["Japanese"] and counts["Japanese"] + counts["Han"] >= counts.total() / 2:
        return "Japanese"  # kanji are Han letters; kana tell Japanese from Chinese
    return min(counts, key=lambda script: (-counts[script], script))


@functools.lru_cache(maxsize=1 << 16)
def _letter(char: str) -> str | None:
    if not char.isalpha():
        return None
    first = unicodedata.name(char, "UNKNOWN").split()[0].split("-")[0]
    return _SHARED.get(first, first.capitalize())
