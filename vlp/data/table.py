"""Tables of pictures and texts: CSV, TSV, JSONL or parquet. Every value stays the text it is; rows in = rows out."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from vlp.data.captions import CAPTION_COLUMNS
from vlp.data.content import stamps
from vlp.data.fields import IMAGE_MEMBERS
from vlp.data.reasons import REMEDIES
from vlp.data.remote import ShardCache
from vlp.data.schema import DataError, file_sha256
from vlp.data.sources import Fact, Finite, Source, digest
from vlp.registry import nearest
from vlp.types import BadSampleError, Sample

# what a column of pictures is usually called, best first; `vlp data build` guesses by the same names
IMAGE_COLUMNS = (
    "image",
    "image_path",
    "filepath",
    "file_path",
    "file_name",
    "filename",
    "file",
    "path",
    "img",
    "jpg",
    "png",
)
Quoting = Literal["auto", "minimal", "none"]
logger = logging.getLogger(__name__)


class Csv(Source):
    """A table with a column of picture paths (relative to the table), or, in parquet, of picture bytes.

    The row is the sample's json, so captions and labels are picked by column name; without `captions` the first text of
    CAPTION_COLUMNS is taken. "NA", "null" and "" stay texts.
    """

    usual_fields: ClassVar[tuple[str, ...]] = CAPTION_COLUMNS
    path: str
    image: str | None = Field(None, description="column of pictures; default: the first of the usual names")
    root: str | None = Field(None, description="folder that paths are relative to; default: the table's")
    separator: str | None = Field(None, max_length=1, description="default: by the ending, and by the first line")
    quoting: Quoting = Field("auto", description="none: quotes are letters (default for .tsv)")

    def shown(self) -> str:
        return self.title or Path(self.path).stem or "csv"

    def open(self, cache: ShardCache) -> TableRecords:
        path = Path(self.path).expanduser()
        rows = read_rows(path, separator=self.separator, quoting=self.quoting)
        return TableRecords(path, rows, self.image, Path(self.root).expanduser() if self.root else path.parent)


class Rows:
    """Rows of a table: an arrow table, or one JSON text a row."""

    def __init__(self, table: pa.Table, joined: Sequence[int] = ()) -> None:
        self.table = table
        self.joined = joined  # last lines of rows over several lines: a stray quote swallows what is up to the next one

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def names(self) -> list[str]:
        return list(self.table.column_names)

    def row(self, i: int) -> dict[str, Any]:
        """Row i by column name."""
        return {name: self.table.column(name)[i].as_py() for name in self.names}

    def json(self, i: int, *, without: str = "") -> bytes:
        """Row i as JSON; bytes columns and `without` are left out."""
        row = {k: v for k, v in self.row(i).items() if k != without and not isinstance(v, bytes)}
        return json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")

    def column(self, name: str, *, where: str) -> list[str]:
        """A column as texts; DataError naming near columns if there is none."""
        if name not in self.names:
            raise DataError(f'{where}: no column "{name}"{nearest(name, self.names)}')
        return [str(value) for value in self.table.column(name).to_pylist()]


class TableRecords(Finite):
    """Samples of a table; the key is the number of the row."""

    def __init__(self, path: Path, rows: Rows, image: str | None, root: Path) -> None:
        self.path, self.rows, self.root = path, rows, root
        self.image = image or next((name for name in IMAGE_COLUMNS if name in rows.names), "")
        if self.image not in rows.names:
            hint = nearest(self.image or "image", rows.names)
            raise DataError(f'{path}: no column of pictures "{self.image or "image"}"{hint}; name it with `image:`')
        self.notes = told(path, rows)
        self.sizes = np.array([len(rows)], dtype=np.int64)
        self._refuse_urls()
        pictures = stamps(root, dict.fromkeys(self._paths()))[1]
        self.facts = [
            Fact(path.name, path.stat().st_size, len(rows), digest([file_sha256(path), self.image, pictures]))
        ]

    @cached_property
    def _pictures(self) -> Any:
        return self.rows.table.column(self.image)

    def _paths(self) -> Iterator[str]:
        """The paths in the column of pictures, as they stand there; pictures in the table itself have none."""
        column, kind = self._pictures, self._pictures.type
        if pa.types.is_struct(kind) and kind.get_field_index("path") >= 0:
            held = kind.get_field_index("bytes") >= 0
            column = column.filter(pc.is_null(pc.struct_field(column, "bytes"))) if held else column
            column = pc.struct_field(column, "path")
        elif pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return iter(())
        return (str(value) for value in column.to_pylist() if value)

    def name(self, i: int) -> tuple[str, str]:
        return self.path.name, f"{i:08d}"

    def read(self, i: int, only: Collection[str] | None = None) -> Sample:
        members = {"json": self.rows.json(i, without=self.image)} if only is None or "json" in only else {}
        if only is None or set(only) & set(IMAGE_MEMBERS):
            end, picture = self._picture(self._pictures[i].as_py())
            members[end] = picture
        return Sample(self.name(i)[1], members, self.path.name, i)

    def _picture(self, value: Any) -> tuple[str, bytes]:
        """Ending and bytes of a picture given as path, bytes, or Hugging Face's {bytes, path}."""
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return "jpg", value  # the decoder goes by content, not by name
        if not value:
            raise BadSampleError("no_image", f"column {self.image} is empty")
        path = self.root / str(value)
        end = path.suffix[1:].lower()
        if end not in IMAGE_MEMBERS:
            raise BadSampleError("no_image", f"{path} has not the ending of a picture")
        try:
            return end, path.read_bytes()
        except OSError as error:
            raise BadSampleError("unreadable", str(error)) from error

    def _refuse_urls(self) -> None:
        first = self._pictures[0].as_py() if len(self.rows) else None
        if isinstance(first, str) and first.startswith(("http://", "https://", "s3://")):
            raise DataError(
                f"{self.path}: column {self.image} holds urls; download them first, for example by img2dataset"
            )


