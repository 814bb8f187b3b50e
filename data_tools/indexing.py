"""The tool `index`: side indexes and `dataset.json` for shards that others wrote."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_tools.progress import progress
from data_tools.shards import find_shards
from vlp.data import index as shard_index
from vlp.data.grouping import KeySplit
from vlp.data.schema import DataError, DatasetManifest, read_manifest, shard_entry, write_manifest
from vlp.registry import Part


class Index(Part):
    """Walks every shard strictly and writes `<shard>.index` beside it, or under `out` when the shards are read-only."""

    key_split: KeySplit = "first-dot"
    manifest: bool = True  # also write dataset.json, when all shards lie in one folder
    keep_damaged: bool = False  # index the samples before the damage instead of stopping

    def run(self, inputs: Iterable[Path | str], out: Path | None = None) -> dict[str, Any]:
        """Counts, notes by reason, and the shards with damage."""
        shards = find_shards(str(item) for item in inputs)
        if missing := [shard for shard in shards if not shard.is_file()]:
            raise DataError(f"{len(missing)} shards are missing: {', '.join(map(str, missing[:5]))}")
        notes: dict[str, int] = {}
        damaged, counts, fields = [], {}, set()
        for shard in progress(shards, total=len(shards), label="index"):
            built = shard_index.build(shard, key_split=self.key_split)
            shard_index.check(shard, built, on_damage="keep" if self.keep_damaged else "stop")
            if built.damage is not None:
                damaged.append(f"{shard}: {built.damage.reason} at byte {built.damage.byte}")
            for reason, count in built.counts().items():
                notes[reason] = notes.get(reason, 0) + count
            target = shard_index.index_path(out / shard.name) if out else None
            _make(target)
            shard_index.write(shard, built, target)
            counts[shard] = len(built)
            fields |= set(built.extensions)
        result: dict[str, Any] = {
            "shards": len(shards),
            "samples": sum(counts.values()),
            "notes": notes,
            "damaged": damaged,
        }
        if self.manifest and len({shard.parent for shard in shards}) == 1:
            result["manifest"] = str(self._manifest(counts, sorted(fields), out))
        return result

    def _manifest(self, counts: dict[Path, int], fields: list[str], out: Path | None) -> Path:
        """`dataset.json` of the folder; provenance that is there already stays, and so do shards not asked for."""
        home = next(iter(counts)).parent
        folder = out or home
        old = read_manifest(folder)
        entries = {} if old is None else {e.file: e for e in old.shards if (home / e.file).is_file()}
        for shard, samples in counts.items():
            entries[shard.name] = shard_entry(shard, samples=samples)
        ordered = tuple(entries[name] for name in sorted(entries))
        if old is not None:
            return write_manifest(folder, old.model_copy(update={"shards": ordered}))
        made_by = {"tool": "data_tools index", "key_split": self.key_split}
        return write_manifest(
            folder, DatasetManifest(name=home.name, shards=ordered, fields=tuple(fields), made_by=made_by)
        )


def _make(target: Path | None) -> None:
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
