"""Colours, shapes and compression."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlp.data.corrupt.fields import Draw, smooth, warp


def brightness(x: Tensor, draw: Draw) -> Tensor:
    """V of HSV raised."""
    more = (0.1, 0.2, 0.3, 0.4, 0.5)[draw.severity - 1]
    value = x.amax(dim=0)
    raised = (value + more).clamp(max=1)
    return torch.where(value > 0, x * (raised / value.clamp_min(1e-9)), raised)


def contrast(x: Tensor, draw: Draw) -> Tensor:
    """Values drawn together around the mean of their channel."""
    keep = (0.4, 0.3, 0.2, 0.1, 0.05)[draw.severity - 1]
    mean = x.mean(dim=(1, 2), keepdim=True)
    return (x - mean) * keep + mean


def saturate(x: Tensor, draw: Draw) -> Tensor:
    """S of HSV times a factor, plus a constant: paler at severities 1 and 2, stronger from 3 on.

    As in the released code, exact greys have the hue of red, and so turn reddish where the constant is not 0.
    """
    factor, more = ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2))[draw.severity - 1]
    value, low = x.amax(dim=0), x.amin(dim=0)
    spread = value - low
    changed = (spread / value.clamp_min(1e-9) * factor + more).clamp(0, 1)
    depth = (value - x) / spread.clamp_min(1e-9)  # 0 in the strongest channel, 1 in the weakest
    red = torch.tensor([0.0, 1.0, 1.0])[:, None, None]
    return value * (1 - changed * torch.where(spread > 0, depth, red))


def elastic_transform(x: Tensor, draw: Draw) -> Tensor:
    """A random affine map, then a smooth random displacement; mostly the former at severities 1 and 2.

    A smoothed field is weaker the wider it is smoothed, so that displacements grow with the picture only if their
    factor grows with its square. (The published lengths are 244 times a number, where 224 was meant.)
    """
    amount, sigma, shift = (
        (244 * 2, 244 * 0.7, 244 * 0.1),
        (244 * 2, 244 * 0.08, 244 * 0.2),
        (244 * 0.05, 244 * 0.01, 244 * 0.02),
        (244 * 0.07, 244 * 0.01, 244 * 0.02),
        (244 * 0.12, 244 * 0.01, 244 * 0.02),
    )[draw.severity - 1]
    height, width = x.shape[-2:]
    moved = draw.rng.uniform(-1, 1, (3, 2)) * shift * draw.scale
    noise = 2 * draw.uniform(2, height, width) - 1
    field = smooth(noise, sigma * draw.scale, border="reflect", truncate=3.0) * amount * draw.scale**2
    down, across = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    rows, columns = down + field[0], across + field[1]
    inverse = torch.from_numpy(_affine(height, width, moved)).float()
    source = torch.einsum("ij,jhw->ihw", inverse, torch.stack([rows, columns, torch.ones_like(rows)]))
    return warp(x, source[0], source[1])


def _affine(height: int, width: int, moved: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """[2, 3]: where a row and column comes from, if three points around the middle move by `moved` [3, 2]."""
    middle, reach = np.array([height // 2, width // 2], dtype=float), max(1, min(height, width) // 3)
    points = middle + reach * np.array([[1, 1], [1, -1], [-1, -1]])
    there = np.hstack([points + moved, np.ones((3, 1))])
    found: np.ndarray = np.linalg.lstsq(there, points, rcond=None)[0].T  # type: ignore[type-arg]
    return found


def pixelate(x: Tensor, draw: Draw) -> Tensor:
    """Box-filtered to this part of each side, and back."""
    part = (0.6, 0.5, 0.4, 0.3, 0.25)[draw.severity - 1]
    picture = _to_pil(x)
    small = picture.resize([max(1, int(side * part)) for side in picture.size], Image.Resampling.BOX)
    return _from_pil(small.resize(picture.size, Image.Resampling.BOX))


def jpeg_compression(x: Tensor, draw: Draw) -> Tensor:
    """Through a JPEG of this quality, by Pillow."""
    data = io.BytesIO()
    _to_pil(x).save(data, "JPEG", quality=(25, 18, 15, 10, 7)[draw.severity - 1])
    return _from_pil(Image.open(data))


def _to_pil(x: Tensor) -> Image.Image:
    return Image.fromarray((x * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def _from_pil(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
