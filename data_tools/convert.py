"""One table row to one sample: the picture checked and perhaps scaled, the texts and columns as json."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from data_tools.tables import Row, Table
from data_tools.write import Record, Reject, key_fault
from vlp.data.decode import Limits, decode, read_header
from vlp.types import BadSampleError

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}  # what goes into shards as it is; the rest becomes PNG
QUALITY = 92


class Columns(NamedTuple):
    """Which column is what."""

    image: str
    captions: tuple[str, ...]
    extra: tuple[str, ...]
    label: str
    key: str


@dataclass(frozen=True)
class RowMaker:
    """Fills shards from a table. `classes`: names of labels, or () for numbers; `repeated`: rows with a used key."""

    table: Table
    columns: Columns
    limits: Limits
    size: int | None
    allow_no_caption: bool
    classes: tuple[str, ...]
    repeated: frozenset[int]

    def items(self, start: int, stop: int) -> Iterator[Record | Reject]:
        """One record or reject for every row."""
        for row in self.table.rows(start, stop):
            yield row if isinstance(row, Reject) else self._item(row)

    def _item(self, row: Row) -> Record | Reject:
        key = str(row.values[self.columns.key]) if self.columns.key else f"{row.number:08d}"
        try:
            if row.number in self.repeated:
                raise BadSampleError("dup_key", key)
            if fault := key_fault(key):
                raise BadSampleError("bad_key", f"{key[:100]!r} {fault}")
            return Record(key, self._members(row))
        except BadSampleError as error:
            return Reject(error.reason, str(row.number), error.detail)

    def _members(self, row: Row) -> dict[str, bytes]:
        facts = self._facts(row)
        data = _picture_bytes(row.values.get(self.columns.image), self.table.folder)
        extension, data = prepare_picture(data, self.limits, self.size)
        members = {extension: data}
        if "label" in facts:
            members["cls"] = str(facts["label"]).encode()
        members["json"] = json.dumps(facts, ensure_ascii=False, default=str).encode("utf-8", "replace")
        if "caption" in facts:
            members["txt"] = facts["caption"].encode()
        return members

    def _facts(self, row: Row) -> dict[str, Any]:
        """The json member: caption columns under their names, `caption` the first text, label, and extra columns."""
        texts = {name: _texts(row.values.get(name)) for name in self.columns.captions}
        facts: dict[str, Any] = {name: row.values.get(name) for name in self.columns.extra}
        facts |= {
            name: found if isinstance(row.values.get(name), list) else found[0]
            for name, found in texts.items()
            if found
        }
        everything = [text for found in texts.values() for text in found]
        if everything:
            facts["caption"] = everything[0]
        if self.columns.label:
            facts |= self._label(row)
        elif not everything and not self.allow_no_caption:
            raise BadSampleError("empty_caption", f"nothing under {', '.join(self.columns.captions)}")
        return facts

    def _label(self, row: Row) -> dict[str, Any]:
        value = str(row.values.get(self.columns.label, "")).strip()
        if self.classes and value in self.classes:
            return {"label": self.classes.index(value), "class": value}
        if not self.classes and value.isascii() and value.isdigit():
            return {"label": int(value)}
        raise BadSampleError("no_label", f"{self.columns.label} is {value!r}")


def _texts(value: Any) -> list[str]:
    """The non-empty texts of a cell: a text or a list of texts."""
    items = value if isinstance(value, list) else [value]
    found = []
    for item in items:
        if item is None:
            continue
        text = str(item)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadSampleError("bad_encoding", repr(text[:80])) from None
        if text.strip():
            found.append(text.strip())
    return found


def _picture_bytes(value: Any, folder: Path) -> bytes:
    """Bytes of a cell: bytes, {bytes, path}, or a path from the table's folder."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value.strip():
        raise BadSampleError("no_image", f"the cell holds {value!r}"[:120])
    if "://" in value:
        raise BadSampleError("remote_image", f"{value[:200]}: build does not download; fetch the pictures first")
    try:
        return (folder / value).read_bytes()
    except (OSError, ValueError) as error:
        raise BadSampleError("no_image", f"{value[:200]}: {getattr(error, 'strerror', None) or error}") from None


def prepare_picture(data: bytes, limits: Limits, size: int | None) -> tuple[str, bytes]:
    """Extension and bytes as they go into the shard; decoded once, so that no damaged picture gets in.

    Bytes stay as they are, unless `size` asks for a smaller picture or the format is not JPEG, PNG or WebP.
    """
    header = read_header(data, limits)
    pixels = decode(data, limits)
    small = size is not None and min(header.width, header.height) > size
    if not small and header.format in EXTENSIONS:
        return EXTENSIONS[header.format], data
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    if small and size is not None:
        scale = size / min(image.size)
        sides = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(sides, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if header.format == "PNG" or header.format not in EXTENSIONS:
        image.save(buffer, "PNG")
        return "png", buffer.getvalue()
    image.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return "jpg", buffer.getvalue()
