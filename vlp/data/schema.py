"""`dataset.json`: what lies in a folder of shards, as pydantic models; read strictly, written atomically."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

MANIFEST = "dataset.json"
SCHEMA = 1


class DataError(ValueError):
    """Data that cannot be used as asked: names the file, what was found, and what to do next."""


class ShardEntry(BaseModel):
    """One shard: file names are relative to the folder of `dataset.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    samples: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    index: str | None = None  # the side index, `<file>.index` when there is one

    @field_validator("file")
    @classmethod
    def _in_the_folder(cls, file: str) -> str:
        """A name that leads elsewhere would have other files read, and indexes written beside them."""
        if file in ("", ".", "..") or any(letter in file for letter in "/\\\0:"):
            raise ValueError(f"{file!r} is no plain name of a file in this folder")
        return file


class DatasetManifest(BaseModel):
    """The content of `dataset.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: Literal[1] = Field(default=1, alias="schema")
    name: str
    shards: tuple[ShardEntry, ...]
    fields: tuple[str, ...] = ()  # names of json fields and member extensions that samples have
    made_by: dict[str, Any] = Field(default_factory=dict)  # tool, version, settings: enough to make it again

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    def by_file(self) -> dict[str, ShardEntry]:
        """Entries by file name."""
        return {shard.file: shard for shard in self.shards}

    def to_json(self) -> str:
        """The text of the file: sorted nowhere, so equal inputs give equal bytes."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), ensure_ascii=False, indent=1) + "\n"


def parse_manifest(text: str | bytes, *, where: str) -> DatasetManifest:
    """The manifest in `text`; DataError naming `where` and the fields at fault."""
    try:
        return DatasetManifest.model_validate_json(text)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or '(top)'}: {item['msg']}" for item in error.errors()[:5]
        )
        raise DataError(
            f"{where}: not a manifest of schema {SCHEMA}: {faults}; write it again with `vlp data index`"
        ) from None


def read_manifest(folder: str | Path) -> DatasetManifest | None:
    """The manifest of a folder, or None if the folder has no `dataset.json`."""
    path = Path(folder) / MANIFEST
    return parse_manifest(path.read_bytes(), where=str(path)) if path.is_file() else None


def write_manifest(folder: str | Path, manifest: DatasetManifest) -> Path:
    """Writes `dataset.json` atomically and returns its path."""
    path = Path(folder) / MANIFEST
    write_atomic(path, manifest.to_json().encode())
    return path


def shard_entry(path: str | Path, *, samples: int, index: bool = True) -> ShardEntry:
    """The entry of a shard on disk, its sha256 computed; `index` says that `<file>.index` lies beside it."""
    path = Path(path)
    return ShardEntry(
        file=path.name,
        samples=samples,
        bytes=path.stat().st_size,
        sha256=file_sha256(path),
        index=f"{path.name}.index" if index else None,
    )


def file_sha256(path: str | Path) -> str:
    """Hex sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: str | Path, content: bytes | Iterable[bytes]) -> None:
    """`content` under `path`, whole or not at all: temporary file in the same folder, fsync, rename."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            for chunk in [content] if isinstance(content, bytes) else content:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
