"""Shards in: which files a list of folders, globs and brace patterns means, and the samples of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from braceexpand import braceexpand

from vlp.data import index as shard_index
from vlp.data.schema import DataError, read_manifest
from vlp.data.urls import no_shards, refuse_picture
from vlp.paths import refuse_url


class Raw(NamedTuple):
    """One sample as bytes."""

    key: str
    members: dict[str, bytes]


def find_shards(patterns: Iterable[str]) -> list[Path]:
    """Shards in order, each once: of folders (`dataset.json`, else *.tar), globs, braces, and `a::b` lists of these.

    Files that a manifest or a brace pattern names are returned also when they are missing, so that they are missed.
    """
    found: list[Path] = []
    for pattern in (part for patterns_ in patterns for part in patterns_.split("::")):
        for name in braceexpand(pattern):
            matches = _expand(name)
            if not matches:
                folder = Path(name).is_dir()
                raise DataError(no_shards(Path(name)) if folder else f"no shard matches {name} (in {Path.cwd()})")
            found += matches
    return list(dict.fromkeys(found))


def _expand(name: str) -> list[Path]:
    refuse_url(name, fault=DataError)
    path = Path(name)
    refuse_picture(path)
    if path.is_dir():
        manifest = read_manifest(path)
        if manifest is not None:
            return [path / entry.file for entry in manifest.shards]
        return sorted(path.glob("*.tar"))
    if any(char in name for char in "*?["):
        return sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
    return [path]


def _index(shard: Path) -> shard_index.ShardIndex:
    """The side index if it is there and fresh, else a new one in memory: a tool that reads writes nothing beside it."""
    side = shard_index.index_path(shard)
    if side.is_file() and shard.is_file() and side.stat().st_mtime_ns >= shard.stat().st_mtime_ns:
        try:
            return shard_index.read(shard)
        except DataError:
            pass  # built again; `verify` reports a bad side index
    return shard_index.build(shard)


def open_index(shard: Path) -> shard_index.ShardIndex:
    """The index of a shard; DataError if the tar is damaged."""
    built = _index(shard)
    shard_index.check(shard, built)
    return built


def samples(shard: Path, *, only: Sequence[str] = (), built: shard_index.ShardIndex | None = None) -> Iterator[Raw]:
    """The samples of a shard in order (`only` these members, when given); DataError if the tar is damaged."""
    if built is None:
        built = open_index(shard)
    with open(shard, "rb") as file:
        for number, key in enumerate(built.keys()):
            members = {}
            for extension, place in built.members(number).items():
                if not only or extension in only:
                    file.seek(place.offset)
                    members[extension] = file.read(place.size)
            yield Raw(key, members)
