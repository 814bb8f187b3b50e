"""Ways to damage tars and samples, each under the number of its row in docs/faults.md."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

from tests.shards import picture
from vlp.data.tarwalk import BLOCK

Patch = Callable[[bytes, list[int]], bytes]  # bytes of a tar, where its headers start -> its bytes damaged


class TarFault(NamedTuple):
    """Damage to a tar of 20 samples of 2 members, about at member 20, which is the first of sample 10."""

    row: int
    name: str
    damage: Patch
    reason: str  # empty: it only looks like damage
    readable: int
    format: int = tarfile.USTAR_FORMAT


class SampleFault(NamedTuple):
    """One sample that is not as it should be: members replaced, or taken away where None stands."""

    row: int
    name: str
    members: Mapping[str, bytes | None]
    reason: str = ""  # of the skip; empty: it is used
    note: str = ""  # counted though it is used
    verified: str = ""  # what `verify --deep` says, if not `reason`


def header_offsets(path: Path) -> list[int]:
    """Where the header of each member starts, by Python's own reader."""
    with tarfile.open(path) as tar:
        return [member.offset for member in tar]


def write_damaged(path: Path, fault: TarFault) -> None:
    """Damages the tar at `path`."""
    path.write_bytes(fault.damage(path.read_bytes(), header_offsets(path)))


def _patched(start: int, content: bytes, member: int = 20) -> Patch:
    def patch(raw: bytes, heads: list[int]) -> bytes:
        at = heads[member] + start
        return raw[:at] + content + raw[at + len(content) :]

    return patch


def _cut(member: int, beyond: int) -> Patch:
    return lambda raw, heads: raw[: heads[member] + beyond]


def _inserted(count: int) -> Patch:
    return lambda raw, heads: raw[: heads[20]] + bytes(count) + raw[heads[20] :]


def resealed(header: bytearray, *, signed: bool = False) -> bytes:
    """A header with its checksum written again; `signed`: as the sum of signed bytes, as some old writers did."""
    header[148:156] = b" " * 8
    total = sum(header) - (256 * sum(byte > 127 for byte in header) if signed else 0)
    header[148:156] = b"%06o\0 " % total
    return bytes(header)


def _header(field: slice, content: bytes, *, signed: bool = False) -> Patch:
    """Another content of a field, and a checksum that bears it out."""

    def patch(raw: bytes, heads: list[int]) -> bytes:
        header = bytearray(raw[heads[20] : heads[20] + BLOCK])
        header[field] = content
        return raw[: heads[20]] + resealed(header, signed=signed) + raw[heads[20] + BLOCK :]

    return patch


