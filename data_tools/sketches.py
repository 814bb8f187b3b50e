"""The sketches of a shard as a parquet file, named by what the shard holds: made once, read by every later check."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from data_tools.hashes import COLOUR_SIDE, SIDE, Sketch, hashed, sketch, whole_hashes
from data_tools.shards import open_index, samples
from data_tools.texts import CAPTION_FIELDS, captions_of, fingerprint
from data_tools.write import digest_of
from vlp.data.decode import Limits
from vlp.data.fields import image_bytes
from vlp.data.index import ShardIndex
from vlp.data.schema import write_atomic
from vlp.types import BadSampleError, Sample

VERSION = 1  # raise it when the same picture gives another sketch
_EMPTY = Sketch(b"", b"", 0, 0, np.zeros((SIDE, SIDE), np.uint8), np.zeros((2, COLOUR_SIDE, COLOUR_SIDE), np.uint8))
_COLUMNS = ("key", "reason", "detail", "bytes_sha256", "pixels_sha256", "width", "height", "luma", "colour", "captions")
_BINARY = ("bytes_sha256", "pixels_sha256", "luma", "colour")


class Reading(NamedTuple):
    """How a shard is read: what the sketches depend on beside its content."""

    limits: Limits = Limits()
    captions: tuple[str, ...] = CAPTION_FIELDS


class Sketches(NamedTuple):
    """The samples of a shard in order; those whose picture could not be read have a reason and a sketch of zeros."""

    keys: list[str]
    reasons: list[str]  # empty: the picture was read
    details: list[str]
    bytes_sha256: list[bytes]
    pixels_sha256: list[bytes]
    luma: npt.NDArray[np.uint8]  # [n, 64, 64]
    colour: npt.NDArray[np.uint8]  # [n, 2, 16, 16]
    caption: npt.NDArray[np.uint64]  # fingerprints of all captions
    caption_row: npt.NDArray[np.int64]  # whose they are

    def __len__(self) -> int:
        return len(self.keys)

    def readable(self) -> npt.NDArray[np.bool_]:
        """[n]: which pictures were read."""
        return np.array([not reason for reason in self.reasons], dtype=bool)

    def hashed(self) -> npt.NDArray[np.bool_]:
        """[n]: which of them have a perceptual hash; the others are read but nearly of one colour."""
        return hashed(whole_hashes(self.luma)) & self.readable()

    def skips(self) -> dict[str, int]:
        """Reason -> number of samples whose picture could not be read."""
        return dict(Counter(reason for reason in self.reasons if reason))


def sketches_of(shard: Path, *, cache: Path, reading: Reading) -> Sketches:
    """The sketches of a shard, from `cache` where they lie there already; DataError if the tar is damaged."""
    built = open_index(shard)
    path = cache / f"{_name(built, reading)}.parquet"
    known = _read(path)
    if known is None:
        table = _table(shard, built, reading)
        cache.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        write_atomic(path, buffer.getvalue())
        known = _unpacked(table)
    return known


def joined(parts: Sequence[Sketches]) -> Sketches:
    """Sketches of several shards one after another."""
    starts = np.cumsum([0, *map(len, parts)])
    rows = [part.caption_row + start for part, start in zip(parts, starts)]
    columns: dict[str, Any] = {}
    for name in Sketches._fields:
        values = [getattr(part, name) for part in parts]
        columns[name] = (
            [item for value in values for item in value] if isinstance(values[0], list) else np.concatenate(values)
        )
    return Sketches(**columns | {"caption_row": np.concatenate(rows)})


def _name(built: ShardIndex, reading: Reading) -> str:
    settings = {"limits": reading.limits.model_dump(mode="json"), "captions": reading.captions}
    return digest_of({"version": VERSION, "content": built.content, "key_split": built.key_split, **settings})[:32]


def _table(shard: Path, built: ShardIndex, reading: Reading) -> Any:
    rows: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    for number, raw in enumerate(samples(shard, built=built)):
        key, reason, detail, found = raw.key.encode("utf-8", "replace").decode(), "", "", _EMPTY
        try:
            if key != raw.key:
                raise BadSampleError("bad_key", f"{raw.key!r} is not UTF-8: no keep-list can hold it")
            found = sketch(image_bytes(Sample(raw.key, raw.members, shard.name, number)), reading.limits)
        except BadSampleError as error:
            reason, detail = error.reason, error.detail
        planes = {"luma": found.luma.tobytes(), "colour": found.colour.tobytes()}
        marks = sorted({fingerprint(text) for text in captions_of(raw.members, reading.captions)})
        row = {"key": key, "reason": reason, "detail": detail, **found._asdict(), **planes}
        for name, value in (row | {"captions": marks}).items():
            rows[name].append(value)
    types = {"width": pa.int32(), "height": pa.int32(), "captions": pa.list_(pa.uint64())}
    types |= dict.fromkeys(_BINARY, pa.binary())
    return pa.table({name: pa.array(rows[name], types.get(name, pa.string())) for name in _COLUMNS})


def _read(path: Path) -> Sketches | None:
    """None if there is no such file, or one that is damaged: it is made again."""
    if not path.is_file():
        return None
    try:
        return _unpacked(pq.read_table(path))
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None


def _unpacked(table: Any) -> Sketches:
    captions = table["captions"].to_pylist()
    return Sketches(
        keys=table["key"].to_pylist(),
        reasons=table["reason"].to_pylist(),
        details=table["detail"].to_pylist(),
        bytes_sha256=table["bytes_sha256"].to_pylist(),
        pixels_sha256=table["pixels_sha256"].to_pylist(),
        luma=_planes(table["luma"], SIDE, SIDE),
        colour=_planes(table["colour"], 2, COLOUR_SIDE, COLOUR_SIDE),
        caption=np.array([mark for marks in captions for mark in marks], dtype=np.uint64),
        caption_row=np.repeat(np.arange(len(captions)), [len(marks) for marks in captions]),
    )


def _planes(column: Any, *shape: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(b"".join(column.to_pylist()), dtype=np.uint8).reshape(-1, *shape)
