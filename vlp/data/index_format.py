"""What an index holds, as numpy arrays in memory and as bytes on disk; bytes are believed only as far as they fit."""

from __future__ import annotations

import builtins
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vlp.data.grouping import Group, KeySplit, Note
from vlp.data.schema import DataError
from vlp.data.tarwalk import BLOCK, Damage

MAGIC = b"vlp shard index 2\n"
_ARRAYS = (("starts", "<u4"), ("extension", "<u2"), ("offset", "<u8"), ("size", "<u8"), ("key_ends", "<u4"))


class Place(NamedTuple):
    """Where one member's bytes lie."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """Samples of one shard. Members of sample i are rows starts[i]..starts[i+1] of the member arrays."""

    bytes: int  # size of the tar it was made from
    ends: str  # hash of that size and of the tar's first and last blocks: it is stale when they differ
    content: str  # hash of all headers, small members and tips of large ones: what the tar holds, for the fingerprint
    key_split: KeySplit
    extensions: tuple[str, ...]
    starts: npt.NDArray[np.uint32]  # [n + 1]
    extension: npt.NDArray[np.uint16]  # [m]
    offset: npt.NDArray[np.uint64]  # [m]
    size: npt.NDArray[np.uint64]  # [m]
    key_ends: npt.NDArray[np.uint32]  # [n]
    key_bytes: builtins.bytes
    notes: tuple[Note, ...] = ()  # what was left out or looks wrong, by reason
    damage: Damage | None = None  # set: the samples are those before the damage

    def __len__(self) -> int:
        return len(self.key_ends)

    def key(self, i: int) -> str:
        """The key of sample i."""
        start = int(self.key_ends[i - 1]) if i else 0
        return self.key_bytes[start : int(self.key_ends[i])].decode("utf-8", "surrogateescape")

    def keys(self) -> Iterator[str]:
        """All keys, in order."""
        start = 0
        for end in self.key_ends.tolist():
            yield self.key_bytes[start:end].decode("utf-8", "surrogateescape")
            start = end

    def members(self, i: int) -> dict[str, Place]:
        """Extension -> place of every member of sample i."""
        rows = slice(int(self.starts[i]), int(self.starts[i + 1]))
        places = zip(self.extension[rows].tolist(), self.offset[rows].tolist(), self.size[rows].tolist())
        return {self.extensions[e]: Place(offset, size) for e, offset, size in places}

    def counts(self) -> dict[str, int]:
        """Reason -> number of members or keys, of all notes."""
        total: Counter[str] = Counter()
        for note in self.notes:
            total[note.reason] += note.count
        return dict(total)


def pack(samples: list[Group], notes: tuple[Note, ...], damage: Damage | None, about: dict[str, Any]) -> ShardIndex:
    """The index of samples; `about` holds the fields that say which tar it is of."""
    names = sorted({extension for sample in samples for extension in sample.members})
    if len(names) > 65535:
        raise DataError(f"{len(names)} different extensions in one shard: is `key_split` right?")
    number = {name: i for i, name in enumerate(names)}
    rows = [(number[name], *place) for sample in samples for name, place in sample.members.items()]
    table = np.array(rows, dtype=np.uint64).reshape(-1, 3)
    keys = [sample.key.encode("utf-8", "surrogateescape") for sample in samples]
    return ShardIndex(
        **about,
        extensions=tuple(names),
        starts=np.cumsum([0, *(len(sample.members) for sample in samples)]).astype(np.uint32),
        extension=table[:, 0].astype(np.uint16),
        offset=np.ascontiguousarray(table[:, 1]),
        size=np.ascontiguousarray(table[:, 2]),
        key_ends=np.cumsum([len(key) for key in keys]).astype(np.uint32),
        key_bytes=b"".join(keys),
        notes=notes,
        damage=damage,
    )


def dump(index: ShardIndex) -> bytes:
    """The bytes of the side index: a line of magic, a line of JSON, the arrays compressed."""
    arrays = [getattr(index, name).astype(dtype).tobytes() for name, dtype in _ARRAYS]
    body = zlib.compress(b"".join([*arrays, index.key_bytes]), 6)
    head = {
        "bytes": index.bytes,
        "ends": index.ends,
        "content": index.content,
        "samples": len(index),
        "members": len(index.offset),
        "key_split": index.key_split,
        "extensions": index.extensions,
        "notes": [astuple(note) for note in index.notes],
        "damage": index.damage,
        "crc32": zlib.crc32(body),
    }
    return MAGIC + json.dumps(head).encode() + b"\n" + body


def parse(raw: bytes, path: Path, *, tar_bytes: int) -> ShardIndex:
    """The index in the bytes of a side index; DataError if they are damaged, of another version or of another tar."""
    try:
        head, body = _split(raw)
        if head["bytes"] == tar_bytes:
            return _parse_strict(head, body)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, zlib.error) as error:
        raise DataError(f"{path}: not a shard index of this version ({error}); run `vlp data index`") from None
    raise DataError(f"{path}: made for a tar of {head['bytes']} bytes, the shard has {tar_bytes}; run `vlp data index`")


def outline(raw: bytes) -> tuple[int, int, bool] | None:
    """Bytes of the tar, samples, and whether it is damaged, by the first lines of a side index; None: not readable."""
    try:
        head, _ = _split(raw)
        return int(head["bytes"]), int(head["samples"]), bool(head["damage"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _split(raw: bytes) -> tuple[dict[str, Any], bytes]:
    if not raw.startswith(MAGIC):
        raise ValueError(f"starts with {raw[:24]!r}")
    line, _, body = raw[len(MAGIC) :].partition(b"\n")
    head = json.loads(line)
    if not isinstance(head, dict):
        raise TypeError("no object in its second line")
    return head, body


def _parse_strict(head: dict[str, Any], body: bytes) -> ShardIndex:
    if zlib.crc32(body) != head["crc32"]:
        raise ValueError("checksum differs")
    n, m, tar_bytes = head["samples"], head["members"], head["bytes"]
    if not 0 <= n <= m <= tar_bytes // BLOCK:
        raise ValueError(f"{n} samples of {m} members in {tar_bytes} bytes")
    lengths = (n + 1, m, m, m, n)
    room = sum(length * np.dtype(dtype).itemsize for length, (_, dtype) in zip(lengths, _ARRAYS)) + tar_bytes
    content, position = zlib.decompressobj().decompress(body, room), 0  # no more than can be true
    arrays: dict[str, Any] = {}
    for (name, dtype), count in zip(_ARRAYS, lengths):
        arrays[name] = np.frombuffer(content, dtype, count, position)
        position += arrays[name].nbytes
    index = ShardIndex(
        bytes=tar_bytes,
        ends=head["ends"],
        content=head["content"],
        key_split=head["key_split"],
        extensions=tuple(head["extensions"]),
        key_bytes=content[position:],
        notes=tuple(Note(*note) for note in head["notes"]),
        damage=Damage(*head["damage"]) if head["damage"] else None,
        **arrays,
    )
    _check_places(index)
    return index


def _check_places(index: ShardIndex) -> None:
    """ValueError where the arrays contradict each other or point out of the tar: a reader would read other bytes."""
    starts, ends = index.starts.astype(np.int64), index.key_ends.astype(np.int64)
    in_order = bool((np.diff(starts) > 0).all() and (np.diff(ends, prepend=0) > 0).all())
    if not in_order or starts[0] != 0 or starts[-1] != len(index.offset):
        raise ValueError("its samples are out of order")
    if (ends[-1] if len(ends) else 0) != len(index.key_bytes):
        raise ValueError("its keys are cut")
    if len(index.extension) and int(index.extension.max()) >= len(index.extensions):
        raise ValueError("a member without extension")
    total = np.uint64(index.bytes)
    if bool(((index.offset > total) | (index.size > total - np.minimum(index.offset, total))).any()):
        raise ValueError("a member outside of the tar")
