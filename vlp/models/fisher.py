"""Fisher vectors: which shapes and textures a picture has more of than others, without labels and without a network.

Importing this file makes the tower of them known to timm as `fisher_descriptor`; see configs/vlp-fisher-96.json.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.models import register_model
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, normalize, pad

from vlp import dist
from vlp.models.layout import LayoutDescriptor

ANGLES = 8  # directions of edges, round the circle
CELL = 6  # pixels on a side; a patch has 4 x 4 cells
SCALES = (1.0, 0.7)
SAMPLE = 100_000  # patches that the words are fitted to, at most
FLOOR = 1e-3  # least variance of a word, and of an axis


class FisherVector(nn.Module):
    """Patches of pictures [B, M, width] to [B, 2 · words · kept]: how a mixture would have to move to fit them better.

    The gradient of the log likelihood of a mixture of Gaussians ("words") by its means and deviations, in units of its
    Fisher information (Perronnin and Dance 2007; Sanchez et al. 2013), then signed square roots and unit norm
    (Perronnin et al. 2010). Patches are reduced to `kept` whitened axes first. Axes and words are fitted once, to
    patches of the first batch in training, and saved with the weights; a batch gives the same words however many
    processes share it.
    """

    fitted: Tensor
    mean: Tensor
    axes: Tensor
    weight: Tensor
    means: Tensor
    variances: Tensor

    def __init__(self, width: int, *, kept: int, words: int, rounds: int = 25) -> None:
        super().__init__()
        self.rounds = rounds
        self.register_buffer("fitted", torch.zeros(1, dtype=torch.bool))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("axes", torch.eye(width, kept))
        self.register_buffer("weight", torch.full((words,), 1 / words))
        self.register_buffer("means", torch.randn(words, kept))
        self.register_buffer("variances", torch.ones(words, kept))

    def forward(self, patches: Tensor) -> Tensor:
        """Of each picture's patches the vector, [B, 2 · words · kept]."""
        x = (patches - self.mean) @ self.axes
        shares, deviations = self.shares(x), self.variances.sqrt()
        count = shares.sum(1)[..., None]
        first, second = shares.mT @ x, shares.mT @ x.square()
        moved = (first - count * self.means) / deviations
        spread = (second - 2 * self.means * first + count * self.means.square()) / self.variances - count
        rare = x.shape[1] * self.weight.sqrt()[:, None]
        vector = torch.cat([moved / rare, spread / (rare * math.sqrt(2))], dim=1).flatten(1)
        return normalize(vector.sign() * vector.abs().sqrt(), dim=1)

    def shares(self, x: Tensor) -> Tensor:
        """How likely each word made each patch, [..., words], of reduced patches [..., kept]."""
        return self.logits(x).softmax(-1)

    def logits(self, x: Tensor) -> Tensor:
        """Log density of each word times its weight, [..., words]; a constant is left out."""
        inverse = 1 / self.variances
        far = x.square() @ inverse.mT - 2 * x @ (self.means * inverse).mT + (self.means.square() * inverse).sum(1)
        return self.weight.log() - 0.5 * (far + self.variances.log().sum(1))

    def fit(self, patches: Tensor) -> None:
        """Axes by PCA, then the mixture by expectation maximisation, from patches [n, width]."""
        self.mean.copy_(patches.mean(0))
        values, vectors = torch.linalg.eigh(torch.cov((patches - self.mean).mT))
        kept = self.axes.shape[1]
        self.axes.copy_(vectors[:, -kept:] / values[-kept:].clamp_min(FLOOR**2).sqrt())
        x = (patches - self.mean) @ self.axes
        self.means.copy_(x[torch.linspace(0, len(x) - 1, len(self.means), device=x.device).long()])
        for _ in range(self.rounds):
            sums = [
                (s.sum(0), s.mT @ part, s.mT @ part.square()) for part in x.split(20_000) for s in [self.shares(part)]
            ]
            count, first, second = (torch.stack(each).sum(0) for each in zip(*sums, strict=True))
            count = count.clamp_min(1e-3)
            self.weight.copy_(count / count.sum())
            self.means.copy_(first / count[:, None])
            self.variances.copy_((second / count[:, None] - self.means.square()).clamp_min(FLOOR))
        self.fitted.fill_(True)


