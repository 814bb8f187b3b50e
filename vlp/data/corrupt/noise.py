"""Noise: every value of every pixel is drawn by itself, at the published strength whatever the size of the picture."""

from __future__ import annotations

import torch
from torch import Tensor

from vlp.data.corrupt.fields import Draw


def gaussian_noise(x: Tensor, draw: Draw) -> Tensor:
    sigma = (0.08, 0.12, 0.18, 0.26, 0.38)[draw.severity - 1]
    return x + sigma * draw.normal(*x.shape)


def shot_noise(x: Tensor, draw: Draw) -> Tensor:
    """Counts of so many photons at full brightness."""
    photons = (60, 25, 12, 5, 3)[draw.severity - 1]
    return torch.from_numpy(draw.rng.poisson(x.double().numpy() * photons) / photons).float()


def impulse_noise(x: Tensor, draw: Draw) -> Tensor:
    """This share of the values turns to 0 or 1."""
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[draw.severity - 1]
    drawn = draw.uniform(*x.shape)
    return x.masked_fill(drawn < share, 1.0).masked_fill(drawn < share / 2, 0.0)


def speckle_noise(x: Tensor, draw: Draw) -> Tensor:
    """Noise in proportion to the value."""
    sigma = (0.15, 0.2, 0.35, 0.45, 0.6)[draw.severity - 1]
    return x + x * sigma * draw.normal(*x.shape)
