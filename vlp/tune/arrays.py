"""Arrays of an .npz file, checked before anything is computed with them."""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlp.registry import nearest
from vlp.text.templates import checked_names

A = TypeVar("A")
_DAMAGED = (OSError, EOFError, LookupError, RuntimeError, zipfile.BadZipFile, zlib.error)  # NotImplementedError too
_HEADER = 1 << 16  # bytes at the beginning of an array that its header lies in
_ROWS = 65536  # rows in fp64 at once
_FREE, _RATIO = 64 << 20, 20  # bytes that an array may have in any case, and how many for one that is stored


class Header(NamedTuple):
    """Shape and type of an array that is not read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class _CodeError(ValueError):
    """An array that only pickle could read."""


def _header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Header:
    """What the header of an array says, held against what is there."""
    if entry.file_size > max(_FREE, _RATIO * entry.compress_size):
        raise ValueError(f"{entry.compress_size} bytes that unpack to {entry.file_size}; save it with np.savez")
    with archive.open(entry) as stream:
        begin = io.BytesIO(stream.read(_HEADER))
    version = np.lib.format.read_magic(begin)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"an array of version {version}")
    shape, _, dtype = readers[version](begin)
    if dtype.hasobject:
        raise _CodeError("dtype object")
    size = dtype.itemsize * math.prod(shape)
    if begin.tell() + size != entry.file_size:
        raise ValueError(f"says {dtype} {list(shape)}, {size} bytes, and has {entry.file_size - begin.tell()}")
    return Header(shape, dtype)


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray[Any, Any]:
    """One array; its header is checked before memory is taken. Nothing is unpickled."""
    _header(archive, entry)
    with archive.open(entry) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)  # type: ignore[no-any-return]


class Arrays:
    """One .npz file: arrays by name, read when they are asked for; every ValueError names the file and the array."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            near = nearest(path.name, [p.name for p in path.parent.glob("*.npz")]) if path.parent.is_dir() else ""
            raise ValueError(f"no file {path} (in {Path.cwd()}){near}")
        try:
            with path.open("rb") as file:
                if file.read(6) == np.lib.format.MAGIC_PREFIX:
                    raise ValueError("it holds a single array")
            with zipfile.ZipFile(path) as archive:
                self.names = tuple(name.removesuffix(".npy") for name in archive.namelist())
        except (ValueError, *_DAMAGED) as error:
            raise ValueError(f"{path}: not an .npz file ({error}); write it with np.savez") from None

    @property
    def hash(self) -> str:
        """16 hex digits of the file's content."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]

    def fault(self, name: str, said: str) -> NoReturn:
        """ValueError with file and array in front."""
        raise ValueError(f"{self.path}: {name}: {said}")

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """The array as it was saved."""
        return self._open(name, _read)

    def _open(self, name: str, read: Callable[[zipfile.ZipFile, zipfile.ZipInfo], A]) -> A:
        if name not in self.names:
            self.fault(name, f"no such array{nearest(name, self.names)}")
        try:
            with zipfile.ZipFile(self.path) as archive:
                return read(archive, archive.getinfo(f"{name}.npy"))
        except _CodeError:
            remedy = "save words as np.array(words, dtype=str) and numbers as numbers"
            self.fault(name, f"has dtype object, which would run code when it is read; {remedy}")
        except (ValueError, *_DAMAGED) as error:
            self.fault(name, f"damaged ({error}); write the file again")

    def features(self, name: str, *, ndim: Sequence[int], wanted: str) -> Float[Tensor, "..."]:
        """fp32 of unit norm along the last dimension; a row without direction, or of no numbers, is refused."""
        found = self.array(name)
        if found.dtype.kind != "f" or found.ndim not in ndim or 0 in found.shape:
            self.fault(name, f"{found.dtype} of shape {list(found.shape)}; wanted floats of shape {wanted}")
        peak = np.abs(found).max(axis=-1)
        for bad, said in ((~np.isfinite(peak), "not finite numbers"), (peak == 0, "zero, which has no direction")):
            if bad.any():
                first = np.argwhere(bad)[0].tolist()
                self.fault(name, f"{int(bad.sum())} of {bad.size} rows are {said}, first {first}; leave them out")
        unit = torch.empty(found.shape)
        for start in range(0, len(found), _ROWS):
            part = slice(start, start + _ROWS)
            rows = found[part].astype(np.float64) / peak[part, ..., None]  # whose squares neither vanish nor overflow
            unit[part] = torch.from_numpy(rows / np.linalg.norm(rows, axis=-1, keepdims=True))
        return unit

    def labels(self, name: str, *, count: int, classes: int, least: int = 0) -> Int[Tensor, "n"]:
        """Class of each picture, not below `least`."""
        self.check_labels(name, count=count)
        found = self.array(name)
        outside = np.flatnonzero((found < least) | (found >= classes))
        if len(outside):
            where = f"row {outside[0]} has {found[outside[0]]} (and {len(outside) - 1} more rows)"
            self.fault(name, f"{where}, but classes.npz has {classes} classes, so labels are {least} to {classes - 1}")
        return torch.from_numpy(found.astype(np.int64))

    def check_labels(self, name: str, *, count: int) -> None:
        """ValueError unless there is an integer for each picture; none of them is read."""
        shape, dtype = self._open(name, _header)
        if dtype.kind not in "iu" or shape != (count,):
            self.fault(name, f"{dtype} of shape {list(shape)}; wanted integers of shape [{count}], one a row")

    def words(self, name: str) -> tuple[str, ...]:
        """Texts, one a row."""
        found = self.array(name)
        if found.dtype.kind not in "US" or found.ndim > 1:
            self.fault(name, f"{found.dtype} of shape {list(found.shape)}; wanted texts, np.array(words, dtype=str)")
        words = np.atleast_1d(found).tolist()
        try:
            return tuple(word.decode() if isinstance(word, bytes) else str(word) for word in words)
        except UnicodeDecodeError as error:
            self.fault(name, f"bytes {error.object!r:.40} are not UTF-8; save texts as np.array(words, dtype=str)")

    def keys(self, name: str, *, count: int) -> tuple[str, ...]:
        """What each picture is called, none twice."""
        found = self.array(name)
        words = tuple(map(str, found.tolist())) if found.dtype.kind in "iu" and found.ndim == 1 else self.words(name)
        if len(words) != count:
            self.fault(name, f"{len(words)} keys for {count} pictures")
        if len(set(words)) < count:
            twice = Counter(words).most_common(1)[0][0]
            self.fault(name, f'several pictures are called "{twice}"; draws need keys that differ')
        return words

    def class_names(self, name: str) -> tuple[str, ...]:
        """Names in label order."""
        return checked_names(self.words(name), where=f"{self.path}: {name}")

    def number(self, name: str) -> float:
        """A positive number."""
        found = self.array(name)
        if found.dtype.kind not in "fiu" or found.size != 1 or not 0 < float(found.reshape(())) < float("inf"):
            self.fault(name, f"{found.tolist()!r:.40}; wanted one number above 0, what cosines are multiplied by")
        return float(found.reshape(()))
