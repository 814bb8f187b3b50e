"""Files that somebody else made, read so that nothing in them runs and nothing in them takes the machine's memory.

Every fault is a ValueError that names the file. No reader here knows pickle.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

MAX_TEXT = 64 << 20  # bytes of a text or JSON file; settings and lists of names are far smaller
MAX_HEADER = 16 << 20  # bytes of the header of safetensors: 100,000 tensors need about 10 MB


def read_bytes(path: Path, *, max_bytes: int = MAX_TEXT) -> bytes:
    """The bytes of a file of at most `max_bytes`; its size is looked at before it is read."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1) if size <= max_bytes else b""
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    if max(size, len(raw)) > max_bytes:
        raise ValueError(f"{path}: {max(size, len(raw))} bytes; of a file of this kind at most {max_bytes} are read")
    return raw


def read_text(path: Path, *, max_bytes: int = MAX_TEXT) -> str:
    """The UTF-8 text of a file of at most `max_bytes`."""
    raw = read_bytes(path, max_bytes=max_bytes)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: byte {error.start} is {raw[error.start : error.start + 1]!r}") from None


def parse_json(text: str | bytes, *, where: str) -> Any:
    """The value of a JSON text; what is nested too deep for Python is a fault like any other."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{where}: JSON nested too deep to be read") from None
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}") from None


def read_json(path: Path) -> Any:
    """The value in a JSON file."""
    return parse_json(read_text(path), where=str(path))


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds a {type(value).__name__}, not an object")
    return value


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Name to tensor of a safetensors file, on the CPU; the length of its header is checked before it is parsed."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if size < 8 or header > size - 8:
            raise ValueError(f"{path}: not safetensors, or cut: a header of {header} bytes in a file of {size}")
        if header > MAX_HEADER:
            raise ValueError(f"{path}: a safetensors header of {header} bytes; {MAX_HEADER} are read")
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from error
