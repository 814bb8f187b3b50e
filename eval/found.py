"""Where a known evaluation set lies, in which form, and its records: `data: {set: NAME}` of a benchmark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from eval.caption_lines import with_caption_lines
from eval.catalog import KnownSet, find
from eval.coop import is_coop, read_coop
from eval.layout import is_layout, read_layout, read_words
from vlp.data.fields import IMAGE_MEMBERS
from vlp.data.schema import MANIFEST, DataError
from vlp.data.sources import Records, open_records
from vlp.text.templates import template_set

Form = Literal["clip_benchmark", "coop", "pictures", "huggingface", "shards", "folder"]
TABLES = ("captions.csv", "captions.tsv", "captions.jsonl", "metadata.csv", "metadata.jsonl")


class Found(NamedTuple):
    """A known set on this machine."""

    known: KnownSet
    folder: Path
    form: Form

    @property
    def source(self) -> dict[str, Any]:
        """The source that reads it; forms clip_benchmark and coop are read by their own rules."""
        if self.form == "huggingface":
            return {
                "name": "huggingface",
                "path": str(self.folder),
                "part": self.known.part,
                "image": self.known.image,
            }
        if self.form == "pictures":
            return {"name": "folder", "path": str(self.folder / (self.known.pictures or ".")), "layout": "texts"}
        if self.form == "folder":
            return {"name": "folder", "path": str(self.folder)}
        return {"name": "shards", "urls": str(self.folder)}


class SetRecords(NamedTuple):
    """Records of a known set, and what is known of its classes."""

    records: Records
    names: tuple[str, ...] | None
    templates: tuple[str, ...] | None


def places(known: KnownSet, folders: Sequence[Path]) -> list[Path]:
    """Every place where the set is looked for, in order."""
    return list(dict.fromkeys(folder / name for name in known.folders() for folder in folders))


def find_set(name: str, *, folders: Sequence[Path], split: str = "test") -> Found:
    """The set where it was found first; DataError with every place looked at, and how to get it."""
    known = find(name)
    for place in places(known, folders):
        form = form_of(known, place, split)
        if form is not None:
            return Found(known, place, form)
    raise DataError(absent(known, folders, split))


def absent(known: KnownSet, folders: Sequence[Path], split: str) -> str:
    """The message for a set that is nowhere: the places, what is wrong with those that are there, and the remedy."""
    names = ",".join(known.folders())
    lines = [f'no evaluation set "{known.name}" (in {Path.cwd()}); looked at']
    lines += [f"  {folder}/{{{names}}}" for folder in dict.fromkeys(folders)]
    for place in places(known, folders):
        if place.is_dir():
            lines.append(f"{place} is there, but not in a form that can be read{_lacks(known, place, split)}")
    return "\n".join([*lines, *remedy(known, folders[0]), 'or set another place with "data=FOLDER"'])


def remedy(known: KnownSet, folder: Path) -> list[str]:
    """How the set is got, line by line."""
    lines = ["get it with:", *(f"  {line}" for line in known.fetch(str(folder)))] if known.fetch("") else []
    lines += [f"by hand: {known.needs}"] if known.needs else []
    if known.layout == "own":
        lines.append("then make it readable: docs/datasets.md, Sets in their own form")
    return [*lines, *([f"its page: {known.page}"] if known.page else [])]


def form_of(known: KnownSet, folder: Path, split: str) -> Form | None:
    """How the folder can be read as that set; None if it cannot. CoOp's sets have splits of their own: only as such."""
    if not folder.is_dir():
        return None
    if known.layout == "coop" or is_coop(folder):
        return "coop" if known.layout == "coop" and is_coop(folder) else None
    if is_layout(folder, split):
        return "clip_benchmark"
    if known.layout == "pictures" and known.pictures and _has_pictures(folder / known.pictures):
        return "pictures"
    if _has_parquet(folder) or (folder / "dataset_info.json").is_file():
        return "huggingface"
    if (folder / MANIFEST).is_file() or any(folder.glob("*.tar")):
        return "shards"
    return "folder" if any((folder / name).is_file() for name in TABLES) else None


def open_set(name: str, *, folders: Sequence[Path], split: str = "test") -> SetRecords:
    """The set's records; class names and templates from its folder, else templates of the catalogue if it has some."""
    return open_found(find_set(name, folders=folders, split=split), split)


def open_found(found: Found, split: str) -> SetRecords:
    """As `open_set`, of a set that was found."""
    opened, default = _open(found, split), found.known.templates
    return opened if opened.templates or not default else opened._replace(templates=template_set(default))


def _open(found: Found, split: str) -> SetRecords:
    if found.form == "clip_benchmark":
        layout = read_layout(found.folder, split, blank=found.known.blank)
        records = with_caption_lines(found.folder, open_records({"name": "shards", "urls": layout.shards}))
        return SetRecords(records, layout.names, layout.templates)
    if found.form == "coop":
        records, names = read_coop(found.folder, pictures=found.known.pictures or ".", split=split)
        return SetRecords(records, names, None)
    words, records = read_words(found.folder, blank=found.known.blank), open_records(found.source)
    return SetRecords(records, words.names or tuple(records.classes) or None, words.templates)


def _lacks(known: KnownSet, folder: Path, split: str) -> str:
    """Of a folder in the set's own layout, the one thing that it misses."""
    if known.layout == "clip_benchmark" and (folder / split).is_dir():
        return f": no {split}/nshards.txt"
    if known.layout == "pictures" and known.pictures:
        return f": no pictures in {known.pictures}/"
    if known.layout == "coop":
        return f": no {', '.join(known.files)}"
    return ""


def _has_pictures(folder: Path) -> bool:
    return folder.is_dir() and any(_pictures(folder))


def _pictures(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix[1:].lower() in IMAGE_MEMBERS)


def _has_parquet(folder: Path) -> bool:
    return any(folder.glob("*.parquet")) or any(folder.glob("data/*.parquet"))
