"""Inputs of `build` as numbered rows: a folder of pictures, CSV or TSV, JSONL, parquet, or a Hugging Face data set.

Each table is a small picklable value; every worker opens the file itself and reads only the rows of its shards. A row
that cannot be read is a `Reject` in its place, so that rows in = samples + rejects.
"""

from __future__ import annotations

import csv
import functools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from data_tools.write import Reject, digest_of
from vlp.data.folder import list_pictures
from vlp.data.schema import DataError, file_sha256
from vlp.paths import refuse_url
from vlp.registry import nearest

Quoting = Literal["minimal", "none"]


class Row(NamedTuple):
    """One input row: its number and its columns."""

    number: int
    values: dict[str, Any]


class Table(Protocol):
    """Rows by number. `folder` is where relative picture paths start."""

    @property
    def folder(self) -> Path: ...
    def __len__(self) -> int: ...
    def rows(self, start: int, stop: int) -> Iterator[Row | Reject]: ...
    def columns(self) -> list[str]: ...
    def fingerprint(self) -> str:
        """Changes when the rows could have changed."""
        ...


@dataclass(frozen=True)
class Folder:
    """Pictures under a folder, sorted; a sibling .txt gives `txt`, a .json its fields, a subfolder's name `class`."""

    path: Path

    @property
    def folder(self) -> Path:
        return self.path

    @property
    def masks(self) -> int:
        """How many files are masks of pictures beside them."""
        return _listed(self.path)[1]

    def __len__(self) -> int:
        return len(_pictures(self.path))

    def columns(self) -> list[str]:
        return sorted({name for row in self.rows(0, min(50, len(self))) if isinstance(row, Row) for name in row.values})

    def fingerprint(self) -> str:
        return digest_of([[str(path.relative_to(self.path)), path.stat().st_size] for path in _pictures(self.path)])

    def rows(self, start: int, stop: int) -> Iterator[Row | Reject]:
        for number, picture in enumerate(_pictures(self.path)[start:stop], start=start):
            yield self._row(number, picture)

    def _row(self, number: int, picture: Path) -> Row | Reject:
        values: dict[str, Any] = {"image": str(picture.relative_to(self.path))}
        if picture.parent != self.path:
            values["class"] = picture.parent.name
        beside, facts = picture.with_suffix(".txt"), picture.with_suffix(".json")
        try:
            if beside.is_file():
                values["txt"] = beside.read_text(encoding="utf-8").strip()
            if facts.is_file():
                values |= json.loads(facts.read_text(encoding="utf-8"))
        except (ValueError, TypeError, RecursionError) as error:
            return Reject("bad_sidecar", str(number), f"{picture.relative_to(self.path)}: {error}")
        return Row(number, values)


@functools.lru_cache(maxsize=2)
def _listed(folder: Path) -> tuple[list[Path], int]:
    """The pictures that the source `folder` has too, in its order, and the number of masks among the files."""
    pictures, masks = list_pictures(folder)
    return [folder / name for name in pictures], len(masks)


def _pictures(folder: Path) -> list[Path]:
    return _listed(folder)[0]


@dataclass(frozen=True)
class Delimited:
    """CSV or TSV with a header line. Every value stays the text it is: "NA", "null" and "" are texts."""

    path: Path
    delimiter: str
    quoting: Quoting

    @property
    def folder(self) -> Path:
        return self.path.parent

    def __len__(self) -> int:
        return len(self._all()) - 1

    def columns(self) -> list[str]:
        return self._all()[0]

    def fingerprint(self) -> str:
        return file_sha256(self.path)

    def rows(self, start: int, stop: int) -> Iterator[Row | Reject]:
        header, *lines = self._all()
        for number, line in enumerate(lines[start:stop], start=start):
            if len(line) == len(header):
                yield Row(number, dict(zip(header, line)))
            else:
                yield Reject("bad_row", str(number), f"{len(line)} columns, the header has {len(header)}")

    def _all(self) -> list[list[str]]:
        return _read_delimited(self.path, self.delimiter, self.quoting)


@functools.lru_cache(maxsize=2)
def _read_delimited(path: Path, delimiter: str, quoting: Quoting) -> list[list[str]]:
    csv.field_size_limit(min(sys.maxsize, 1 << 24))
    mode: Any = csv.QUOTE_NONE if quoting == "none" else csv.QUOTE_MINIMAL
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, quoting=mode, strict=True)
        try:
            rows = [row for row in reader if row]
        except csv.Error as error:
            raise DataError(f"{path}, line {reader.line_num}: {error}; a stray quote? try --quoting none") from None
    if not rows:
        raise DataError(f"{path}: is empty; the first line must name the columns")
    if len(set(rows[0])) != len(rows[0]):
        raise DataError(f"{path}: two columns of one name in the header: {rows[0]}")
    return rows


