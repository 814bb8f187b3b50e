"""The index of one shard: key, and offset and size of each member, as a few numpy arrays; built, written, read.

The side index `<shard>.index` is used while it is newer than the shard and the shard's two ends are those it was made
for; else it is built again. It holds no time and no path, so making it twice gives the same bytes.
"""

from __future__ import annotations

import builtins
import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from vlp.data.content import ends
from vlp.data.grouping import Group, KeySplit, Note, groups
from vlp.data.schema import DataError, write_atomic
from vlp.data.tarwalk import BLOCK, Damage, TarDamageError, walk

MAGIC = b"vlp shard index 2\n"
OnDamage = Literal["stop", "keep"]
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


def index_path(shard: str | Path) -> Path:
    """Where the side index of a shard lies."""
    return Path(f"{shard}.index")


def build(shard: str | Path, *, key_split: KeySplit = "first-dot") -> ShardIndex:
    """The index from a strict walk of the tar; a damaged one gives the whole samples before the damage, and says so."""
    shard, damage, members, content = Path(shard), None, [], hashlib.sha256()
    if not shard.is_file():
        raise DataError(f"{shard}: no such shard")
    try:
        for member in walk(shard, seen=content.update):
            members.append(member)
    except TarDamageError as error:
        damage = error.damage
    samples, notes = groups(members, key_split=key_split)
    if damage is not None:
        samples = _without_torn_tail(samples)
    about = {"bytes": shard.stat().st_size, "ends": ends(shard), "key_split": key_split}
    content.update(str(about["ends"]).encode())
    return _pack(samples, notes, damage, {**about, "content": content.hexdigest()})


def write(shard: str | Path, index: ShardIndex, path: str | Path | None = None) -> Path:
    """Writes the side index atomically and returns its path."""
    target = Path(path) if path else index_path(shard)
    write_atomic(target, _dump(index))
    return target


def read(shard: str | Path, path: str | Path | None = None) -> ShardIndex:
    """The side index; DataError if it is damaged, of another version, or made for a tar with other bytes."""
    target = Path(path) if path else index_path(shard)
    index = _parse(target, os.stat(shard).st_size)
    if ends(shard) != index.ends:
        raise DataError(f"{target}: made for a tar of equal size and other bytes than {shard}; run `vlp data index`")
    return index


def read_or_build(
    shard: str | Path, *, key_split: KeySplit = "first-dot", cache: str | Path | None = None, trust: bool = True
) -> ShardIndex:
    """The side index if it is fresh, else a new one, written beside the shard or, in a read-only folder, to `cache`.

    `trust=False` walks the tar in any case. Cache folder by default: $VLP_CACHE/index or ~/.cache/vlp/index.
    """
    shard = Path(shard)
    spare = _cached_path(shard, key_split, Path(cache) if cache else cache_folder() / "index")
    for target in (index_path(shard), spare) if trust else ():
        index = fresh(shard, target, key_split=key_split)
        if index is not None:
            return index
    index = build(shard, key_split=key_split)
    for target in (index_path(shard), spare):
        if _read_only(target.parent):
            continue
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write(shard, index, target)
            break
        except OSError:  # read-only: the next place, and at last only memory
            continue
    return index


def _read_only(folder: Path) -> bool:
    """Whether the folder is marked so: root could write into it all the same, and must not."""
    return folder.is_dir() and not folder.stat().st_mode & 0o222


