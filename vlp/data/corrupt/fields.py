"""What corruptions are made of: smoothing, warping, streaks, and random fields; pictures are fp32 [..., h, w]."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

PUBLISHED_SIDE = 224  # pictures that the published lengths are meant for


class Draw(NamedTuple):
    """How hard a picture is corrupted, how large it is, and where chance comes from."""

    severity: int  # 1 to 5
    scale: float  # shorter side / 224: what lengths in pixels are multiplied by
    rng: np.random.Generator

    def normal(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.rng.standard_normal(shape, dtype=np.float32))

    def uniform(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.rng.random(shape, dtype=np.float32))


def smooth(
    x: Tensor, sigma: float, *, border: Literal["nearest", "reflect"] = "nearest", truncate: float = 4.0
) -> Tensor:
    """Gaussian blur of the last two dimensions; sigma in pixels, cut off at `truncate` of them."""
    down, across = (smoothing(side, sigma, border, truncate) for side in x.shape[-2:])
    return down @ x @ across.T


@lru_cache(maxsize=32)
def smoothing(side: int, sigma: float, border: str, truncate: float) -> Tensor:
    """[side, side]: row i has the weights of the pixels that make pixel i; what lies outside is folded back in."""
    reach = int(truncate * sigma + 0.5)
    offset = np.arange(-reach, reach + 1)
    weight = np.exp(-0.5 * (offset / sigma) ** 2)
    place = np.arange(side)[:, None] + offset
    if border == "nearest":
        place = place.clip(0, side - 1)
    else:  # the edge pixel is seen twice: d c b a | a b c d | d c b a
        place = place % (2 * side)
        place = np.minimum(place, 2 * side - 1 - place)
    matrix = np.zeros((side, side))
    np.add.at(matrix, (np.arange(side)[:, None], place), weight / weight.sum())
    return torch.from_numpy(matrix).float()


def warp(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """[c, h, w] of the values at these positions [h, w] in pixels, bilinear, mirrored beyond the edge."""
    height, width = x.shape[-2:]
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=-1)
    return grid_sample(
        x[None], grid[None].to(x.dtype), mode="bilinear", padding_mode="reflection", align_corners=False
    )[0]


def zoom(x: Tensor, factor: float) -> Tensor:
    """[c, h, w] of the middle of [c, h, w], enlarged by the factor, bilinear."""
    theta = torch.tensor([[[1 / factor, 0.0, 0.0], [0.0, 1 / factor, 0.0]]])
    grid = affine_grid(theta, [1, *x.shape], align_corners=False)
    return grid_sample(x[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0]


def streak(x: Tensor, radius: float, sigma: float, degrees: float) -> Tensor:
    """Each pixel becomes the mean of those on a line from it, weighted by half a Gaussian, 2 * radius + 1 pixels long.

    As ImageMagick's motion blur has it: whole pixels, edges repeated; 0 degrees is to the right, -90 up.
    """
    step = np.arange(2 * math.ceil(radius) + 1)
    weight = np.exp(-0.5 * (step / sigma) ** 2)
    angle = math.radians(degrees)
    down, across = (np.rint(step * turn).astype(int) for turn in (math.sin(angle), math.cos(angle)))
    total = torch.zeros_like(x)
    for dy, dx, share in zip(down.tolist(), across.tolist(), (weight / weight.sum()).tolist()):
        total += share * beside(x, dy, dx)
    return total


def beside(x: Tensor, down: int, across: int) -> Tensor:
    """[..., h, w] of the values that lie so many pixels down and across from each, edges repeated."""
    rows, columns = (
        torch.arange(side).add(step).clamp(0, side - 1) for side, step in zip(x.shape[-2:], (down, across))
    )
    return x.index_select(-2, rows).index_select(-1, columns)


def plasma(height: int, width: int, decay: float, rng: np.random.Generator) -> Tensor:
    """[h, w] in 0..1: a cloud by midpoint displacement (diamond-square, Fournier et al. 1982) on a torus, cut to size.

    From one octave to the next the displacement falls by decay^2, since the released ImageNet-C multiplies its
    amplitude by draws that have it already.
    """
    side = max(2, 1 << (max(height, width) - 1).bit_length())
    field, step, amount = np.zeros((side, side)), side, 1.0
    while step > 1:
        half = step // 2
        corner = field[::step, ::step]
        right, below = np.roll(corner, -1, axis=1), np.roll(corner, -1, axis=0)
        centre = (corner + right + below + np.roll(right, -1, axis=0)) / 4 + _between(amount, corner.shape, rng)
        field[half::step, half::step] = centre
        between = (corner + right + centre + np.roll(centre, 1, axis=0)) / 4 + _between(amount, corner.shape, rng)
        field[::step, half::step] = between
        between = (corner + below + centre + np.roll(centre, 1, axis=1)) / 4 + _between(amount, corner.shape, rng)
        field[half::step, ::step] = between
        step, amount = half, amount / decay**2
    field -= field.min()
    return torch.from_numpy(field / field.max()).float()[:height, :width]


def _between(amount: float, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:  # type: ignore[type-arg]
    return rng.uniform(-amount, amount, shape)
