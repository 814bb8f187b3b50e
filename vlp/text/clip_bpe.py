"""CLIP's byte-pair encoding: the ids of open_clip's SimpleTokenizer, several times as fast.

Exact by construction: the pattern that cuts text into words never crosses white space, so the ids of a
white-space-separated word do not depend on its neighbours and can be looked up.
"""

from __future__ import annotations

import gzip
import heapq
import shutil
import zlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import regex

from vlp.text.tokenizers import CutTokenizer, TokenizerPart, fingerprint, prepared, resolve_path

_MERGES = 49152 - 256 - 2
_MAX_BYTES = 16 << 20  # of the merges, unpacked; CLIP's have 3 MB
_CACHE_WORDS = 1 << 17
_CACHE_LENGTH = 64  # longer words are rare and seldom return
_WORD = regex.compile(
    r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)
_SPECIAL = ("<start_of_text>", "<end_of_text>")


class ClipBPE(TokenizerPart):
    """The tokenizer of CLIP; the vocabulary is the file that open_clip brings, or the one at `path`."""

    clean: Literal["lower", "whitespace", "canonicalize"] = "lower"
    path: str | None = None

    def build(self, base: Path | None = None) -> ClipTokenizer:
        return ClipTokenizer(self, base)


class _Vocabulary(NamedTuple):
    encoder: dict[str, int]
    ranks: dict[tuple[str, str], int]
    letters: list[str]  # the character that stands for each byte
    content: bytes


class ClipTokenizer(CutTokenizer):
    """Start token, byte-pair ids, end token; padded with 0."""

    part: ClipBPE

    def __init__(self, part: ClipBPE, base: Path | None = None) -> None:
        super().__init__(part, base)
        self.file = resolve_path(part.path, base) if part.path else _open_clip_file()
        vocabulary = _read(self.file)
        self.clean = part.clean
        self.vocab_size = len(vocabulary.encoder)
        self.start, self.end = (vocabulary.encoder[token] for token in _SPECIAL)
        self.pad = 0
        self.fingerprint = fingerprint(part, vocabulary.content)
        self._ids = _WordIds(vocabulary)

    def _whole(self, texts: Sequence[str]) -> list[list[int]]:
        words, start, end = self._ids, self.start, self.end
        cleaned = prepared(texts, clean=self.clean, max_bytes=self.part.max_bytes)
        return [[start, *(i for word in text.split() for i in words[word]), end] for text in cleaned]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, start, end and padding included as they stand, as open_clip writes it."""
        names, codes = self._ids.names()
        text = "".join(names[i] for i in ids)
        return bytearray(codes[c] for c in text).decode("utf-8", errors="replace").replace("</w>", " ")

    def __reduce__(self) -> tuple[Any, ...]:
        return ClipTokenizer, (self.part, self.base)  # a worker reads the file: less to send, and no cache

    def save(self, folder: Path) -> TokenizerPart:
        """Copies a vocabulary of one's own; open_clip's is not copied, as it comes with the package."""
        if self.part.path is None:
            return self.part
        shutil.copyfile(self.file, folder / "clip_bpe.txt.gz")
        return self.part.model_copy(update={"path": "clip_bpe.txt.gz"})


class _WordIds(dict[str, tuple[int, ...]]):
    """Ids of white-space-separated words, computed on first use; emptied when full, so its size is bounded."""

    def __init__(self, vocabulary: _Vocabulary) -> None:
        super().__init__()
        self.vocabulary = vocabulary

    def __missing__(self, word: str) -> tuple[int, ...]:
        ids = tuple(i for token in _WORD.findall(word) for i in self._token(token))
        if len(word) <= _CACHE_LENGTH:
            if len(self) >= _CACHE_WORDS:
                self.clear()
            self[word] = ids
        return ids

    def _token(self, token: str) -> list[int]:
        encoder, letters = self.vocabulary.encoder, self.vocabulary.letters
        if token in _SPECIAL:
            return [encoder[token]]
        symbols = [letters[byte] for byte in token.encode("utf-8")]
        symbols[-1] += "</w>"
        return [encoder[symbol] for symbol in merge(symbols, self.vocabulary.ranks)]

    def names(self) -> tuple[dict[int, str], dict[str, int]]:
        names = {i: name for name, i in self.vocabulary.encoder.items()}
        return names, {letter: byte for byte, letter in enumerate(self.vocabulary.letters)}


def merge(symbols: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Symbols after all byte-pair merges: lowest rank first, all places of a rank from left to right.

    A heap over a linked list: n log n, where open_clip's loop is quadratic in the length of a word.
    """
    parts: list[str | None] = list(symbols)
    after = list(range(1, len(parts) + 1))
    before = list(range(-1, len(parts) - 1))
    heap = [(ranks[pair], i) for i, pair in enumerate(pairwise(symbols)) if pair in ranks]
    heapq.heapify(heap)
    while heap:
        rank = heap[0][0]
        places = []
        while heap and heap[0][0] == rank:
            places.append(heapq.heappop(heap)[1])
        for i in places:  # ascending; merged pairs may rank lower than this one, so they wait until all are done
            j = after[i]
            if parts[i] is None or j >= len(parts) or ranks.get((parts[i], parts[j])) != rank:  # type: ignore[arg-type]
                continue
            parts[i] = f"{parts[i]}{parts[j]}"
            parts[j] = None
            after[i] = after[j]
            if after[i] < len(parts):
                before[after[i]] = i
            for left, right in ((before[i], i), (i, after[i])):
                if left >= 0 and right < len(parts):
                    found = ranks.get((parts[left], parts[right]))  # type: ignore[arg-type]
                    if found is not None:
                        heapq.heappush(heap, (found, left))
    return [part for part in parts if part is not None]


def _open_clip_file() -> Path:
    from importlib.util import find_spec

    spec = find_spec("open_clip")
    if spec is None or spec.origin is None:
        raise ValueError(
            "tokenizer clip_bpe: open_clip is not installed (pip install open_clip_torch), and no path given"
        )
    return Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz"


@lru_cache(maxsize=4)
def _read(file: Path) -> _Vocabulary:
    if not file.is_file():
        raise ValueError(f"tokenizer clip_bpe: no vocabulary file {file}")
    try:
        with gzip.open(file) as packed:
            content = packed.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ValueError(f"tokenizer clip_bpe: {file} unpacks to more than {_MAX_BYTES} bytes")
        lines = content.decode("utf-8").split("\n")[1 : _MERGES + 1]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"tokenizer clip_bpe: {file} is no gzip file of merges: {error}") from error
    merges = [tuple(line.split()) for line in lines]
    letters = _letters()
    order = sorted(range(256), key=lambda byte: (ord(letters[byte]) >= 256, ord(letters[byte])))
    single = [letters[byte] for byte in order]
    names = [*single, *(letter + "</w>" for letter in single), *("".join(pair) for pair in merges), *_SPECIAL]
    encoder = {name: i for i, name in enumerate(names)}
    return _Vocabulary(encoder, {pair: i for i, pair in enumerate(merges)}, letters, content)  # type: ignore[misc]


def _letters() -> list[str]:
    """A printable character for each byte, GPT-2's: bytes that are none get characters from 256 on."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    table = {byte: chr(byte) for byte in shown} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}
    return [table[byte] for byte in range(256)]
