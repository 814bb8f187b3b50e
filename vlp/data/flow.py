"""The members of a tar in the order they come, from a path, a url, or a pipe that was allowed; each of bounded size.

webdataset's own opening runs `curl` for urls, follows any redirect, unpacks any compression and reads a member of any
size into memory. Here nothing runs but the command of a `pipe:` that was allowed.
"""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Iterator
from typing import Any, Protocol

from vlp.data import http
from vlp.data.http import Web
from vlp.data.urls import checked, is_pipe, remote_fs, scheme

_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_MAX_NAME = 1 << 16  # bytes of a long name or pax header, which tarfile reads whole
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}


class Stream(Protocol):
    """What gives bytes."""

    def read(self, size: int, /) -> bytes: ...

    def close(self) -> None: ...


def opened(url: str, web: Web, *, allow_pipe: bool) -> Stream:
    """What is behind the url; DataError for a scheme that is not read, and for pipes unless they are allowed."""
    if is_pipe(url) and allow_pipe:
        from webdataset.gopen import gopen

        piped: Stream = sys.stdin.buffer if url.strip() == "-" else gopen(url.strip())
        return piped
    kind = scheme(checked(url))
    if kind == "file":
        return open(url.partition("://")[2] or url, "rb")
    if kind in ("http", "https"):
        return _Pieces(http.content(url, web))
    fs, path = remote_fs(url)
    stored: Stream = fs.open(path, "rb")
    return stored


def files(stream: Stream, *, max_bytes: int, allow_packed: bool) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each plain file of a tar; tarfile.TarError where it is none, packed, or holds too large a one.

    Links, devices and members called __so__ are passed over.
    """
    first = stream.read(len(max(_PACKED, key=len)))
    for magic, name in _PACKED.items():
        if first.startswith(magic) and not allow_packed:
            raise tarfile.ReadError(
                f"{name}-compressed: a small file may unpack to any size; set allow_packed: true if you trust it"
            )
    bounded = type("Bounded", (_Bounded,), {"max_bytes": max_bytes})
    with tarfile.open(fileobj=_Begun(first, stream), mode="r|*" if allow_packed else "r|", tarinfo=bounded) as tar:  # type: ignore[call-overload]
        for member in tar:
            tar.members = []  # else every header is kept
            if member.isreg() and not member.name.rpartition("/")[2].startswith("__"):
                if not 0 <= member.size <= max_bytes:  # a pax header or a sparse map may say another size
                    raise _too_large(member, max_bytes)
                data = tar.extractfile(member)
                assert data is not None, "a regular file has bytes"
                yield member.name, data.read()


class _Bounded(tarfile.TarInfo):
    """A header whose size is looked at before tarfile takes memory for what follows it."""

    max_bytes = 0

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> Any:
        info = super().frombuf(buf, encoding, errors)
        limit = _MAX_NAME if info.type in _NAMES else cls.max_bytes
        if info.size > limit:
            raise _too_large(info, limit)
        return info


def _too_large(member: tarfile.TarInfo, limit: int) -> tarfile.ReadError:
    return tarfile.ReadError(f'"{member.name}" says {member.size} bytes, {limit} are read (max_member_mb)')


class _Begun:
    """A stream whose first bytes were looked at."""

    def __init__(self, first: bytes, stream: Stream) -> None:
        self.first, self.stream = first, stream

    def read(self, size: int) -> bytes:
        first, self.first = self.first[:size], self.first[size:]
        return first or self.stream.read(size)

    def close(self) -> None:
        self.stream.close()


class _Pieces:
    """Pieces of bytes as a stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.pieces, self.held = pieces, b""

    def read(self, size: int) -> bytes:
        if not self.held:
            self.held = next(self.pieces, b"")
        part, self.held = self.held[:size], self.held[size:]
        return part

    def close(self) -> None:
        self.held = b""
        if hasattr(self.pieces, "close"):
            self.pieces.close()
