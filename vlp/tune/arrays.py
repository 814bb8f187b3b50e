"""Arrays of an .npz file, checked before anything is computed with them."""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from vlp.registry import nearest
from vlp.text.templates import checked_names

_DAMAGED = (OSError, EOFError, LookupError, RuntimeError, zipfile.BadZipFile, zlib.error)  # NotImplementedError too
_HEADER = 1 << 16  # bytes at the beginning of an array that its header lies in
_FREE, _RATIO = 64 << 20, 20  # bytes that an array may have in any case, and how many for one that is stored


class _CodeError(ValueError):
    """An array that only pickle could read."""


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray[Any, Any]:
    """One array; what its header says is held against what is there before memory is taken. Nothing is unpickled."""
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
        if name not in self.names:
            self.fault(name, f"no such array{nearest(name, self.names)}")
        try:
            with zipfile.ZipFile(self.path) as archive:
                return _read(archive, archive.getinfo(f"{name}.npy"))
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
        kind = np.float64 if found.dtype.itemsize > 4 else np.float32
        rows = torch.from_numpy(np.ascontiguousarray(found, dtype=kind))
        norm = torch.linalg.vector_norm(rows, dim=-1)
        for bad, said in ((~norm.isfinite(), "not finite numbers"), (norm == 0, "zero, which has no direction")):
            if bad.any():
                first = bad.nonzero()[0].tolist()
                self.fault(name, f"{int(bad.sum())} of {bad.numel()} rows are {said}, first {first}; leave them out")
        return normalize(rows, dim=-1).float()

    def labels(self, name: str, *, count: int, classes: int, least: int = 0) -> Int[Tensor, "n"]:
        """Class of each picture, not below `least`."""
        found = self.array(name)
        if found.dtype.kind not in "iu" or found.shape != (count,):
            self.fault(
                name, f"{found.dtype} of shape {list(found.shape)}; wanted integers of shape [{count}], one a row"
            )
        outside = np.flatnonzero((found < least) | (found >= classes))
        if len(outside):
            where = f"row {outside[0]} has {found[outside[0]]} (and {len(outside) - 1} more rows)"
            self.fault(name, f"{where}, but classes.npz has {classes} classes, so labels are {least} to {classes - 1}")
        return torch.from_numpy(found.astype(np.int64))

    def words(self, name: str) -> tuple[str, ...]:
        """Texts, one a row."""
        found = self.array(name)
        if found.dtype.kind not in "US" or found.ndim > 1:
            self.fault(name, f"{found.dtype} of shape {list(found.shape)}; wanted texts, np.array(words, dtype=str)")
        return tuple(word.decode() if isinstance(word, bytes) else str(word) for word in np.atleast_1d(found).tolist())

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
