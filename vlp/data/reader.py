"""Bytes of members by offset, one `pread` a sample, with a small cache of open files for each process."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path

from vlp.data.index import Place
from vlp.types import BadSampleError

_MAX_OPEN = 64
_GAP = 4096  # bytes between two members that are read along rather than seeked over
MAX_MEMBER = 256 << 20  # bytes; a larger member is not read: it would fill the memory of every worker
_generation = 0  # of forks: cheaper to compare than the process id


def _forked() -> None:
    global _generation
    _generation += 1


os.register_at_fork(after_in_child=_forked)


class MemberReader:
    """Reads members of tars. Safe to fork and to pickle: file handles are opened anew in every process."""

    def __init__(self) -> None:
        self._generation = _generation
        self._files: OrderedDict[str, int] = OrderedDict()

    def read(
        self, path: str | Path, places: Mapping[str, Place], only: Collection[str] | None = None
    ) -> dict[str, bytes]:
        """Extension -> bytes of the members at `places`; BadSampleError "unreadable" if the file is shorter or gone."""
        wanted = {name: place for name, place in places.items() if only is None or name in only}
        if not wanted:
            return {}
        large = next((name for name, place in wanted.items() if place.size > MAX_MEMBER), None)
        if large is not None:
            raise BadSampleError("member_bytes", f"{large}: {wanted[large].size} bytes, at most {MAX_MEMBER} are read")
        start = min(place.offset for place in wanted.values())
        stop = max(place.offset + place.size for place in wanted.values())
        try:
            handle = self._open(str(path))
            if stop - start > sum(place.size for place in wanted.values()) + _GAP * len(wanted):
                return {name: _exactly(handle, place.size, place.offset) for name, place in wanted.items()}
            span = _exactly(handle, stop - start, start)
        except OSError as error:
            raise BadSampleError("unreadable", f"{path}: {error}") from error
        return {name: span[place.offset - start : place.offset - start + place.size] for name, place in wanted.items()}

    def close(self) -> None:
        """Closes this process's handles."""
        if self._generation == _generation:
            for handle in self._files.values():
                os.close(handle)
        self._files.clear()

    def _open(self, path: str) -> int:
        if self._generation != _generation:  # forked: the parent's handles stay the parent's
            self._generation, self._files = _generation, OrderedDict()
        if path in self._files:
            self._files.move_to_end(path)
            return self._files[path]
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | os.O_CLOEXEC)
        self._files[path] = handle
        if len(self._files) > _MAX_OPEN:
            os.close(self._files.popitem(last=False)[1])
        return handle

    def __getstate__(self) -> dict[str, object]:
        return {}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__()  # type: ignore[misc]

    def __del__(self) -> None:
        self.close()


def _exactly(handle: int, size: int, offset: int) -> bytes:
    """`size` bytes from `offset`; OSError if the file ends before."""
    parts, got = [], 0
    while got < size:
        part = os.pread(handle, size - got, offset + got)
        if not part:
            raise OSError(f"ends at byte {offset + got}, {size - got} bytes short")
        parts.append(part)
        got += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