def read_rows(path: Path, *, separator: str | None = None, quoting: Quoting = "auto") -> Rows:
    """The rows of a table; DataError with line numbers for rows that have not the columns of the first line."""
    if not path.is_file():
        near = nearest(path.name, [p.name for p in path.parent.glob("*")][:40]) if path.parent.is_dir() else ""
        raise DataError(f"no such table: {path} (in {Path.cwd()}){near}")
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            return Rows(pq.read_table(path))
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path}: no parquet file, or not whole: {error}; fetch or write it again") from None
    if path.suffix in (".jsonl", ".ndjson"):
        return Rows(_columns(list(_json_lines(path)), path))
    if path.suffix not in (".csv", ".tsv", ".txt"):
        raise DataError(f"{path}: a table is a .csv, .tsv, .jsonl or .parquet file")
    return _separated(path, separator, quoting)


def told(path: Path, rows: Rows) -> dict[str, int]:
    """The notes of a table that was read, said aloud."""
    if not rows.joined:
        return {}
    lines = ", ".join(map(str, rows.joined[:10]))
    logger.warning(
        "%s: %d rows go over several lines (ending in lines %s): %s",
        *(path, len(rows.joined), lines, REMEDIES["multiline_row"]),
    )
    return {"multiline_row": len(rows.joined)}


def _separated(path: Path, separator: str | None, quoting: Quoting) -> Rows:
    tabs = path.suffix != ".csv"
    style: Any = csv.QUOTE_NONE if quoting == "none" or (quoting == "auto" and tabs) else csv.QUOTE_MINIMAL
    with open(path, newline="", encoding="utf-8-sig") as file:
        if separator is None:
            first = file.readline()
            file.seek(0)
            separator = "\t" if tabs or "\t" in first else ";" if first.count(";") > first.count(",") else ","
        reader = csv.reader(file, delimiter=separator, quoting=style, strict=True)
        try:
            head = next(reader, [])
            rows, bad, joined = _same_width(reader, len(head))
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}; a stray quote? then `quoting: none`") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8: {error}") from None
    if not head or len(set(head)) < len(head):
        raise DataError(f"{path}: the first line must name the columns, each once; it is {head}")
    if bad:
        lines = ", ".join(map(str, bad[:10]))
        raise DataError(
            f"{path}: {len(bad)} rows have not the {len(head)} columns of the first line (ending in lines {lines}); "
            "a stray quote or separator? then `quoting: none`, or another `separator`"
        )
    table = pa.table({name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(head)})
    return Rows(table, joined)


def _same_width(reader: Any, width: int) -> tuple[list[list[str]], list[int], list[int]]:
    """Rows of the right width, the lines of the others, and of those over several lines; blank lines are no rows."""
    rows: list[list[str]] = []
    bad, joined, line = [], [], reader.line_num
    for row in reader:
        if reader.line_num > line + 1:
            joined.append(reader.line_num)
        line = reader.line_num
        if len(row) == width:
            rows.append(row)
        elif row:
            bad.append(reader.line_num)
    return rows, bad, joined


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(_lines(file, path), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: not JSON: {error}") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: a {type(row).__name__}, not an object")
            yield row


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    try:
        yield from file
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error}; write it again") from None


def _columns(rows: Sequence[dict[str, Any]], path: Path) -> pa.Table:
    """A column for every name that any row has: pyarrow by itself goes by the first row and drops the rest."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {}
    for name in names:
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise DataError(f'{path}: column "{name}" holds values of several kinds, or too large: {error}') from None
    return pa.table(columns)
