"""Shards of the same names from shards: what is to be written, and that nothing is written over what is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_tools.dataset import Task
from data_tools.shards import open_index
from data_tools.write import digest_of
from vlp.data.schema import DataError


def plan_rewrite(
    shards: Sequence[Path], out: Path, about: Mapping[str, Any]
) -> tuple[list[tuple[Task, Path]], dict[str, Any]]:
    """A task for each shard with samples, beside the shard that it reads; and what all of them hold."""
    tasks, contents, start = list[tuple[Task, Path]](), list[str](), 0
    left_out = Counter[str]()
    for shard in shards:
        built = open_index(shard)
        contents.append(built.content)
        left_out.update(built.counts())
        if len(built):
            digest = digest_of({"made_by": about, "content": built.content})
            tasks.append((Task(out / shard.name, start, start + len(built), digest), shard))
        start += len(built)
    source = {"shards": len(shards), "samples": start, "fingerprint": digest_of(contents), "left_out": dict(left_out)}
    return tasks, source


def refuse_mixing(shards: Sequence[Path], out: Path) -> None:
    """DataError where a shard would be written over one that is read, or over another one."""
    if any(shard.resolve().parent == out.resolve() for shard in shards):
        raise DataError(f"{out}: the shards to be read lie there; give another folder, they are never changed")
    twice = [name for name, count in Counter(shard.name for shard in shards).items() if count > 1]
    if twice:
        raise DataError(f"two of the shards are called {twice[0]}; write each folder into one of its own")
    if missing := [str(shard) for shard in shards if not shard.is_file()]:
        raise DataError(f"{len(missing)} shards are missing: {', '.join(missing[:5])}; see `verify`")
