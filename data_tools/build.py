"""The tool `build`: pictures and captions from folders and tables into shards, every row written or counted."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from data_tools.convert import Columns, RowMaker
from data_tools.dataset import SKIPS, write_dataset
from data_tools.tables import Folder, Quoting, Row, Table, open_table
from data_tools.write import Reject
from vlp.data.captions import CAPTION_COLUMNS
from vlp.data.decode import Limits
from vlp.data.schema import DataError, write_atomic
from vlp.data.table import IMAGE_COLUMNS
from vlp.registry import Part, nearest


class Build(Part):
    """Rows of a folder, CSV, TSV, JSONL, parquet or `datasets` to shards; columns found by name when not given."""

    image: str = ""  # column of the picture; empty: the first of IMAGE_COLUMNS that is there
    captions: tuple[str, ...] = ()  # columns of texts; empty: those of CAPTION_COLUMNS that are there
    extra: tuple[str, ...] = ()  # more columns for the json member
    label: str = ""  # column of class names or numbers; a folder without texts: its subfolders
    key: str = ""  # column of keys; empty: row numbers
    name: str = ""
    split: str = "train"  # of `datasets`
    quoting: Literal["minimal", "none"] | None = None  # None: minimal for CSV, none for TSV
    size: int | None = Field(default=None, ge=8)  # scale so that the shorter side is at most this
    limits: Limits = Limits()
    allow_no_caption: bool = False
    shard_size: int = Field(default=1000, ge=1)
    workers: int = Field(default=1, ge=1)
    shard_range: tuple[int, int] = (0, 1)
    overwrite: bool = False

    def run(self, inputs: Iterable[Path | str], out: Path) -> dict[str, Any]:
        """Writes shards, `dataset.json`, `skips.jsonl`, with labels `classes.json`; rows = samples + skipped."""
        sources = [str(source) for source in inputs]
        if len(sources) != 1:
            raise DataError(f"build takes one source, got {len(sources)}")
        quoting: Quoting | None = self.quoting
        table = open_table(sources[0], split=self.split, quoting=quoting)
        if not len(table):
            raise DataError(f"{sources[0]}: no rows; a folder needs pictures, a table needs lines below its header")
        columns = self._columns(table, sources[0])
        classes = _classes(table, columns.label) if columns.label else ()
        repeated = _repeated(table, columns.key) if columns.key else frozenset()
        maker = RowMaker(table, columns, self.limits, self.size, self.allow_no_caption, classes, repeated)
        written = write_dataset(
            out,
            maker,
            name=self.name or Path(sources[0]).stem,
            count=len(table),
            shard_size=self.shard_size,
            made_by=self._provenance(table, sources[0], columns),
            workers=self.workers,
            shard_range=self.shard_range,
            overwrite=self.overwrite,
        )
        if classes:
            write_atomic(
                out / "classes.json", (json.dumps({"names": classes}, ensure_ascii=False, indent=1) + "\n").encode()
            )
            write_atomic(out / "classnames.txt", "".join(f"{name}\n" for name in classes).encode())
        result = {"rows": len(table), **written._asdict(), "columns": columns._asdict()}
        if isinstance(table, Folder) and table.masks:
            result["left_out"] = {"mask_of_picture": table.masks}
        return result | ({"skips": str(out / SKIPS)} if written.skipped else {})

    def _columns(self, table: Table, source: str) -> Columns:
        known = table.columns()
        for name in (self.image, self.label, self.key, *self.captions, *self.extra):
            if name and name not in known:
                raise DataError(f'{source}: no column "{name}"{nearest(name, known)}')
        image = self.image or next((name for name in IMAGE_COLUMNS if name in known), "")
        if not image:
            raise DataError(f"{source}: which column is the picture? say --image; columns: {', '.join(known)}")
        captions = self.captions or tuple(name for name in CAPTION_COLUMNS if name in known and name != image)
        label = self.label
        if isinstance(table, Folder) and not label and not captions and "class" in known:
            label = "class"
        if not captions and not label and not self.allow_no_caption:
            raise DataError(
                f"{source}: which columns are captions? say --caption or --label; columns: {', '.join(known)}"
            )
        return Columns(image, captions, self.extra, label, self.key)

    def _provenance(self, table: Table, source: str, columns: Columns) -> dict[str, Any]:
        hidden = {"workers", "shard_range", "overwrite", "shard_size", "name"}
        settings = self.model_dump(mode="json", exclude=hidden) | json.loads(json.dumps(columns._asdict()))
        facts = {"name": Path(source).name, "rows": len(table), "fingerprint": table.fingerprint()}
        return {"tool": "data_tools build", "version": 1, "source": facts, "settings": settings}


def _classes(table: Table, column: str) -> tuple[str, ...]:
    """Distinct class names, sorted; () when all labels are numbers, which then stay as they are."""
    values = {str(row.values.get(column, "")).strip() for row in _readable(table)} - {""}
    if all(value.isascii() and value.isdigit() for value in values):
        return ()
    return tuple(sorted(values))


def _repeated(table: Table, column: str) -> frozenset[int]:
    """Rows whose key an earlier row has."""
    seen: set[str] = set()
    repeated = set()
    for row in _readable(table):
        value = str(row.values.get(column, ""))
        if value in seen:
            repeated.add(row.number)
        seen.add(value)
    return frozenset(repeated)


def _readable(table: Table) -> Iterable[Row]:
    return (row for row in table.rows(0, len(table)) if not isinstance(row, Reject))
