"""Picture bytes to uint8 RGB, with every limit checked on the header before a pixel is decoded.

JPEG goes through simplejpeg, which hands the bytes to libjpeg-turbo: Pillow's pixels, bit for bit, in two thirds of its
time. Other formats go through Pillow, and so do JPEGs in CMYK and those that simplejpeg refuses: they are what Pillow,
and so open_clip, says they are.
"""

from __future__ import annotations

import contextlib
import io
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from pydantic import Field
from torch import Tensor

from vlp.data.reader import MAX_MEMBER
from vlp.registry import Part
from vlp.types import BadSampleError

Format = Literal["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]
FORMATS: tuple[Format, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_JPEG = b"\xff\xd8\xff"
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)  # frame headers of JPEGs that are drawn scan by scan
_MAX_SCANS = 100  # writers make about ten; a scan of some bytes costs a pass over all pixels
_MAX_SCANNED = 1_000_000_000  # pixels, over all scans
_ROWS = 256  # of 16-bit gray that become larger numbers at once
_CMYK = 4  # components


class Limits(Part):
    """What a sample may be at most (and at least); beyond it the sample is skipped and counted."""

    max_pixels: int = Field(50_000_000, gt=0)
    max_pixels_other: int = Field(20_000_000, gt=0, description="of other formats than JPEG: 5 times memory and time")
    max_aspect: float = Field(20.0, ge=1)
    min_side: int = Field(2, ge=1)
    max_bytes: int = Field(64 << 20, gt=0, le=MAX_MEMBER)
    max_caption_bytes: int = Field(8192, ge=16)
    formats: tuple[Format, ...] = FORMATS


class Header(NamedTuple):
    """What the first bytes of a picture say."""

    format: str
    width: int
    height: int
    components: int = 3  # of a JPEG: 1 gray, 3 colours, 4 CMYK


def decode(data: bytes, limits: Limits | None = None, *, exif: bool = False, header: Header | None = None) -> Tensor:
    """uint8 [3, h, w]; BadSampleError with reason image_bytes, not_image, truncated_image, ... if it cannot be used.

    As Pillow's `convert("RGB")`, which open_clip uses: alpha is dropped, the first frame of an animation is taken, the
    EXIF orientation is ignored unless `exif`. Unlike it, 16-bit gray is scaled to 8 bit instead of turning white.
    `header` is what `read_header` said of the data, where it was asked already.
    """
    header = header or read_header(data, limits or Limits())
    if header.format == "JPEG" and header.components != _CMYK and not exif:
        with contextlib.suppress(ValueError):  # damaged or rare: Pillow decides, and says why
            return torch.from_numpy(simplejpeg.decode_jpeg(data, "RGB")).permute(2, 0, 1)
    return _decode_pillow(data, exif=exif)


def read_header(data: bytes, limits: Limits) -> Header:
    """Format and size of a picture within the limits; BadSampleError naming the limit that it breaks."""
    if not data:
        raise BadSampleError("not_image", "0 bytes")
    if len(data) > limits.max_bytes:
        raise BadSampleError("image_bytes", f"{len(data)} bytes, limits.max_bytes is {limits.max_bytes}")
    header = _jpeg_header(data) if data.startswith(_JPEG) else _pillow_header(data, limits)
    if header.format not in limits.formats:
        raise BadSampleError("not_image", f"{header.format} is not in limits.formats")
    check_size(header.width, header.height, limits)
    if header.format != "JPEG" and header.width * header.height > limits.max_pixels_other:
        size = f"{header.format} of {header.width}x{header.height}"
        raise BadSampleError("too_many_pixels", f"{size}, limits.max_pixels_other is {limits.max_pixels_other}")
    return header


def check_size(width: int, height: int, limits: Limits) -> None:
    """BadSampleError if a picture of this size breaks a limit."""
    short, long = sorted((width, height))
    size = f"{width}x{height}"
    if width * height > limits.max_pixels:
        raise BadSampleError("too_many_pixels", f"{size}, limits.max_pixels is {limits.max_pixels}")
    if short < limits.min_side:
        raise BadSampleError("too_small", f"{size}, limits.min_side is {limits.min_side}")
    if long > limits.max_aspect * short:
        raise BadSampleError("extreme_aspect", f"{size}, limits.max_aspect is {limits.max_aspect:g}")


def decode_shrunk(data: bytes, factor: int) -> Image.Image:
    """An RGB picture of 1/factor (2, 4, 8) of each side, scaled inside the JPEG decoder; sides are rounded up."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            wanted = tuple(-(-side // factor) for side in image.size)
            image.draft("RGB", (image.width // factor, image.height // factor))
            assert image.size == wanted, (image.size, wanted)
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise _fault(data, error) from error


def from_pil(image: Image.Image) -> Tensor:
    """uint8 [3, h, w] of a Pillow image of any mode."""
    if image.mode.startswith("I"):  # 16-bit gray; convert("RGB") would clip all above 255 to white
        gray = np.asarray(image)
        small = np.empty(gray.shape, np.uint8)
        for row in range(0, len(gray), _ROWS):
            wide = np.clip(gray[row : row + _ROWS].astype(np.int64), 0, 65535)
            small[row : row + _ROWS] = (wide + 128) // 257
        return torch.from_numpy(np.repeat(small[None], 3, axis=0))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours as convert("RGB"), without Pillow's warning
    if image.mode == "RGBA":  # as convert("RGB"), which drops alpha, without a second picture of four bytes a pixel
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        for band in range(3):
            pixels[..., band] = np.asarray(image.getchannel(band))
    else:
        pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _decode_pillow(data: bytes, *, exif: bool) -> Tensor:
    try:
        with Image.open(io.BytesIO(data), formats=(*FORMATS, "TIFF")) as image:
            image.load()
            if exif:
                from PIL import ImageOps

                ImageOps.exif_transpose(image, in_place=True)
            return from_pil(image)
    except MemoryError:
        raise
    except (
        Exception
    ) as error:  # plugins raise anything on a damaged file: OSError, SyntaxError, struct.error, zlib.error
        raise _fault(data, error) from error


def _fault(data: bytes, error: Exception) -> BadSampleError:
    text = str(error).split("\n")[0]
    cut = any(word in text.lower() for word in ("truncated", "incomplete", "premature", "broken data stream"))
    cut |= data.startswith(_JPEG) and not data.endswith(b"\xff\xd9")  # of one that ends within a table it says less
    return BadSampleError("truncated_image" if cut else "not_image", f"{len(data)} bytes: {text[-160:]}")


def _pillow_header(data: bytes, limits: Limits) -> Header:
    try:
        with Image.open(io.BytesIO(data), formats=limits.formats) as image:
            return Header(str(image.format), *image.size)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadSampleError("too_many_pixels", str(error)) from error
    except UnidentifiedImageError as error:
        raise BadSampleError("not_image", f"{len(data)} bytes that begin with {data[:12]!r}") from error
    except MemoryError:
        raise
    except Exception as error:
        raise _fault(data, error) from error


def _jpeg_header(data: bytes) -> Header:
    """Size from the frame header (ITU T.81, B.2.2), found by walking the segments: microseconds."""
    place, end = 2, len(data)
    while place + 9 < end:
        if data[place] != 0xFF:
            raise BadSampleError("not_image", f"JPEG without a marker at byte {place}")
        marker = data[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # stands alone
            place += 2
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(data[place + at : place + at + 2], "big") for at in (5, 7))
            if marker in _PROGRESSIVE:
                _refuse_scans(data, width * height)
            return Header("JPEG", width, height, data[place + 9])
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    raise BadSampleError("truncated_image", f"JPEG of {end} bytes without a frame header")


def _refuse_scans(data: bytes, pixels: int) -> None:
    """BadSampleError for a picture that is drawn over and over: in coded data 0xFF is never followed by this marker."""
    scans = data.count(b"\xff\xda")
    if scans > _MAX_SCANS or scans * pixels > _MAX_SCANNED:
        raise BadSampleError("too_many_scans", f"{scans} scans of {pixels} pixels in {len(data)} bytes")
