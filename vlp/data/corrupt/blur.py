"""Blur; radii, standard deviations and distances grow with the picture."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from vlp.data.corrupt.fields import Draw, smooth, streak, zoom


def gaussian_blur(x: Tensor, draw: Draw) -> Tensor:
    return smooth(x, (1, 2, 3, 4, 6)[draw.severity - 1] * draw.scale)


def defocus_blur(x: Tensor, draw: Draw) -> Tensor:
    """Mean over a disk; its edge is one pixel soft, where the published one is smoothed by a small Gaussian."""
    radius = (3, 4, 6, 8, 10)[draw.severity - 1] * draw.scale
    reach = math.ceil(radius)
    offset = torch.arange(-reach, reach + 1, dtype=x.dtype)
    disk = (radius + 0.5 - torch.hypot(offset[:, None], offset)).clamp(0, 1)
    kernel = (disk / disk.sum()).expand(len(x), 1, -1, -1)
    return conv2d(pad(x[None], [reach] * 4, mode="replicate"), kernel, groups=len(x))[0]


def glass_blur(x: Tensor, draw: Draw) -> Tensor:
    """Blurred, pixels shuffled among their neighbours, blurred again.

    The released code means to swap two pixels, but writes through views, so that the second keeps its value; so do we.
    """
    sigma, delta, rounds = ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[draw.severity - 1]
    height, width = x.shape[-2:]
    reach = math.ceil(delta * draw.scale)
    rows, columns = (np.arange(reach, side - reach)[::-1] for side in (height, width))
    place = (rows[:, None] * width + columns).ravel()
    origin = list(range(height * width))  # a list: one pixel after the other, each sees what was done before it
    for _ in range(rounds):
        step = draw.rng.integers(-delta, delta, (2, len(place))) * draw.scale
        # a step that is no whole number of pixels is rounded up or down by chance, so that its mean stays
        down, across = np.floor(step + draw.rng.random(step.shape)).astype(int)
        for here, there in zip(place.tolist(), (place + down * width + across).tolist()):
            origin[here] = origin[there]
    shuffled = smooth(x, sigma * draw.scale).flatten(1)[:, origin].view_as(x)
    return smooth(shuffled, sigma * draw.scale)


def motion_blur(x: Tensor, draw: Draw) -> Tensor:
    """Half a Gaussian along a line that is at most 45 degrees steep."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[draw.severity - 1]
    return streak(x, radius * draw.scale, sigma * draw.scale, float(draw.rng.uniform(-45, 45)))


def zoom_blur(x: Tensor, draw: Draw) -> Tensor:
    """Mean of the picture and enlargements of it."""
    most, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[draw.severity - 1]
    factors = np.arange(1, most, step).tolist()
    total = x.clone()
    for factor in factors:
        total += zoom(x, factor)
    return total / (len(factors) + 1)