_SIZE = slice(124, 136)
_PAGE = b"<!DOCTYPE html><html>404</html>" * 40
TAR_FAULTS = (
    TarFault(1, "cut inside the data of a member", _cut(20, BLOCK + 100), "cut_member", 10),
    TarFault(1, "cut inside the data of a second member", _cut(21, BLOCK + 10), "cut_member", 10),
    TarFault(2, "cut at a sample", _cut(20, 0), "no_end_marker", 10),
    TarFault(2, "cut at a member", _cut(21, 0), "no_end_marker", 10),
    TarFault(3, "cut inside a header", _cut(20, 200), "cut_header", 10),
    TarFault(4, "100 bytes of a header overwritten", _patched(0, b"\xa5" * 100), "bad_header", 10),
    TarFault(4, "one letter of a header changed", _patched(3, b"X"), "bad_header", 10),
    TarFault(5, "size is no number", _patched(124, b"zzzz"), "bad_header", 10),
    TarFault(5, "size is no number, checksum right", _header(_SIZE, b"zzzzzzzzzzz\0"), "bad_header", 10),
    TarFault(5, "size too large", _header(_SIZE, b"77777777777\0"), "cut_member", 10),
    TarFault(5, "size below zero, base 256", _header(_SIZE, b"\xff" * 12), "bad_header", 10),
    TarFault(5, "size too small", _header(_SIZE, b"00000000001\0"), "bad_header", 10),
    TarFault(6, "two zero blocks inside", _inserted(2 * BLOCK), "data_after_end", 10),
    TarFault(6, "one zero block inside", _inserted(BLOCK), "data_after_end", 10),
    TarFault(7, "two tars in one file", lambda raw, heads: raw + raw, "data_after_end", 20),
    TarFault(8, "empty file", lambda raw, heads: b"", "not_a_tar", 0),
    TarFault(8, "a web page", lambda raw, heads: _PAGE, "not_a_tar", 0),
    TarFault(8, "bad first header", _patched(0, b"\xa5" * 100, member=0), "not_a_tar", 0),
    TarFault(9, "gzip, whole", lambda raw, heads: gzip.compress(raw), "compressed", 0),
    TarFault(9, "gzip, cut in half", lambda raw, heads: gzip.compress(raw)[: len(raw) // 4], "compressed", 0),
    TarFault(3, "cut in a GNU long name", _cut(20, BLOCK + 20), "cut_member", 10, tarfile.GNU_FORMAT),
    TarFault(4, "a pax header changed", _patched(BLOCK, b"99"), "bad_header", 10, tarfile.PAX_FORMAT),
    TarFault(4, "a checksum of signed bytes", _header(slice(265, 267), b"\xff\xfe", signed=True), "", 20),
)


def _jpeg(image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **options)
    return out.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and no more: a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@lru_cache(maxsize=1)
def scan_bomb() -> bytes:
    """A progressive JPEG whose last scan comes 300 times."""
    whole = _jpeg(Image.effect_noise((64, 64), 60).convert("RGB"), progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * 300 + whole[-2:]


@lru_cache(maxsize=1)
def text_bomb() -> bytes:
    """A PNG with 80 MB of text in it, packed into 80 KB."""
    info, out = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_text("comment", "0" * 80_000_000, zip=True)
    Image.new("RGB", (16, 16)).save(out, "PNG", pnginfo=info)
    return out.getvalue()


def flipped(data: bytes) -> bytes:
    """A JPEG with 8 bytes of its coded pixels changed: it still decodes, to another picture."""
    at = data.index(b"\xff\xda") + 40
    return data[:at] + bytes(byte ^ 0x24 for byte in data[at : at + 8]) + data[at + 8 :]


_GOOD = picture(1)[0]
# a lossless WebP of 7000 x 7000 pixels
WEBP_BOMB = bytes.fromhex("524946461a000000574542505650384c0e0000002f57dbd506071011fd0f4444ff03")
_NOISE = np.random.default_rng(0).integers(0, 256, (8, 200, 3), dtype=np.uint8)


def _says(caption: str) -> dict[str, bytes]:
    return {"json": b'{"caption": "%s"}' % caption.encode()}


SAMPLE_FAULTS = (
    SampleFault(18, "no caption", {"json": None}, "no_caption"),
    SampleFault(18, "no picture", {"jpg": None}, "no_image"),
    SampleFault(19, "empty caption", _says(""), "empty_caption"),
    SampleFault(19, "blank caption", _says("  \u200b\u00a0"), "empty_caption"),
    SampleFault(20, "caption not UTF-8", {"json": b'{"caption": "\xff\xfe"}'}, "bad_encoding"),
    SampleFault(20, "JSON cut", {"json": b'{"caption": "a c'}, "bad_json"),
    SampleFault(20, "JSON nested 100,000 deep", {"json": b"[" * 100_000}, "bad_json"),
    SampleFault(20, "JSON with a number of 5,000 digits", {"json": b'{"caption": %s}' % (b"7" * 5000)}, "bad_json"),
    SampleFault(23, "caption of 80 KB of &amp;amp;", _says("&" + "amp;" * 20_000), note="caption_cut"),
    SampleFault(23, "caption of 1 MB", _says("a cat. " * 150_000), note="caption_cut"),
    SampleFault(25, "JPEG two bytes short", {"jpg": _GOOD[:-2]}, "truncated_image"),
    SampleFault(25, "JPEG cut in half", {"jpg": _GOOD[: len(_GOOD) // 2]}, "truncated_image"),
    SampleFault(26, "bytes flipped inside a JPEG", {"jpg": flipped(_GOOD)}),
    SampleFault(27, "HTML as .jpg", {"jpg": b"<!DOCTYPE html><html>404"}, "not_image"),
    SampleFault(27, "SVG as .jpg", {"jpg": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}, "not_image"),
    SampleFault(27, "EPS as .jpg", {"jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}, "not_image"),
    SampleFault(27, "empty .jpg", {"jpg": b""}, "not_image"),
    SampleFault(28, "giant PNG", {"jpg": png_header(10_000, 9_500)}, "too_many_pixels"),
    SampleFault(28, "WebP of 49 million pixels in 34 bytes", {"jpg": WEBP_BOMB}, "too_many_pixels"),
    SampleFault(28, "JPEG of 300 scans", {"jpg": scan_bomb()}, "too_many_scans"),
    SampleFault(29, "20,000 x 10 pixels", {"jpg": png_header(20_000, 10)}, "extreme_aspect"),
    SampleFault(29, "200 x 8 pixels", {"jpg": _jpeg(Image.fromarray(_NOISE))}, "extreme_aspect"),
    SampleFault(31, "1 x 1 pixel", {"jpg": png_header(1, 1)}, "too_small"),
    SampleFault(31, "one colour", {"jpg": _jpeg(Image.new("RGB", (20, 20), "red"))}, verified="flat_image"),
    SampleFault(32, "text bomb in a PNG", {"jpg": text_bomb()}, "not_image"),
)
