"""Room on a disk: how much there is, and whether a write failed for want of it."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_full(error: BaseException) -> bool:
    """Whether a write failed for want of room: no space, a quota, a limit on the size of files."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    return any(f"os error {number})" in str(error) for number in FULL)  # safetensors says it in words only


def nearest_there(path: Path) -> Path:
    """The path itself, or the nearest of the folders above it that is there."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def free(path: Path) -> int:
    """Bytes that this process may still write where `path` is or will be; quotas are not seen."""
    return shutil.disk_usage(nearest_there(path)).free


def in_bytes(number: int) -> str:
    return f"{number} bytes ({number / 2**20:.1f} MiB)"
