"""A strict walk over the headers of a tar: every member with its offset and size, and the first damage, if any.

Python's `tarfile` takes a damaged header for the end of the archive and so loses the rest in silence; here every
header's checksum must hold, members must lie inside the file, the end marker must be there and nothing may follow it.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from vlp.data.content import member_tips

BLOCK = 512
_ZEROS = bytes(BLOCK)
_MAX_NAME = 1 << 16  # bytes of a long name or pax header; more is an attack, not a name
_OTHER_KINDS = {b"1": "hard_link", b"2": "symbolic_link", b"3": "device", b"4": "device", b"5": "folder", b"6": "fifo"}


class Member(NamedTuple):
    """One member: `kind` is "file", or what it is instead; offset and size of its data in bytes."""

    name: str
    kind: str
    offset: int
    size: int


class Damage(NamedTuple):
    """The first place where a tar is not what it should be: a reason to count, the byte, and words for people."""

    reason: str
    byte: int
    detail: str


class TarDamageError(ValueError):
    """Raised inside the walk; `damage` has no shard name yet."""

    def __init__(self, reason: str, byte: int, detail: str) -> None:
        super().__init__(detail)
        self.damage = Damage(reason, byte, detail)


def walk(path: str | Path, *, seen: Callable[[bytes], object] | None = None) -> Iterator[Member]:
    """Every member in order; TarDamageError at the first damage, after the members before it.

    `seen` gets every header, and the bytes beside the headers that tell one content from another.
    """
    if Path(path).stat().st_size == 0:
        raise TarDamageError("not_a_tar", 0, "the file is empty")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        _refuse_compressed(data)
        yield from _walk(data, len(data), seen)


def _walk(data: mmap.mmap, total: int, seen: Callable[[bytes], object] | None) -> Iterator[Member]:
    position, name, pax, defaults = 0, "", {}, {}  # type: int, str, dict[str, str], dict[str, str]
    while True:
        header = data[position : position + BLOCK]
        if not header:
            raise TarDamageError(
                "no_end_marker", min(position, total), "the file ends without an end marker: its writer was stopped"
            )
        if len(header) < BLOCK:
            raise TarDamageError("cut_header", position, f"the file ends {len(header)} bytes into a header")
        if header == _ZEROS:
            _check_end(data, position, total)
            return
        _check_header(header, position)
        kind, size = header[156:157], _number(header[124:136], position, "size")
        start = _after_sparse_map(data, position) if kind == b"S" else position + BLOCK
        if kind not in b"xgLK" and "size" in {**defaults, **pax}:
            size = _decimal({**defaults, **pax}["size"], position)
        if kind in b"123456" and kind != b"\0":
            size = 0  # POSIX: these have no data, whatever their size says
        if start + size > total:
            raise TarDamageError(
                "cut_member",
                start,
                f'"{_name_of(header)}" needs {size} bytes, the file has {max(total - start, 0)} left',
            )
        if seen is not None:
            seen(header + b"".join(data[tip] for tip in member_tips(start, size)))
        if kind in b"xgLK":
            if size > _MAX_NAME:
                raise TarDamageError("bad_header", position, f"a name or pax header of {size} bytes")
            body = data[start : start + size]
            if kind == b"L":
                name = body.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif kind == b"x":
                pax = _pax(body, start)
            elif kind == b"g":
                defaults.update(_pax(body, start))
        else:
            known = {**defaults, **pax}
            yield Member(known.get("path") or name or _name_of(header), _kind(kind, known), start, size)
            name, pax = "", {}
        position = start + -(-size // BLOCK) * BLOCK


def _after_sparse_map(data: mmap.mmap, position: int) -> int:
    """Where the data of GNU's sparse member begins: behind the blocks that go on with its map."""
    start, more = position + BLOCK, data[position + 482 : position + 483]
    while more not in (b"", b"\0"):
        start, more = start + BLOCK, data[start + 504 : start + 505]
    return start


def _check_end(data: mmap.mmap, position: int, total: int) -> None:
    """The rest of the file is zeros: a zero block in the middle or a second archive behind is damage."""
    step = 1 << 20
    zeros = bytes(step)
    for start in range(position, total, step):
        chunk = data[start : min(start + step, total)]
        if chunk != zeros[: len(chunk)]:
            byte = start + len(chunk) - len(chunk.lstrip(b"\0"))
            detail = (
                f"an end marker at byte {position}, but data after it: a zero block inside, or two tars in one file, "
                "which `tar --ignore-zeros -x` unpacks"
            )
            raise TarDamageError("data_after_end", byte, detail)


def _check_header(header: bytes, position: int) -> None:
    try:
        stored = _number(header[148:156], position, "checksum")
    except TarDamageError:
        if position:
            raise
        stored = -1  # not a number, so no header at all
    total = sum(header) - sum(header[148:156]) + 8 * 32
    if stored != total and stored != total - 256 * sum(
        byte > 127 for byte in header
    ):  # some old writers sum signed bytes
        what = f"not a tar: starts with {header[:24]!r}" if position == 0 else "a header whose checksum is wrong"
        raise TarDamageError("not_a_tar" if position == 0 else "bad_header", position, what)


def _number(field: bytes, position: int, what: str) -> int:
    """A number of a header: octal digits, or base 256 when the first bit is set."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    try:
        return int(digits or b"0", 8) if not digits.startswith((b"-", b"+")) and b"_" not in digits else int("x")
    except ValueError:
        raise TarDamageError("bad_header", position, f"a header whose {what} is no number: {field!r}") from None


def _decimal(text: str, position: int) -> int:
    if not text.isascii() or not text.isdigit():
        raise TarDamageError("bad_header", position, f"a pax size that is no number: {text[:40]!r}")
    return int(text)


def _pax(body: bytes, position: int) -> dict[str, str]:
    """The `length key=value` records of a pax header."""
    records: dict[str, str] = {}
    start = 0
    while start < len(body) and body[start] != 0:
        space = body.find(b" ", start, start + 12)
        digits = body[start:space] if space > 0 else b""
        length = int(digits) if digits.isdigit() else 0
        record = body[space + 1 : start + length]
        if length <= len(digits) + 1 or start + length > len(body) or not record.endswith(b"\n") or b"=" not in record:
            raise TarDamageError("bad_header", position + start, "a pax header that cannot be read")
        key, _, value = record[:-1].partition(b"=")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        start += length
    return records


def _kind(flag: bytes, pax: dict[str, str]) -> str:
    if flag in (b"0", b"\0", b"7"):
        return "sparse_file" if any(key.startswith("GNU.sparse") for key in pax) else "file"
    return _OTHER_KINDS.get(flag, "sparse_file" if flag == b"S" else "unknown_kind")


def _name_of(header: bytes) -> str:
    """The name in a header, with ustar's prefix before it."""
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0":
        prefix = header[345:500].split(b"\0", 1)[0]
        name = prefix + b"/" + name if prefix else name
    return name.decode("utf-8", "surrogateescape")


def _refuse_compressed(data: mmap.mmap) -> None:
    for magic, what in (
        (b"\x1f\x8b", "gzip"),
        (b"BZh", "bzip2"),
        (b"\xfd7zXZ", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstandard"),
    ):
        if data[: len(magic)] == magic:
            detail = f"{what}-compressed: no sample can be reached without unpacking; decompress it to a plain .tar"
            raise TarDamageError("compressed", 0, detail)