def cache_folder() -> Path:
    """$VLP_CACHE, or vlp under $XDG_CACHE_HOME, or ~/.cache/vlp."""
    own, base = os.environ.get("VLP_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else Path(base or Path.home() / ".cache") / "vlp"


def check(shard: str | Path, index: ShardIndex, *, expected: int | None = None, on_damage: OnDamage = "stop") -> None:
    """DataError if the shard is damaged (unless "keep") or has another number of samples than its manifest says."""
    known = f"; manifest {expected}, readable {len(index)}" if expected is not None else f"; readable {len(index)}"
    if index.damage is not None and on_damage == "stop":
        reason, byte, detail = index.damage
        raise DataError(
            f"{shard}: damaged at byte {byte} ({reason}): {detail}{known}. "
            "Fetch or write the shard again, or set `damaged: keep` to use the samples before the damage"
        )
    if index.damage is None and expected is not None and expected != len(index):
        raise DataError(
            f"{shard}: dataset.json says {expected} samples, the tar has {len(index)}; "
            "run `vlp data index` to write both again"
        )


def fresh(shard: str | Path, path: str | Path | None = None, *, key_split: KeySplit = "first-dot") -> ShardIndex | None:
    """The side index if it was written after the shard's last change and fits its bytes, else None."""
    target = Path(path) if path else index_path(shard)
    try:
        if target.stat().st_mtime_ns < os.stat(shard).st_mtime_ns:
            return None
        index = read(shard, target)
    except (OSError, DataError):
        return None
    return index if index.key_split == key_split else None


def _cached_path(shard: Path, key_split: str, folder: Path) -> Path:
    """A name in the cache that changes with the shard's place, size and time of change."""
    stat = shard.stat() if shard.is_file() else None
    facts = f"{shard.resolve()}|{stat.st_size if stat else 0}|{stat.st_mtime_ns if stat else 0}|{key_split}"
    return folder / f"{hashlib.sha256(facts.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.index"


def _without_torn_tail(samples: list[Group]) -> list[Group]:
    """Without the last sample if it lacks members that the first has: the damage took them."""
    if samples and not set(samples[0].members) <= set(samples[-1].members):
        return samples[:-1]
    return samples[:-1] if len(samples) == 1 and len(samples[0].members) < 2 else samples


def _pack(samples: list[Group], notes: tuple[Note, ...], damage: Damage | None, about: dict[str, Any]) -> ShardIndex:
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


def _dump(index: ShardIndex) -> bytes:
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


def _parse(path: Path, size: int) -> ShardIndex:
    """The index in a file, which may have come with the shard: nothing in it is believed that could lead out of it."""
    try:
        if path.stat().st_size > size + (1 << 16):
            raise ValueError("larger than its shard")
        return _checked(_parse_strict(path.read_bytes(), size))
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError, zlib.error) as error:
        raise DataError(f"{path}: not a shard index of this version ({error}); run `vlp data index`") from None


def _checked(index: ShardIndex) -> ShardIndex:
    """The index; ValueError unless every row lies in the arrays, and every member in the tar."""
    starts, ends_, offset, size = (
        getattr(index, name).astype(np.int64) for name in ("starts", "key_ends", "offset", "size")
    )
    counts = starts[0] == 0 and starts[-1] == len(offset) and (np.diff(starts) > 0).all()
    keys = (np.diff(ends_, prepend=0) >= 0).all() and (ends_[-1] if len(ends_) else 0) == len(index.key_bytes)
    inside = (offset >= 0) & (size >= 0) & (offset <= index.bytes) & (size <= index.bytes - offset)
    if not (counts and keys and inside.all() and (index.extension < len(index.extensions)).all()):
        raise ValueError("its places do not lie in the tar")
    return index


def _parse_strict(raw: bytes, size: int) -> ShardIndex:
    if not raw.startswith(MAGIC):
        raise ValueError(f"starts with {raw[:24]!r}")
    line, _, body = raw[len(MAGIC) :].partition(b"\n")
    head = json.loads(line)
    if zlib.crc32(body) != head["crc32"]:
        raise ValueError("checksum differs")
    if head["bytes"] != size:
        raise ValueError(f"made for a tar of {head['bytes']} bytes, it has {size}")
    n, m = head["samples"], head["members"]
    if not 0 <= n <= m <= size // BLOCK:
        raise ValueError(f"{n} samples of {m} members in a tar of {size} bytes")
    packer, position = zlib.decompressobj(), 0
    content = packer.decompress(body, 8 * n + 18 * m + 4 + size)  # keys stand in the tar too
    if not packer.eof or packer.unconsumed_tail:
        raise ValueError("it unpacks to more than an index of this tar")
    arrays: dict[str, Any] = {}
    for (name, dtype), count in zip(_ARRAYS, (n + 1, m, m, m, n)):
        arrays[name] = np.frombuffer(content, dtype, count, position)
        position += arrays[name].nbytes
    damage = Damage(*head["damage"]) if head["damage"] else None
    notes = tuple(Note(*note) for note in head["notes"])
    return ShardIndex(
        bytes=head["bytes"],
        ends=head["ends"],
        content=head["content"],
        key_split=head["key_split"],
        extensions=tuple(head["extensions"]),
        key_bytes=content[position:],
        notes=notes,
        damage=damage,
        **arrays,
    )