class FisherDescriptor(nn.Module):
    """Pictures [B, 3, H, W] to [B, 7424]: `LayoutDescriptor` and the Fisher vectors of edges and of colours in patches.

    Patches of 24 x 24 pixels at two scales, each of 4 x 4 cells: of each cell the edges in eight directions (SIFT,
    Lowe 2004; square roots as Arandjelovic and Zisserman 2012), and mean and deviation of red, green and blue
    (Clinchant et al. 2007). Nothing is learned by gradient. All blocks get the same spread, as in `LayoutDescriptor`.
    """

    _weight: Tensor

    def __init__(self, words: int = 32) -> None:
        super().__init__()
        self.layout = LayoutDescriptor()
        self.edges = FisherVector(16 * ANGLES, kept=48, words=words)
        self.colours = FisherVector(16 * 6, kept=32, words=words)
        sizes = (2 * words * 48, 2 * words * 32)
        self.norm = nn.BatchNorm1d(sum(sizes))
        weight = torch.cat([torch.full((size,), (self.layout.spread / size) ** 0.5) for size in sizes])
        self.register_buffer("_weight", weight, persistent=False)
        self.num_features, self.num_prefix_tokens = self.layout.num_features + sum(sizes), 0
        self.default_cfg: dict[str, Any] = {"input_size": (3, 96, 96)}

    def forward(self, image: Tensor) -> Tensor:
        """All descriptors, [B, 7424]."""
        with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            pixels = self.layout.pixels(image)
            if self.training and not self.edges.fitted:
                self.fit(pixels)
            vectors = torch.cat([self.vectors(part) for part in pixels.split(32)])
        return torch.cat([self.layout(image), self.norm(vectors.to(image.dtype)) * self._weight], dim=1)

    def vectors(self, pixels: Tensor) -> Tensor:
        """Fisher vectors of edges and of colours side by side, [B, 5120], of pixels [B, 3, H, W] in [0, 1]."""
        edges, colours = patches(pixels)
        return torch.cat([self.edges(edges), self.colours(colours)], dim=1)

    def fit(self, pixels: Tensor) -> None:
        """Words from patches of the whole batch, the same ones of every picture."""
        each = max(1, SAMPLE // (len(pixels) * dist.world()))
        parts = [[x[:, :: max(1, x.shape[1] // each)] for x in patches(part)] for part in pixels.split(32)]
        for words, found in zip((self.edges, self.colours), zip(*parts, strict=True), strict=True):
            words.fit(dist.gather_const(torch.cat(found)).flatten(0, 1))

    def forward_features(self, image: Tensor) -> Tensor:
        """The descriptors as a map of one place, [B, 7424, 1, 1]: a vector of patches says nothing of their places."""
        return self.forward(image)[:, :, None, None]

    def forward_head(self, x: Tensor) -> Tensor:
        """The descriptors, [B, 7424], of `forward_features`."""
        return x.flatten(1)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Timm's way to take the classifier away; there is none."""

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Timm's words for "all parameters are one group"."""
        return {"stem": r".*"}


def patches(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Edges [B, M, 128] and colours [B, M, 96] of the patches of pictures [B, 3, H, W] in [0, 1], at all scales."""
    edges, colours = [], []
    for scale in SCALES:
        shown = pixels if scale == 1 else interpolate(pixels, scale_factor=scale, mode="bilinear", antialias=True)
        if min(shown.shape[-2:]) < 4 * CELL:
            break
        mean = avg_pool2d(shown, CELL, stride=2)
        spread = (avg_pool2d(shown.square(), CELL, stride=2) - mean.square()).clamp_min(0).sqrt()
        colours.append(_joined(torch.cat([mean, spread], dim=1)))
        found = _joined(avg_pool2d(turned_edges(shown), CELL, stride=2))
        edges.append((found / (found.sum(2, keepdim=True) + 0.02)).sqrt())
    if not edges:
        height, width = pixels.shape[-2:]
        raise ValueError(
            f"fisher_descriptor: a picture of {height} x {width} pixels has no patch of {4 * CELL} x {4 * CELL}; "
            "set model.image_size to 64 or more"
        )
    return torch.cat(edges, dim=1), torch.cat(colours, dim=1)


def turned_edges(pixels: Tensor) -> Tensor:
    """How much brightness changes towards each of eight directions, [B, 8, H, W]; shared between the two nearest."""
    grey = pixels.mean(1, keepdim=True)
    across = pad(grey[..., 2:] - grey[..., :-2], (1, 1))[:, 0]
    down = pad(grey[..., 2:, :] - grey[..., :-2, :], (0, 0, 1, 1))[:, 0]
    angle = torch.atan2(down, across) / (2 * math.pi) % 1 * ANGLES
    away = (angle[:, None] - torch.arange(ANGLES, device=pixels.device)[:, None, None]).abs()
    near = (1 - torch.minimum(away, ANGLES - away)).clamp_min(0)
    return near * torch.hypot(across, down)[:, None]


def _joined(cells: Tensor) -> Tensor:
    """What the 4 x 4 cells of each patch hold, [B, M, 16 C], of cells [B, C, h, w] that lie 2 pixels apart."""
    step, height, width = CELL // 2, cells.shape[2] - 9, cells.shape[3] - 9
    corners = [(y * step, x * step) for y in range(4) for x in range(4)]
    return torch.cat([cells[..., y : y + height : 2, x : x + width : 2] for y, x in corners], dim=1).flatten(2).mT


@register_model  # type: ignore[untyped-decorator]
def fisher_descriptor(pretrained: bool = False, **settings: Any) -> FisherDescriptor:
    """The tower by timm's rules; there are no published weights."""
    return FisherDescriptor()
