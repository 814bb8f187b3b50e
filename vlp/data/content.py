"""Cheap words for what files hold that change when the files do: for fingerprints, and to tell a fresh index."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

_ENDS = 1 << 16
_WHOLE = 4096  # members up to this size are hashed whole: their bytes lie on the pages of the headers beside them
_TIPS = 64


def ends(path: str | Path) -> str:
    """Hex hash of a file's size and of its first and last 64 KiB: two reads, however large it is."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        first = file.read(_ENDS)
        file.seek(max(size - _ENDS, 0))
        return hashlib.sha256(b"%d\n" % size + first + file.read(_ENDS)).hexdigest()


def member_tips(start: int, size: int) -> tuple[slice, ...]:
    """Where in a tar the bytes that stand for a member lie."""
    if size <= _WHOLE:
        return (slice(start, start + size),)
    return slice(start, start + _TIPS), slice(start + size - _TIPS, start + size)


def stamps(root: Path, names: Iterable[str]) -> tuple[int, str]:
    """Bytes of all files together, and a hex hash of each one's name, size and time of change; absent ones count too.

    It follows a file that is overwritten by one of equal size, and does not survive a copy that sets new times.
    """
    digest, total = hashlib.sha256(), 0
    for name in names:
        try:
            stat = os.stat(os.path.join(root, name))
        except (OSError, ValueError):  # a name that no file can have is as absent as a file that is not there
            mark = "absent"
        else:
            total += stat.st_size
            mark = f"{stat.st_size} {stat.st_mtime_ns}"
        digest.update(f"{name}\0{mark}\n".encode("utf-8", "surrogateescape"))
    return total, digest.hexdigest()
