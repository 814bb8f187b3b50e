"""Numbers stored with the samples, as columns of the batch: features of a teacher, boxes, crops.

DataCompDR (MobileCLIP, arXiv 2311.17049, 3.2) stores for each sample the teacher's features of several augmented
pictures and of several captions. One `group` makes columns take the same of several stored rows, so that the features
belong to the crop; `choose: captions` takes the rows of the captions that were drawn.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from vlp.data.captions import Captions, Drawn
from vlp.data.fields import Fields
from vlp.registry import Part
from vlp.types import BadSampleError

RESERVED = ("views", "negative_text", "negative_mask", "sample")  # columns that are made here, not stored
MAX_BYTES = 64 << 20  # of one array
Array = npt.NDArray[Any]


class Column(Part):
    """One numeric column: `batch.extra[name]` [B, *shape], zeros in slots without a sample.

    field: a `.npy` member ("teacher.npy"), one array of a `.npz` member ("teacher.npz:image"), or a path into the JSON
    ("boxes", "json:a.b") that holds a number or lists of numbers. choose: `all`: what is stored has exactly `shape`;
    `first` or `random`: rows [n, *shape] are stored and one is taken, by the columns of one `group` the same one;
    `captions`: row i belongs to item i of the captions' field, and [B, K, *shape] comes out.

    A sample without it leaves its slot (`no_column`), as does one of another shape, with numbers that the type cannot
    hold or that are not finite (`bad_column`).
    """

    field: str = Field(min_length=1)
    shape: tuple[int, ...] = ()
    dtype: Literal["float32", "float16", "int64", "uint8", "bool"] = "float32"
    choose: Literal["all", "first", "random", "captions"] = "all"
    group: str = ""

    def zeros(self, slots: int) -> Tensor:
        """What stands in a slot without a sample; `slots`: K, captions a picture."""
        shape = (slots, *self.shape) if self.choose == "captions" else self.shape
        return torch.from_numpy(np.zeros(shape, self.dtype))

    def read(self, fields: Fields) -> Array:
        """The array as it is stored, of the type wanted; BadSampleError no_column or bad_column."""
        stored = _stored(self.field, fields)
        inner = stored.shape if self.choose == "all" else stored.shape[1:]
        if inner != self.shape or (self.choose != "all" and (stored.ndim == 0 or not len(stored))):
            wanted = self.shape if self.choose == "all" else ("n", *self.shape)
            raise bad(self.field, f"has shape {_shown(stored.shape)}, {_shown(wanted)} is wanted")
        return _cast(stored, self.dtype, self.field)


def read_columns(
    columns: Mapping[str, Column], fields: Fields, drawn: Drawn, rng: np.random.Generator | None, *, slots: int
) -> dict[str, Tensor]:
    """Every column of one sample; without a generator `random` takes the first row."""
    found: dict[str, Tensor] = {}
    rows: dict[str, tuple[int, int]] = {}  # group -> the row taken, of how many
    for name, column in sorted(columns.items()):
        stored = column.read(fields)
        if column.choose == "captions":
            found[name] = _of_captions(column, stored, drawn, slots)
            continue
        if column.choose == "random":
            group = f"group {column.group}" if column.group else name
            row, of = rows.setdefault(group, (0 if rng is None else int(rng.integers(len(stored))), len(stored)))
            if len(stored) != of:
                raise bad(column.field, f"has {len(stored)} rows, another column of {group} has {of}")
            stored = stored[row]
        elif column.choose == "first":
            stored = stored[0]
        found[name] = torch.from_numpy(np.array(stored))
    return found


def check_columns(columns: Mapping[str, Column], crop: str | None, captions: Captions | None) -> None:
    """ValueError for columns of a source that cannot be served."""
    for name, column in columns.items():
        if name in RESERVED:
            raise ValueError(f'columns.{name}: the batch has a column "{name}" of its own; choose another name')
        if column.group and column.choose != "random":
            raise ValueError(f"columns.{name}: group is for choose: random, not for choose: {column.choose}")
        if column.choose == "captions" and (captions is None or captions.pick not in ("first", "random", "all")):
            raise ValueError(f"columns.{name}: choose: captions needs captions with pick: first, random or all")
        if column.choose == "captions" and captions is not None and len(captions.fields) != 1:
            raise ValueError(
                f"columns.{name}: choose: captions needs captions.fields with the one field whose rows are stored"
            )
    if crop is not None and crop not in columns:
        raise ValueError(f'crop: no column "{crop}"; it names one of columns: {", ".join(columns) or "none"}')
    if crop is not None and (columns[crop].shape != (4,) or columns[crop].choose == "captions"):
        raise ValueError(f"columns.{crop}: crop needs shape [4]: x0, y0, x1, y1 in parts of width and height")


def bad(field: str, detail: str) -> BadSampleError:
    """The error of a column that is there and cannot be used."""
    return BadSampleError("bad_column", f"{field} {detail}")


def _of_captions(column: Column, stored: Array, drawn: Drawn, slots: int) -> Tensor:
    if len(stored) != drawn.of:
        raise bad(column.field, f"has {len(stored)} rows, the captions' field has {drawn.of} texts")
    out = column.zeros(slots)
    chosen = drawn.rows[:slots]
    out[: len(chosen)] = torch.from_numpy(stored[chosen])
    return out


def _stored(field: str, fields: Fields) -> Array:
    member, _, key = field.partition(":")
    if member.endswith((".npy", ".npz")) or member in ("npy", "npz"):
        if member not in fields.members:
            raise BadSampleError("no_column", f"no {member}; members: {', '.join(sorted(fields.members))}")
        raw = fields.members[member]
        return _npz(raw, member, key) if member.endswith("npz") else _npy(raw, member)
    value = fields.in_json(field.removeprefix("json:"))
    if value is None:
        raise BadSampleError("no_column", f"no {field} in the json")
    try:
        array = np.array(value)
    except ValueError as error:  # rows of different lengths
        raise bad(field, f"is no array: {error}") from error
    return _numeric(array, field)


def _npy(raw: bytes, where: str) -> Array:
    """An array of numpy's format; its size is compared with its bytes before memory is taken, and nothing unpickled."""
    stream = io.BytesIO(raw)
    try:
        version = np.lib.format.read_magic(stream)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = header(stream)
    except (ValueError, KeyError, EOFError) as error:
        raise bad(where, f"is no array of numpy: {error}") from error
    start, size = stream.tell(), dtype.itemsize * math.prod(shape)
    if dtype.hasobject or len(raw) - start != size:
        raise bad(where, f"says {dtype} {_shown(shape)}, {size} bytes, and has {len(raw) - start}")
    array = np.frombuffer(raw, dtype, offset=start)
    return _numeric(array.reshape(shape, order="F" if fortran else "C"), where)


def _npz(raw: bytes, member: str, key: str) -> Array:
    where = f"{member}:{key}"
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if key not in names:
                raise BadSampleError("no_column", f"no {where}; arrays: {', '.join(names)}")
            entry = archive.getinfo(f"{key}.npy")
            if entry.file_size > MAX_BYTES:
                raise bad(where, f"has {entry.file_size} bytes, {MAX_BYTES} are allowed")
            return _npy(archive.read(entry), where)
    except (zipfile.BadZipFile, KeyError, EOFError, OSError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise bad(where, f"is no archive of numpy: {error}") from error


def _numeric(array: Array, where: str) -> Array:
    if array.dtype.kind not in "biuf":
        raise bad(where, f"holds {array.dtype}, numbers are wanted")
    return array


def _cast(array: Array, dtype: str, where: str) -> Array:
    """The array in its type, in memory of its own; floats are rounded, whole numbers must be what they were."""
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(dtype)
    if cast.dtype.kind == "f":
        if not np.isfinite(cast).all():
            raise bad(where, f"holds numbers that are not finite in {dtype}")
    elif not np.array_equal(cast, array):
        raise bad(where, f"holds {array.dtype} numbers that {dtype} cannot hold")
    return cast


def _shown(shape: tuple[Any, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
