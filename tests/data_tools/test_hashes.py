"""Perceptual hashes against sums written as loops, on pictures whose coefficients are known, and coded again."""

from __future__ import annotations

import hashlib
import io
import math

import numpy as np
import pytest
from PIL import Image

from data_tools import hashes
from data_tools.aligned import fit
from data_tools.hashes import Hashes, hashed, likeness, near, sketch, whole_hashes, window_hashes, windows
from vlp.types import BadSampleError


def drawn(seed: int, *, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Smooth noise with three hard-edged boxes: a picture unlike all others."""
    rng = np.random.default_rng(seed)
    noise = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pixels = np.array(noise)
    for _ in range(3):
        x, y = (int(rng.integers(0, side * 3 // 4)) for side in size)
        pixels[y : y + size[1] // 4, x : x + size[0] // 5] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)


def coded(picture: Image.Image, *, kind: str = "PNG", quality: int = 90) -> bytes:
    data = io.BytesIO()
    picture.save(data, kind, quality=quality)
    return data.getvalue()


def lumas(*pictures: Image.Image) -> np.ndarray:
    return np.stack([sketch(coded(picture)).luma for picture in pictures])


def test_a_sketch_has_the_digests_of_bytes_and_of_pixels():
    picture = drawn(0)
    png, other = sketch(coded(picture)), sketch(coded(picture, kind="BMP"))
    assert png.bytes_sha256 == hashlib.sha256(coded(picture)).digest() != other.bytes_sha256
    assert png.pixels_sha256 == other.pixels_sha256
    assert (png.width, png.height, png.luma.shape, png.colour.shape) == (160, 120, (64, 64), (2, 16, 16))
    turned = sketch(coded(Image.fromarray(np.zeros((2, 8, 3), np.uint8))))
    assert turned.pixels_sha256 != sketch(coded(Image.fromarray(np.zeros((8, 2, 3), np.uint8)))).pixels_sha256
    with pytest.raises(BadSampleError, match="not_image"):
        sketch(b"<html>")


def test_gray_has_the_colour_of_gray_and_red_has_not():
    gray, red = (sketch(coded(Image.new("RGB", (20, 20), colour))) for colour in ((90, 90, 90), (255, 0, 0)))
    assert (gray.colour == 128).all()
    assert (red.colour[1] == 255).all()
    assert (red.luma == 76).all()  # 0.299 of 255


def test_bits_are_the_signs_of_cosine_sums_of_every_window():
    luma = lumas(drawn(1))
    found, boxes = window_hashes(luma), windows()
    frequencies = sorted(((v, u) for v in range(12) for u in range(12)), key=lambda f: (f[0] ** 2 + f[1] ** 2, f))[1:65]
    fine = np.repeat(np.repeat(luma[0].astype(float), 8, 0), 8, 1)  # integrals as sums over eighths of a pixel
    middles = (np.arange(512) + 0.5) / 512
    for window in (0, 1, 17, len(boxes) - 1):
        left, top, right, bottom = boxes[window]
        waves = [
            [np.cos(math.pi * k * (middles - a) / (b - a)) * ((middles > a) & (middles < b)) for k in range(12)]
            for a, b in ((top, bottom), (left, right))
        ]
        for bit, (v, u) in enumerate(frequencies):
            value = waves[0][v] @ fine @ waves[1][u]
            if int(found.stable[0, window]) >> bit & 1:
                assert (int(found.bits[0, window]) >> bit & 1) == (value > 0)


def test_windows_begin_with_the_whole_and_reach_the_area_that_is_promised():
    boxes = windows()
    assert boxes[0].tolist() == [0, 0, 1, 1]
    assert len(np.unique(boxes, axis=0)) == len(boxes) == 70
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    assert areas.min() == pytest.approx(0.68)
    luma = lumas(drawn(2), drawn(3))
    parts, whole = window_hashes(luma), whole_hashes(luma)
    assert (parts.bits[:, 0] == whole.bits).all()
    assert (parts.stable[:, 0] == whole.stable).all()
    assert window_hashes(luma[:0]).bits.shape == (0, 70)


@pytest.mark.parametrize("change", ["jpeg", "half", "bright"])
def test_a_copy_is_near_and_another_picture_is_not(change):
    picture = drawn(4)
    copies = {
        "jpeg": coded(picture, kind="JPEG", quality=25),
        "half": coded(picture.resize((77, 61))),
        "bright": coded(picture.point(lambda level: 30 + 0.8 * level)),
    }
    copy = whole_hashes(sketch(copies[change]).luma[None])
    asked = whole_hashes(lumas(picture))
    assert likeness(copy.bits, asked) < 1e-10
    others = whole_hashes(lumas(*(drawn(seed) for seed in range(100, 140))))
    assert (likeness(others.bits, asked) > hashes.CHANCE).all()


def test_near_finds_what_all_pairs_say(monkeypatch):
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**63, 300, dtype=np.uint64)
    some, more = rng.integers(0, 2**63, (2, 100), dtype=np.uint64)
    asked = Hashes(bits[::3] ^ np.uint64(0b1011), some | more | np.uint64(7))
    asked.stable[7] = np.uint64(0b111)  # too few to say anything
    expected = {(i, j) for i, j in np.argwhere(likeness(bits[:, None], asked) <= hashes.CHANCE).tolist()}
    monkeypatch.setattr(hashes, "BLOCK", 512)
    found = [(i, j, p) for hit in near(bits, asked) for i, j, p in zip(hit.row, hit.place, hit.chance)]
    assert {(i, j) for i, j, _ in found} == expected
    assert len(expected) >= 90
    assert 7 not in {j for _, j, _ in found}
    assert all(chance == likeness(bits[i : i + 1], Hashes(*(w[j : j + 1] for w in asked)))[0] for i, j, chance in found)
    assert list(near(bits[:0], asked)) == list(near(bits, Hashes(bits[:0], bits[:0]))) == []


def test_a_picture_of_one_colour_has_no_hash():
    plain = lumas(Image.new("RGB", (50, 40), (200, 220, 210)), drawn(5))
    assert hashed(whole_hashes(plain)).tolist() == [False, True]


def test_chances_are_those_of_coins():
    table = hashes.chances()
    assert table[64, 0] == 2.0**-64
    assert table[30, 1] == pytest.approx(31 / 2**30)
    assert table[64, 64] == pytest.approx(1)
    assert (table[hashes.LEAST_BITS - 1] == 1).all()


def test_the_window_is_found_and_the_pixels_are_compared():
    picture = drawn(6, size=(200, 150))
    box = (0.07, 0.05, 0.95, 0.98)
    cut = picture.crop((14, 8, 190, 147))  # the same, to the pixel
    other = cut.copy()
    other.paste((0, 0, 0), (100, 60, 112, 69))  # 12 x 9 pixels of 176 x 139
    red, green, blue = cut.split()
    recoloured = Image.merge("RGB", (blue, green, red))
    inner = [sketch(coded(one, kind="JPEG", quality=60)) for one in (cut, other, recoloured, drawn(7))]
    outer = sketch(coded(picture))
    planes = [tuple(np.stack([getattr(one, name) for one in side]) for name in ("luma", "colour")) for side in
              ([outer] * 4, inner)]  # fmt: skip
    found = fit(*planes, np.tile([0.08, 0.08, 0.92, 1.0], (4, 1)))
    assert np.abs(found.box[0] - box).max() < 0.01
    assert found.detail[0] > 0.9
    assert found.luma[0] > 0.98
    assert found.worst[0] < 0.5 < 1 < found.worst[1]
    assert found.colour[0] < 16 < 40 < found.colour[2]
    assert found.detail[3] < 0.5
    assert len(fit(*([plane[:0] for plane in side] for side in planes), np.empty((0, 4))).box) == 0
