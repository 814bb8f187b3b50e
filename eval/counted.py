"""What lies where a benchmark looks for its data, counted: no picture is decoded.

Pictures are counted from manifests and side indexes; a shard without one is walked once, and its index kept, as
measuring would.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from eval.caption_lines import with_caption_lines
from eval.catalog import KnownSet
from eval.data import Data, Opened, is_plain_folder, locate, open_data
from eval.found import Found, find_set, open_found
from eval.layout import is_layout
from vlp.data import index as shard_index
from vlp.data.schema import DataError, file_sha256, read_manifest
from vlp.data.sources import Records, open_records
from vlp.data.urls import resolve


class Seen(NamedTuple):
    """One place of data: what lies there, and a part of the records that labels are read from."""

    where: Path | None
    shards: int | None
    pictures: int
    sample: Records | None  # of the first shard, or all where there are no shards
    known: KnownSet | None = None
    templates: str | None = None  # of the catalogue, where the folder has none
    faults: tuple[str, ...] = ()
    names: tuple[str, ...] | None = None
    folders: tuple[str, ...] | None = None  # of pictures in class folders


def look(data: Data, folders: Sequence[Path]) -> Seen:
    """What lies where a benchmark looks; DataError where there is nothing."""
    if data.set:
        return of_set(find_set(data.set, folders=folders, split=data.split), data.split)
    if data.path:
        found = Path(locate(data.path, folders=folders, made_by=data.made_by))
        if is_layout(found, data.split):
            return _of_shards(found, *_layout_shards(found, data.split))
        if is_plain_folder(found):
            return _of_records(found, open_data(data, folders=folders))
        if found.suffix not in (".csv", ".tsv"):
            return _of_shards(found if found.is_dir() else found.parent, list(map(Path, resolve(str(found)))), ())
        records = open_records({"name": "csv", "path": str(found)})
        return Seen(found, None, len(records), records)
    return _of_records(None, open_data(data, folders=folders))


def _of_records(where: Path | None, opened: Opened) -> Seen:
    return Seen(where, None, len(opened.records), opened.records, names=opened.names, folders=opened.folders)


def of_set(found: Found, split: str) -> Seen:
    """What lies in the folder of a known set."""
    known = found.known
    faults = tuple(_files(found))
    if found.form == "clip_benchmark":
        seen = _of_shards(found.folder, *_layout_shards(found.folder, split))
    elif found.form == "shards":
        seen = _of_shards(found.folder, list(map(Path, resolve(str(found.folder)))), ())
    else:
        try:
            opened = open_found(found, split)
        except ValueError as error:
            return Seen(found.folder, None, 0, None, known, faults=(*faults, str(error)))
        seen = Seen(found.folder, None, len(opened.records), opened.records, names=opened.names)
    return seen._replace(known=known, templates=known.templates, faults=(*seen.faults, *faults))


def _files(found: Found) -> Iterator[str]:
    """What is wrong with the files that lie beside the pictures."""
    for name, digest in found.known.files.items() if found.form in ("pictures", "coop") else ():
        file = found.folder / name
        if not file.is_file():
            yield f"{file} is missing"
        elif digest and file_sha256(file) != digest:
            yield f"{file} is not the published one (SHA-256 {digest[:12]}...)"


def _layout_shards(folder: Path, split: str) -> tuple[list[Path], tuple[str, ...]]:
    """The shards that are there, and what is wrong with their number."""
    counter = folder / split / "nshards.txt"
    try:
        count = int(counter.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        return [], (f"{counter}: wanted the number of shards: {error}",)
    shards = [folder / split / f"{number}.tar" for number in range(count)]
    lost = [shard.name for shard in shards if not shard.is_file()]
    said = f"{counter} says {count} shards, {len(lost)} missing: {', '.join(lost[:5])}; fetch it again"
    return [shard for shard in shards if shard.is_file()], (said,) if lost else ()


def _of_shards(folder: Path, shards: Sequence[Path], faults: Sequence[str]) -> Seen:
    """Shards counted, from the manifest where it knows them, else from their indexes."""
    found, pictures = list(faults), 0
    for shard in shards:
        manifest = read_manifest(shard.parent)
        entry = manifest.by_file().get(shard.name) if manifest else None
        if entry is not None and entry.bytes == shard.stat().st_size:
            pictures += entry.samples
            continue
        index = shard_index.read_or_build(shard)
        pictures += len(index)
        try:
            shard_index.check(shard, index, expected=entry.samples if entry else None)
        except DataError as error:
            found.append(str(error))
    first = open_records({"name": "shards", "urls": str(shards[0]), "damaged": "keep"}) if shards and pictures else None
    sample = with_caption_lines(folder, first) if first else None
    return Seen(folder, len(shards), pictures, sample, faults=tuple(found))
