"""Crops of a picture: drawn by lot, as torchvision's RandomResizedCrop draws them, or stored with the sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vlp.types import BadSampleError


class Box(NamedTuple):
    """A crop in pixels."""

    top: int
    left: int
    height: int
    width: int


def draw_box(
    height: int, width: int, *, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
    """A crop with the distribution of torchvision's RandomResizedCrop: up to ten tries, then the central crop."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = (
            height * width * (scale[0] + (scale[1] - scale[0]) * rng.random())
        )  # as rng.uniform, at a third of its time
        aspect = math.exp(low + (high - low) * rng.random())
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w)
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return Box((height - h) // 2, (width - w) // 2, h, w)


def stored_box(crop: Sequence[float], height: int, width: int) -> Box:
    """The pixels of x0, y0, x1, y1 in parts of width and height; BadSampleError bad_crop if that is no box in it."""
    x0, y0, x1, y1 = crop
    if not (0 <= x0 < x1 <= 1 + 1e-6 and 0 <= y0 < y1 <= 1 + 1e-6):
        raise BadSampleError("bad_crop", f"{[round(float(side), 4) for side in crop]} is not x0 < x1, y0 < y1 in 0..1")
    top, left = min(round(y0 * height), height - 1), min(round(x0 * width), width - 1)
    return Box(top, left, max(1, round(y1 * height) - top), max(1, round(x1 * width) - left))
