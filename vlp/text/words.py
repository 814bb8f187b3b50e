"""Which tokens make up which word of a text, for people who look at what a model does with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import regex

from vlp.text.captions import CLEANERS
from vlp.text.clip_bpe import ClipTokenizer
from vlp.text.huggingface import HuggingFaceTokenizer
from vlp.text.sentence_pieces import SentencePieceTokenizer

_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")
_TORN = "\N{REPLACEMENT CHARACTER}"


class Word(NamedTuple):
    """A word as it reads, and its tokens start..stop; `special` words mark the start or the end of the text."""

    text: str
    start: int
    stop: int
    special: bool


class _Reading(NamedTuple):
    begins: Sequence[bool]  # of each token: begins a word
    special: Sequence[bool]
    decode: Callable[[Sequence[int]], str]


def words(tokenizer: Any, text: str, ids: Sequence[int]) -> list[Word]:
    """The words of `ids = tokenizer.encode([text])[0]` in order, every token in exactly one.

    Where a script sets no blanks a word is what a token, or the tokens of one character, say. Of a tokenizer that this
    does not know each token is a word, named by its number.
    """
    reading = _reading(tokenizer, text, ids)
    found, start = list[Word](), 0
    for stop in range(1, len(ids) + 1):
        said = reading.decode(ids[start:stop])
        last = stop == len(ids) or reading.begins[stop] or reading.special[stop] or reading.special[start]
        if last or (_TORN not in said and _UNSPACED.search(said)):
            found.append(Word(said.strip() or " ", start, stop, reading.special[start]))
            start = stop
    return found


def _reading(tokenizer: Any, text: str, ids: Sequence[int]) -> _Reading:
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return _of_fast(tokenizer, text, ids)
    if not isinstance(tokenizer, ClipTokenizer | SentencePieceTokenizer):
        return _Reading([True] * len(ids), [False] * len(ids), lambda part: " ".join(f"#{i}" for i in part))
    marks = {tokenizer.start: "<start>", tokenizer.end: "<end>"}
    special = [i in marks for i in ids]
    if isinstance(tokenizer, ClipTokenizer):
        ends = [tokenizer.decode([i]).endswith(" ") for i in ids]
        begins = [True, *ends[:-1]]
    else:
        begins = [str(tokenizer.model.id_to_piece(i)).startswith("\u2581") for i in ids]
    return _Reading(begins, special, lambda part: marks.get(part[0]) or tokenizer.decode(part))


def _of_fast(tokenizer: HuggingFaceTokenizer, text: str, ids: Sequence[int]) -> _Reading:
    inner, cleaned = tokenizer.inner, CLEANERS[tokenizer.part.clean](text)
    number = inner(cleaned, verbose=False).word_ids(0)[: len(ids)]
    number = [*number, *[None] * (len(ids) - len(number))]
    if len(ids) == tokenizer.context and ids[-1] == tokenizer.end:
        number[-1] = None  # the text was cut in front of its end token
    begins = [place == 0 or number[place] != number[place - 1] for place in range(len(ids))]
    return _Reading(begins, [n is None for n in number], lambda part: str(inner.decode(part)))
