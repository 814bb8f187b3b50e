"""Shards out: a deterministic tar writer, and the plan that writes many shards in parallel, killed and resumed at will.

A shard is a pure function of its settings and its range of inputs. It is written to a temporary file, flushed to disk,
renamed, indexed; then its row (settings digest, sha256, counts, skips) is written under `.rows`. A row whose digest and
sha256 fit is kept on the next run; everything else is made again, with identical bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from data_tools.texts import parse_json
from vlp.data import index as shard_index
from vlp.data.schema import DataError, ShardEntry, shard_entry, write_atomic

_BLOCK = 512
_RECORD = 20 * _BLOCK


class Record(NamedTuple):
    """One sample to write: member extension -> bytes, the picture first."""

    key: str
    members: Mapping[str, bytes]


class Reject(NamedTuple):
    """One input that became no sample, and why: a line of skips.jsonl."""

    reason: str
    key: str
    detail: str = ""


class ShardWriter:
    """Writes one shard: same records, same bytes. Nothing appears under `path` before `close` (or leaving `with`)."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.samples = 0
        self._keys: set[str] = set()
        self._temporary = self.path.with_name(f".{self.path.name}.tmp")
        self._file: io.BufferedWriter | None = open(self._temporary, "wb")  # noqa: SIM115  (closed by close or abort)

    def write(self, record: Record) -> None:
        """Appends one sample; its members lie side by side."""
        assert self._file is not None, "the writer is closed"
        if fault := key_fault(record.key):
            raise DataError(f'{self.path}: key "{record.key}" {fault}')
        if record.key in self._keys:
            raise DataError(f'{self.path}: key "{record.key}" comes twice')
        if not record.members:
            raise DataError(f'{self.path}: key "{record.key}" has no members')
        self._keys.add(record.key)
        for extension, content in record.members.items():
            self._file.write(_header(f"{record.key}.{extension}", len(content)))
            self._file.write(content)
            self._file.write(bytes(-len(content) % _BLOCK))
        self.samples += 1

    def close(self) -> ShardEntry:
        """Ends the tar, puts it in place with its side index, and returns its manifest entry."""
        assert self._file is not None, "the writer is closed"
        self._file.write(bytes(2 * _BLOCK))
        self._file.write(bytes(-self._file.tell() % _RECORD))  # as GNU tar and tarfile pad
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        shard_index.index_path(self.path).unlink(missing_ok=True)  # an old index must never lie beside a new shard
        os.replace(self._temporary, self.path)
        shard_index.write(self.path, shard_index.build(self.path))
        return shard_entry(self.path, samples=self.samples)

    def abort(self) -> None:
        """Drops what was written; the path is as it was before."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()
        elif self._file is not None:
            self.close()


def key_fault(key: str) -> str | None:
    """What is wrong with a key as the name of a sample, or None: keys hold no dots, no folders, nothing invisible."""
    if not key or len(key.encode("utf-8", "surrogateescape")) > 80:
        return "is empty or longer than 80 bytes"
    if any(char in key for char in "./\\") or key.startswith("__") or not key.isprintable():
        return "has a dot, a slash, a backslash or a control character, or starts with __"
    return None


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape")


class Row(NamedTuple):
    """What is known of one finished shard: its row under `.rows`."""

    digest: str
    start: int
    stop: int
    entry: ShardEntry
    fields: list[str]
    skips: list[Reject]

    def to_json(self) -> bytes:
        value = self._asdict() | {"entry": self.entry.model_dump(mode="json")}
        return (json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def row_path(shard: Path) -> Path:
    """Where the row of a shard lies."""
    return shard.parent / ".rows" / f"{shard.name}.json"


def read_row(shard: Path, digest: str) -> Row | None:
    """The row of a finished shard with this digest whose bytes are still what was written, else None."""
    try:
        value = json.loads(row_path(shard).read_bytes().decode("utf-8", "surrogatepass"))
        row = Row(**value)._replace(
            entry=ShardEntry.model_validate(value["entry"]), skips=[Reject(*skip) for skip in value["skips"]]
        )
    except (OSError, ValueError, TypeError):
        return None
    if row.digest != digest or not shard.is_file() or shard.stat().st_size != row.entry.bytes:
        return None
    if shard_entry(shard, samples=row.entry.samples).sha256 != row.entry.sha256:
        return None
    if shard_index.fresh(shard) is None:  # gone, or of an older version
        shard_index.write(shard, shard_index.build(shard))
    return row


def write_shard(shard: Path, items: Iterable[Record | Reject], *, digest: str, start: int, stop: int) -> Row:
    """One shard and its row from the items of its range; every item is written or is a counted skip."""
    _sweep(shard)
    skips: list[Reject] = []
    fields: set[str] = set()
    with ShardWriter(shard) as writer:
        for record in _records(items, skips):
            writer.write(record)
            fields |= record.members.keys() | _json_fields(record)
        entry = writer.close()
    if entry.samples + len(skips) != stop - start:
        raise DataError(f"{shard}: {stop - start} inputs gave {entry.samples} samples and {len(skips)} skips")
    row = Row(digest, start, stop, entry, sorted(fields), skips)
    row_path(shard).parent.mkdir(exist_ok=True)
    write_atomic(row_path(shard), row.to_json())
    return row


def _sweep(shard: Path) -> None:
    """Remove what a killed writer of this shard left half written."""
    for place in (shard, row_path(shard)):
        for leftover in place.parent.glob(f".{place.name}.*tmp"):
            leftover.unlink(missing_ok=True)


def _records(items: Iterable[Record | Reject], skips: list[Reject]) -> Iterator[Record]:
    for item in items:
        if isinstance(item, Reject):
            skips.append(item)
        else:
            yield item


def _json_fields(record: Record) -> set[str]:
    return {f"json.{name}" for name in parse_json(record.members)}


def digest_of(value: object) -> str:
    """Hex sha256 of a plain value, the same for equal values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
