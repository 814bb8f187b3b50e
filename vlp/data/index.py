"""The index of one shard: key, and offset and size of each member, as a few numpy arrays; built, written, read.

The side index `<shard>.index` is used while it is newer than the shard and the shard's two ends are those it was made
for; else it is built again. It holds no time and no path, so making it twice gives the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from vlp.data.content import ends
from vlp.data.grouping import Group, KeySplit, Note, groups
from vlp.data.index_format import Place, ShardIndex, dump, outline, pack, parse
from vlp.data.schema import DataError, write_atomic
from vlp.data.tarwalk import TarDamageError, walk

__all__ = ["Place", "ShardIndex", "build", "cache_folder", "check", "doubtful", "fresh", "index_path", "read"]
__all__ += ["read_or_build", "write"]

_HEAD = 1 << 16  # bytes in which the first lines of a side index fit, if not too much is noted there
OnDamage = Literal["stop", "keep"]


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
        samples, torn = _without_torn_tail(samples)
        notes += torn
    about: dict[str, Any] = {"bytes": shard.stat().st_size, "ends": ends(shard), "key_split": key_split}
    content.update(str(about["ends"]).encode())
    return pack(samples, notes, damage, {**about, "content": content.hexdigest()})


def write(shard: str | Path, index: ShardIndex, path: str | Path | None = None) -> Path:
    """Writes the side index atomically and returns its path."""
    target = Path(path) if path else index_path(shard)
    write_atomic(target, dump(index))
    return target


def read(shard: str | Path, path: str | Path | None = None) -> ShardIndex:
    """The side index; DataError if it is damaged, of another version, or made for a tar with other bytes."""
    target = Path(path) if path else index_path(shard)
    size = os.stat(shard).st_size
    if (own := target.stat().st_size) > size + _HEAD:
        raise DataError(f"{target}: {own} bytes about a tar of {size}: no index of it; run `vlp data index`")
    index = parse(target.read_bytes(), target, tar_bytes=size)
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
    if index.damage is not None and index.damage.byte == 0:  # not one header could be read: this is no tar
        return index
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


def _without_torn_tail(samples: list[Group]) -> tuple[list[Group], tuple[Note, ...]]:
    """Without the last sample if it lacks members that most others have: the damage took them. It becomes a note."""
    if not samples:
        return samples, ()
    *others, last = samples
    seen = Counter(extension for sample in others for extension in sample.members)
    usual = {extension for extension, count in seen.items() if 2 * count > len(others)}
    whole = usual <= last.members.keys() if others else len(last.members) > 1
    return (samples, ()) if whole else (others, (Note("torn_sample", 1, last.key),))


def doubtful(shard: str | Path, *, samples: int) -> bool:
    """Whether the first lines of the side index speak against `samples` whole samples; False where there is no index.

    So does one that is older than the shard. This is cheap enough to be asked of every shard before a run.
    """
    target = index_path(shard)
    try:
        with open(target, "rb") as file:
            known = outline(file.read(_HEAD))
        stat = os.stat(shard)
        if target.stat().st_mtime_ns < stat.st_mtime_ns:
            return True
    except OSError:
        return False
    return known is None or known != (stat.st_size, samples, False)
