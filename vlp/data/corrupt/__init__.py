"""Common corruptions of pictures (ImageNet-C, Hendrycks & Dietterich, arXiv 1903.12261), made when they are asked for.

Constants are those of the released code, which are meant for 224 pixels. At other sizes lengths in pixels (radii,
standard deviations of blurs, displacements, flakes, streaks) are multiplied by shorter side / 224, so that the picture
as a whole is corrupted alike; in a small one a mild blur is less than a pixel, and shows nothing. Strengths, mixtures
and ratios (noise, contrast, colours, enlargement, the part to which `pixelate` shrinks, JPEG's quality and its blocks
of 8) stay as they are, and noise is drawn for every pixel at any size.
Ours besides: values are rounded and not cut to bytes, results are not stored as JPEG, and a picture, corruption and
severity always give the same pixels. What single corruptions do otherwise stands with them: `frost` and `spatter` are
drawn by another procedure, `defocus_blur` has a softer disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from vlp.data.corrupt import blur, digital, noise, weather
from vlp.data.corrupt.fields import PUBLISHED_SIDE, Draw
from vlp.registry import nearest

VERSION = 1  # one more whenever a corruption makes other pixels, so that no cache mistakes them for the same
SEVERITIES = (1, 2, 3, 4, 5)

_KINDS: tuple[Callable[[Tensor, Draw], Tensor], ...] = (
    noise.gaussian_noise,
    noise.shot_noise,
    noise.impulse_noise,
    blur.defocus_blur,
    blur.glass_blur,
    blur.motion_blur,
    blur.zoom_blur,
    weather.snow,
    weather.frost,
    weather.fog,
    digital.brightness,
    digital.contrast,
    digital.elastic_transform,
    digital.pixelate,
    digital.jpeg_compression,
    noise.speckle_noise,
    blur.gaussian_blur,
    weather.spatter,
    digital.saturate,
)
CORRUPTIONS = MappingProxyType({kind.__name__: kind for kind in _KINDS})
IMAGENET_C = tuple(CORRUPTIONS)[:15]
EXTRA = tuple(CORRUPTIONS)[15:]


def corrupt(image: Tensor, name: str, severity: int, *, key: str = "", seed: int = 0) -> Tensor:
    """uint8 [3, h, w] of uint8 [3, h, w], always the same for equal `seed`, `key`, `name` and `severity`.

    severity: 1 to 5 as published; 0 gives the picture back. `key` is the sample's, so that no two pictures get the
    same noise. ValueError for a corruption or severity that does not exist, and for what is no such picture.
    """
    check(name, severity)
    if image.dtype != torch.uint8 or image.ndim != 3 or len(image) != 3:
        raise ValueError(f"corruptions take uint8 [3, h, w], not {image.dtype} {list(image.shape)}")
    if severity == 0:
        return image
    draw = Draw(severity, min(image.shape[-2:]) / PUBLISHED_SIDE, _rng(seed, key, name, severity))
    found = CORRUPTIONS[name](image.float() / 255, draw)
    return (found.clamp(0, 1) * 255).round().to(torch.uint8)


def check(name: str, severity: int) -> None:
    """ValueError naming the nearest corruption, or the severities that there are."""
    if name not in CORRUPTIONS:
        raise ValueError(f'unknown corruption "{name}"{nearest(name, CORRUPTIONS)}')
    if severity not in (0, *SEVERITIES):
        raise ValueError(f"{name}: severity {severity}; it is 1 to 5, or 0 for the picture as it is")


def _rng(seed: int, *words: object) -> np.random.Generator:
    text = "\0".join(map(str, (seed, *words)))
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))
