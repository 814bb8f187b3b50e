"""Snow, frost, fog and spatter, all drawn: no photographs of them are needed."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vlp.data.corrupt.fields import Draw, beside, plasma, smooth, streak, zoom

LUMA = (0.299, 0.587, 0.114)


def fog(x: Tensor, draw: Draw) -> Tensor:
    """A cloud added, and all of it scaled back to the brightest value of the picture."""
    amount, decay = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))[draw.severity - 1]
    brightest = float(x.max())
    height, width = x.shape[-2:]
    cloud = plasma(height, width, decay, draw.rng)
    return (x + amount * cloud) * (brightest / (brightest + amount))


def snow(x: Tensor, draw: Draw) -> Tensor:
    """Streaks of bright flakes, as they are and turned round, over a whitened picture; no flake is below a pixel."""
    mean, sigma, flake, threshold, radius, spread, keep = (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    )[draw.severity - 1]
    layer = zoom(mean + sigma * draw.normal(1, *x.shape[-2:]), max(1.0, flake * draw.scale))
    layer = layer.masked_fill(layer < threshold, 0.0).clamp(0, 1)
    layer = streak(layer, radius * draw.scale, spread * draw.scale, float(draw.rng.uniform(-135, -45)))
    grey = torch.einsum("c,chw->hw", torch.tensor(LUMA), x)
    whitened = keep * x + (1 - keep) * torch.maximum(x, grey * 1.5 + 0.5)
    return whitened + layer + layer.rot90(2, dims=(1, 2))


def frost(x: Tensor, draw: Draw) -> Tensor:
    """The published mixture of picture and frost; the frost is drawn, where theirs is cut out of photographs."""
    keep, add = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[draw.severity - 1]
    height, width = x.shape[-2:]
    return keep * x + add * _ice(height, width, draw)


def _ice(height: int, width: int, draw: Draw) -> Tensor:
    """[3, h, w] in 0..1: a cold cloud, fine cracks, and feathers of crystals, most of them from the edges inward."""
    cloud, crack = plasma(height, width, 1.6, draw.rng), plasma(height, width, 1.35, draw.rng)
    cracks = (1 - (2 * crack - 1).abs()) ** 8
    feathers = smooth(_feathers(height, width, draw), 0.6 * draw.scale)
    value = (0.2 + 0.45 * cloud + 0.3 * cracks + 0.6 * feathers).clamp(0, 1)
    tint = torch.tensor([0.88, 0.95, 1.0])[:, None, None]
    return value ** (1 / tint)


def _feathers(height: int, width: int, draw: Draw) -> Tensor:
    """[h, w] in 0..1: stems with twigs at 60 degrees, the longer the nearer to the root."""
    canvas = Image.new("L", (width, height))
    pen, side = ImageDraw.Draw(canvas), min(height, width)
    thin = max(1, round(draw.scale))
    for number in range(44):
        y, x, angle = _root(height, width, draw.rng, inside=number % 3 == 0)
        steps, length = int(draw.rng.integers(8, 22)), side * float(draw.rng.uniform(0.012, 0.03))
        glow = int(draw.rng.integers(110, 256))
        for step in range(steps):
            angle += float(draw.rng.normal(0, 0.06))
            ahead = (x + length * math.cos(angle), y + length * math.sin(angle))
            pen.line([(x, y), ahead], fill=glow, width=thin + (step < steps // 3))
            for turn in (-math.pi / 3, math.pi / 3):
                reach = length * 0.45 * (steps - step) * float(draw.rng.uniform(0.5, 1.0))
                tip = (ahead[0] + reach * math.cos(angle + turn), ahead[1] + reach * math.sin(angle + turn))
                pen.line([ahead, tip], fill=glow * 2 // 3, width=thin)
            x, y = ahead
    return torch.from_numpy(np.array(canvas)).float() / 255


def _root(height: int, width: int, rng: np.random.Generator, *, inside: bool) -> tuple[float, float, float]:
    """Row, column and direction of a stem: any point and direction, or a point on an edge, pointing inward."""
    if inside:
        return float(rng.uniform(0, height)), float(rng.uniform(0, width)), float(rng.uniform(-math.pi, math.pi))
    edge, along = int(rng.integers(4)), float(rng.random())
    y, x = (
        (0.0, along * width),
        (along * height, float(width)),
        (float(height), along * width),
        (along * height, 0.0),
    )[edge]
    inward = (math.pi / 2, math.pi, -math.pi / 2, 0.0)[edge]
    return y, x, inward + float(rng.uniform(-0.9, 0.9))


def spatter(x: Tensor, draw: Draw) -> Tensor:
    """Drops of water (severities 1 to 3) or mud: where a smoothed noise is above a threshold.

    The published shares of the picture are kept at every size. Water is lit from the upper left by a relief of its own
    drops, where the published one comes from their edges by way of a distance transform and an equalised histogram.
    """
    mean, sigma, blur, threshold, strength, mud = (
        (0.65, 0.3, 4, 0.69, 0.6, False),
        (0.65, 0.3, 3, 0.68, 0.6, False),
        (0.65, 0.3, 2, 0.68, 0.5, False),
        (0.65, 0.3, 1, 0.65, 1.5, True),
        (0.67, 0.4, 1, 0.65, 1.5, True),
    )[draw.severity - 1]
    scale = max(draw.scale, 1 / blur)  # no drop below a pixel
    noise = smooth(draw.normal(*x.shape[-2:]), blur * scale)
    noise = (noise - noise.mean()) / noise.std(correction=0).clamp_min(1e-9)
    layer = mean + sigma / (2 * math.sqrt(math.pi) * blur) * noise  # the deviation that the blur leaves at 224 pixels
    wet = (layer > threshold).float()
    if mud:
        cover = smooth(wet, strength * scale)
        cover = cover.masked_fill(cover < 0.8, 0.0)
        return x * (1 - cover) + cover * torch.tensor([63.0, 42.0, 20.0])[:, None, None] / 255
    step, relief = max(1, round(scale)), smooth(wet, 1.5 * scale)
    light = (wet * (relief + 2 * (beside(relief, step, step) - beside(relief, -step, -step)))).clamp_min(0)
    light = strength * light / light.max().clamp_min(1e-9)
    return x + light * torch.tensor([175.0, 238.0, 238.0])[:, None, None] / 255
