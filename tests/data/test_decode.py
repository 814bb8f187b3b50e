from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from vlp.data import decode as module
from vlp.data.decode import Limits, decode, decode_shrunk, from_pil, read_header
from vlp.types import BadSampleError


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Soft random colours with a little noise."""
    rng = np.random.default_rng(seed)
    coarse = (rng.random((max(2, height // 20), max(2, width // 20), 3)) * 255).astype(np.uint8)
    soft = np.asarray(Image.fromarray(coarse).resize((width, height), Image.BICUBIC)).astype(float)
    return Image.fromarray((soft + rng.normal(0, 5, soft.shape)).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def reference(data: bytes) -> torch.Tensor:
    """What open_clip sees: Pillow and convert("RGB")."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of palettes with transparency
        return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)


def reason(data: bytes, limits: Limits | None = None) -> str:
    with pytest.raises(BadSampleError) as error:
        decode(data, limits)
    assert error.value.detail
    return error.value.reason


PLAIN = photo(61, 47)
GRAY16 = (np.arange(60 * 40).reshape(40, 60) * 27).astype(np.uint16)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpeg_pixels_are_pillows(mode: str, progressive: bool, subsampling: int) -> None:
    options = {} if mode == "L" else {"subsampling": subsampling}
    data = encoded(PLAIN.convert(mode), quality=90, progressive=progressive, **options)
    assert torch.equal(decode(data), reference(data))


def test_pillow_has_the_last_word_on_jpegs(monkeypatch: pytest.MonkeyPatch) -> None:
    data, asked = encoded(PLAIN, quality=80), []
    real = module._decode_pillow
    monkeypatch.setattr(module, "_decode_pillow", lambda *a, **k: asked.append(len(a[0])) or real(*a, **k))
    fast = decode(data)
    assert not asked
    assert torch.equal(fast, real(data, exif=False))
    for rare in (encoded(PLAIN.convert("CMYK"), quality=80), encoded(PLAIN.convert("CMYK"), subsampling=0)):
        assert torch.equal(decode(rare), reference(rare))
    assert len(asked) == 2
    middle = len(data) // 2
    damaged = data[:middle] + b"\xff\xd9" + data[middle:]  # an end in the middle: simplejpeg refuses it
    assert torch.equal(decode(damaged), reference(damaged))
    assert reason(data[:-2]) == "truncated_image"
    assert len(asked) == 4


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP"])
def test_other_formats_are_pillows(kind: str) -> None:
    data = encoded(PLAIN, kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert read_header(data, Limits()).format == kind
    assert torch.equal(decode(data), reference(data))


def test_special_modes() -> None:
    with_alpha = PLAIN.convert("RGBA")
    with_alpha.putalpha(Image.linear_gradient("L").resize(PLAIN.size))
    for image in (with_alpha, PLAIN.convert("LA"), PLAIN.convert("1"), PLAIN.convert("P"), with_alpha.quantize(16)):
        data = encoded(image, "PNG")
        assert torch.equal(decode(data), reference(data)), image.mode
    palette = PLAIN.convert("P")
    palette.info["transparency"] = bytes(range(256))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow warns of convert("RGB") here
        seen = from_pil(palette)
    del palette.info["transparency"]
    assert torch.equal(seen, from_pil(palette.convert("RGB")))


def test_16_bit_gray_is_scaled_not_clipped() -> None:
    data = encoded(Image.fromarray(GRAY16), "PNG")
    image = decode(data)
    expected = np.round(GRAY16 / 257)
    assert np.abs(image[0].numpy() - expected).max() == 0
    assert torch.equal(image[0], image[2])
    assert reference(data).float().mean() > 250  # what open_clip sees is white


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "green", "blue")]
    for kind in ("GIF", "WEBP"):
        data = encoded(
            frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
        )
        assert decode(data)[:, 5, 5].tolist() == [255, 0, 0]


def test_exif_orientation_only_when_asked() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(PLAIN, "JPEG", quality=90, exif=exif)
    assert decode(data).shape == (3, 47, 61)
    assert torch.equal(decode(data, exif=True), decode(data).rot90(-1, (1, 2)))


@pytest.mark.parametrize("cut", [1, 2, 3, 10, 200, 600])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_jpeg_is_an_error(cut: int, progressive: bool) -> None:
    data = encoded(PLAIN, progressive=progressive)
    assert reason(data[:-cut]) == "truncated_image"


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP"])
def test_other_truncated_files_are_errors(kind: str) -> None:
    data = encoded(PLAIN, kind)
    assert reason(data[: len(data) // 2]) in ("truncated_image", "not_image")


def test_a_jpeg_cut_before_its_frame_header() -> None:
    data = encoded(PLAIN)
    for stop in (3, 10, 50, 150):
        assert reason(data[:stop]) in ("truncated_image", "not_image")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>not found</html>",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"\xff\xd8\xff\xe0\x00\x04xxgarbage" * 9,
    ],
)
def test_what_is_no_picture(data: bytes) -> None:
    assert reason(data) == "not_image"


def test_only_listed_formats() -> None:
    assert reason(encoded(PLAIN, "TIFF")) == "not_image"
    assert decode(encoded(PLAIN, "TIFF"), Limits(formats=("TIFF",))).shape == (3, 47, 61)
    assert reason(encoded(PLAIN), Limits(formats=("PNG",))) == "not_image"


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is large; a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_limits_are_checked_on_the_header() -> None:
    assert reason(bomb(10_000, 9_500)) == "too_many_pixels"
    assert reason(bomb(60_000, 60_000)) == "too_many_pixels"
    assert reason(bomb(20_000, 100)) == "extreme_aspect"
    assert reason(bomb(1, 1)) == "too_small"
    assert reason(encoded(PLAIN), Limits(max_pixels=61 * 47 - 1)) == "too_many_pixels"
    assert reason(encoded(PLAIN), Limits(max_aspect=1.29)) == "extreme_aspect"
    assert reason(encoded(PLAIN), Limits(min_side=48)) == "too_small"
    assert reason(encoded(PLAIN), Limits(max_bytes=100)) == "image_bytes"
    assert decode(encoded(PLAIN), Limits(max_pixels=61 * 47, max_aspect=1.3, min_side=47)).shape == (3, 47, 61)


def test_a_png_text_bomb_is_not_unpacked() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "0" * 80_000_000, zip=True)
    assert reason(encoded(PLAIN, "PNG", pnginfo=info)) in ("not_image", "too_many_pixels")


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_shrunk_jpegs_are_near(factor: int) -> None:
    data = encoded(photo(321, 243), quality=95)
    small = from_pil(decode_shrunk(data, factor))
    assert small.shape == (3, -(-243 // factor), -(-321 // factor))
    whole = torch.nn.functional.avg_pool2d(decode(data).float(), factor)
    inside = small[:, : whole.shape[1], : whole.shape[2]].float()
    assert (inside - whole).abs().mean() < 4
    with pytest.raises(BadSampleError, match="truncated"):
        decode_shrunk(data[:-500], factor)


def test_random_bytes_never_raise_anything_else() -> None:
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        whole = encoded(PLAIN, kind)
        for _ in range(60):
            broken = bytearray(whole)
            for place in rng.integers(0, len(whole), 8):
                broken[place] = rng.integers(256)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    assert decode(bytes(broken)).dtype == torch.uint8
            except BadSampleError:
                pass
