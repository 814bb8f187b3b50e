"""What stands in the files that settings name: with another content it is another setting."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

FILES = (".json", ".txt")
KEPT = ("*.json", *("*/" * depth + "*.safetensors" for depth in range(4)))  # of a fitted adapter, a model, or a run


def content_hashes(settings: Any) -> dict[str, str]:
    """SHA-256 of every file that settings name, and of the files of every folder of weights, by path."""
    return {str(file): _hash_of(file) for name in _texts(settings) for file in _files(name)}


def _texts(value: Any) -> Iterator[str]:
    """All strings of a settings tree."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def _files(name: str) -> list[Path]:
    """The file itself, or those that a folder of weights holds."""
    if name.endswith(FILES):
        return [Path(name)] if Path(name).is_file() else []
    found = [file for pattern in KEPT for file in sorted(Path(name).glob(pattern))] if Path(name).is_dir() else []
    return found if any(file.suffix == ".safetensors" for file in found) else []


def _hash_of(file: Path) -> str:
    """Of a file that did not change since it was read last, the hash of then: a grid asks for every cell."""
    about = file.stat()
    return _read(file, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=1024)
def _read(file: Path, changed: int, size: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
