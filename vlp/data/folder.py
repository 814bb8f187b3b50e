"""Pictures in a folder, with captions beside them, in a table, or from the names of their folders."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from vlp.data.captions import CAPTION_COLUMNS
from vlp.data.content import stamps
from vlp.data.fields import IMAGE_MEMBERS
from vlp.data.reasons import REMEDIES
from vlp.data.remote import ShardCache
from vlp.data.schema import DataError, file_sha256
from vlp.data.sources import Fact, Finite, Source, digest
from vlp.data.table import Rows, read_rows, told
from vlp.types import BadSampleError, Sample

_TABLES = ("captions.csv", "captions.tsv", "captions.jsonl", "metadata.csv", "metadata.jsonl")
_SIDES = (".txt", ".json")
Layout = Literal["auto", "texts", "table", "classes"]
_MASK = ".mask"  # the one member of docs/data.md that is a picture too: of an unpacked shard it lies beside `<key>.jpg`
logger = logging.getLogger(__name__)


class Folder(Source):
    """Pictures under `path`. A sample gets `txt` and `json` from the files beside it (`texts`), the row of a table in
    the folder (`table`: captions.csv and the like, by its column of file names), or `cls` from its folder (`classes`).
    `<key>.mask.png` beside the picture `<key>.jpg` is its mask and no picture, unless the table names it.
    """

    usual_fields: ClassVar[tuple[str, ...]] = CAPTION_COLUMNS
    path: str
    layout: Layout = "auto"
    file_column: str = Field("file_name", description="layout table: the column of names relative to `path`")

    def shown(self) -> str:
        return self.title or Path(self.path).name or "folder"

    def open(self, cache: ShardCache) -> FolderRecords:
        root = Path(self.path).expanduser()
        if root.is_file():
            what = "a shard: write `data: FILE`, without a source" if root.suffix == ".tar" else "no pictures"
            raise DataError(f"{root}: a file, not a folder: unpack it into one, or if it is {what}")
        if not root.is_dir():
            raise DataError(f"no such folder: {root} (in {Path.cwd()})")
        return FolderRecords(root, self.layout, self.file_column)


class FolderRecords(Finite):
    """Samples of a folder in order of their names; the key is the path without its ending."""

    def __init__(self, root: Path, layout: Layout, file_column: str) -> None:
        self.root = root
        files, masks = list_pictures(root)
        if not files:
            raise DataError(f"{root}: no pictures in it; looked for *.{', *.'.join(IMAGE_MEMBERS)}")
        self.notes: dict[str, int] = {"mask_of_picture": len(masks)} if masks else {}
        self.layout = _detect(root, files) if layout == "auto" else layout
        self.rows: Rows | None = None
        if self.layout == "table":
            files, self._row_of = self._from_table(files, masks, file_column)
        if self.layout == "classes":
            self.classes = tuple(sorted({Path(name).parts[0] for name in files if len(Path(name).parts) > 1}))
            self._class = {name: i for i, name in enumerate(self.classes)}
            loose = [name for name in files if len(Path(name).parts) < 2]
            self.notes["not_in_class_folder"] = len(loose)
            files = [name for name in files if len(Path(name).parts) > 1]
        for reason, count in self.notes.items():
            if count and reason != "multiline_row":  # which `told` has said
                logger.warning("%s: %d %s (%s)", root, count, reason, REMEDIES[reason])
        self._ends = np.cumsum([len(os.fsencode(name)) for name in files]).astype(np.int64)
        self._names = b"".join(os.fsencode(name) for name in files)  # one object, not a list that forks copy
        self.sizes = np.array([len(files)], dtype=np.int64)
        total, pictures = stamps(root, files)
        self.facts = [Fact(root.name, total, len(files), digest([pictures, self._texts(files)]))]

    def file(self, i: int) -> str:
        """Path of picture i relative to the folder."""
        return os.fsdecode(self._names[int(self._ends[i - 1]) if i else 0 : int(self._ends[i])])

    def name(self, i: int) -> tuple[str, str]:
        return self.root.name, str(Path(self.file(i)).with_suffix(""))

    def read(self, i: int, only: Collection[str] | None = None) -> Sample:
        name = self.file(i)
        path, (shard, key) = self.root / name, self.name(i)
        members: dict[str, bytes] = {}
        if only is None or path.suffix[1:].lower() in only:
            members[path.suffix[1:].lower()] = _read(path)
        if self.layout == "classes":
            label = Path(name).parts[0]
            members |= {"cls": str(self._class[label]).encode(), "json": json.dumps({"class": label}).encode()}
        elif self.layout == "table":
            assert self.rows is not None
            members["json"] = self.rows.json(int(self._row_of[i]))
        else:
            members |= {end[1:]: _read(side) for end in _SIDES if (side := path.with_suffix(end)).is_file()}
        return Sample(key, members if only is None else {k: v for k, v in members.items() if k in only}, shard, i)

    def _texts(self, files: list[str]) -> str:
        """A hash that follows the texts of the pictures: of the table, or of the files beside them."""
        if self.layout == "classes":  # the names of the folders, which are in the paths
            return self.layout
        if self.layout == "table":
            return file_sha256(self._table())
        return stamps(self.root, (f"{os.path.splitext(name)[0]}{end}" for name in files for end in _SIDES))[1]

    def _table(self) -> Path:
        table = next((self.root / name for name in _TABLES if (self.root / name).is_file()), None)
        if table is None:
            raise DataError(f"{self.root}: layout: table needs one of {', '.join(_TABLES)} in the folder")
        return table

    def _from_table(self, files: list[str], masks: list[str], column: str) -> tuple[list[str], np.ndarray]:
        """Rows of the table whose picture exists, in the table's order; the others are counted."""
        table = self._table()
        self.rows = read_rows(table)
        self.notes |= told(table, self.rows)
        names = self.rows.column(column, where=f"{table}: file_column")
        named = set(masks) & set(names)
        if masks:
            self.notes["mask_of_picture"] = len(masks) - len(named)
        there = set(files) | named
        kept = [(name, i) for i, name in enumerate(names) if name in there]
        self.notes["row_without_picture"] = len(names) - len(kept)
        self.notes["picture_without_row"] = len(there - set(names))
        if not kept:
            example = f'row 1 says "{names[0]}"' if names else "it has no rows"
            raise DataError(f"{table}: no row names a picture of {self.root} ({example})")
        return [name for name, _ in kept], np.array([i for _, i in kept], dtype=np.int64)


def list_pictures(root: Path) -> tuple[list[str], list[str]]:
    """Paths of all pictures and of their masks, relative and sorted; what is hidden is left out, links not followed."""
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and name.rpartition(".")[2].lower() in IMAGE_MEMBERS:
                found.append(os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/"))
    keys = {os.path.splitext(name)[0] for name in found}
    masks = {
        name for name in found if (key := os.path.splitext(name)[0]).endswith(_MASK) and key[: -len(_MASK)] in keys
    }
    return sorted(name for name in found if name not in masks), sorted(masks)


def _detect(root: Path, files: list[str]) -> Layout:
    if any((root / name).is_file() for name in _TABLES):
        return "table"
    sides = [(root / name).with_suffix(end).is_file() for name in files[:100] for end in _SIDES]
    if any(sides):
        return "texts"
    if all("/" in name for name in files):
        return "classes"
    raise DataError(
        f"{root}: no captions found: neither {_TABLES[0]}, nor a .txt beside the pictures, nor class folders (a folder "
        "for each class, no picture outside of them); set `layout` if the captions lie otherwise"
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadSampleError("unreadable", str(error)) from error