@dataclass(frozen=True)
class JsonLines:
    """One JSON object a line."""

    path: Path

    @property
    def folder(self) -> Path:
        return self.path.parent

    def __len__(self) -> int:
        return len(_lines(self.path))

    def columns(self) -> list[str]:
        return sorted({name for row in self.rows(0, min(50, len(self))) if isinstance(row, Row) for name in row.values})

    def fingerprint(self) -> str:
        return file_sha256(self.path)

    def rows(self, start: int, stop: int) -> Iterator[Row | Reject]:
        for number, line in enumerate(_lines(self.path)[start:stop], start=start):
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Reject("bad_json", str(number), str(error))
                continue
            yield Row(number, values) if isinstance(values, dict) else Reject("bad_json", str(number), "not an object")


@functools.lru_cache(maxsize=2)
def _lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().split(b"\n") if line.strip()]


@dataclass(frozen=True)
class Parquet:
    """One parquet file; pictures are bytes, {bytes, path} as `datasets` writes them, or paths."""

    path: Path

    @property
    def folder(self) -> Path:
        return self.path.parent

    def __len__(self) -> int:
        return int(self._file().metadata.num_rows)

    def columns(self) -> list[str]:
        return list(self._file().schema_arrow.names)

    def fingerprint(self) -> str:
        return file_sha256(self.path)

    def rows(self, start: int, stop: int) -> Iterator[Row | Reject]:
        file, first = self._file(), 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if first < stop and first + rows > start:  # other row groups are not read at all
                batches = file.iter_batches(batch_size=256, row_groups=[group])
                values = (row for batch in batches for row in batch.to_pylist())
                yield from (Row(number, row) for number, row in enumerate(values, first) if start <= number < stop)
            first += rows

    def _file(self) -> Any:
        import pyarrow.parquet

        try:
            return pyarrow.parquet.ParquetFile(self.path)
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{self.path}: not a parquet file: {error}") from None


@dataclass(frozen=True)
class Datasets:
    """A data set of the `datasets` library: a folder of save_to_disk, or an id on the hub (needs the network)."""

    path: str
    split: str

    @property
    def folder(self) -> Path:
        return Path(self.path) if Path(self.path).is_dir() else Path()

    def __len__(self) -> int:
        return len(_open_datasets(self.path, self.split))

    def columns(self) -> list[str]:
        return list(_open_datasets(self.path, self.split).column_names)

    def fingerprint(self) -> str:
        return str(_open_datasets(self.path, self.split)._fingerprint)

    def rows(self, start: int, stop: int) -> Iterator[Row | Reject]:
        data = _open_datasets(self.path, self.split)
        for number in range(start, stop):
            yield Row(number, data[number])


@functools.lru_cache(maxsize=2)
def _open_datasets(path: str, split: str) -> Any:
    import datasets

    try:
        data = datasets.load_from_disk(path) if Path(path).is_dir() else datasets.load_dataset(path, split=split)
    except Exception as error:  # of the hub's client, of many kinds
        near = nearest(path, [entry.name for entry in Path().iterdir()])
        why = f"{type(error).__name__}: {error}"
        raise DataError(f'no folder, table or data set of the hub "{path}" (in {Path.cwd()}){near}\n{why}') from error
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise DataError(f"{path}: no split {split}; it has {', '.join(data)}")
        data = data[split]
    for name, feature in data.features.items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(name, datasets.Image(decode=False))
    return data


def open_table(source: str, *, split: str, quoting: Quoting | None) -> Table:
    """The table that `source` is, by its form: folder, file ending, else an id of `datasets`."""
    refuse_url(source, fault=DataError)
    path = Path(source)
    ending = path.suffix.lower()
    if path.is_dir():
        saved = (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file()
        return Datasets(source, split) if saved else Folder(path)
    if ending in (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet") and not path.is_file():
        raise DataError(f"no file {path} (in {Path.cwd()})")
    if ending == ".csv":
        return Delimited(path, ",", quoting or "minimal")
    if ending == ".tsv":
        return Delimited(path, "\t", quoting or "none")
    if ending in (".jsonl", ".ndjson"):
        return JsonLines(path)
    if ending == ".parquet":
        return Parquet(path)
    if path.exists() or source.startswith((".", "/")):
        raise DataError(f"{source}: not a folder, .csv, .tsv, .jsonl or .parquet, nor an id of `datasets`")
    return Datasets(source, split)
