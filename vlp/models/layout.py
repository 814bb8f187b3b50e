"""An image tower that sees where colours and edges are, and no shapes: for sets too small to learn these from.

Importing this file makes it known to timm as `layout_descriptor`; see configs/vlp-layout-64.json.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from timm.models import register_model
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, one_hot, pad

FINE = 8  # bins of hue, of saturation and of value in the whole picture
COARSE = 3  # and in each cell
ANGLES = 4  # directions of edges, in each block of 2 x 2 cells
CELLS = 8  # on each side


class LayoutDescriptor(nn.Module):
    """Pictures [B, 3, H, W] to [B, 2304]: three descriptors side by side, none of which is learned.

    Colours of the whole picture (Swain and Ballard 1991), coarser ones of each of 8 x 8 cells (a level of the spatial
    pyramid, Lazebnik et al. 2006), and directions of edges in 4 x 4 blocks of cells (Dalal and Triggs 2005). Ours:
    colours in HSV; edges as shares of all edges of the picture; the square root of each share, whose dot product is the
    Bhattacharyya coefficient; then BatchNorm, so that rare colours count as much as white, and the same spread for
    each of the three descriptors, however many numbers it has. Pictures come normalised as CLIP's, their sides
    multiples of 8.
    """

    _mean: Tensor
    _std: Tensor
    _weight: Tensor
    _repeats: Tensor

    def __init__(self) -> None:
        super().__init__()
        sizes = (FINE**3, COARSE**3 * CELLS**2, ANGLES * (CELLS // 2) ** 2)
        self.num_features, self.num_prefix_tokens = sum(sizes), 0
        self.default_cfg: dict[str, Any] = {"input_size": (3, 64, 64)}
        self.norm = nn.BatchNorm1d(self.num_features)
        self.spread = self.num_features / len(sizes)  # of each descriptor: sum of its variances in training
        weight = torch.cat([torch.full((size,), (self.spread / size) ** 0.5) for size in sizes])
        # By descriptor the number of what a cell holds: colours and angles come again for each cell or block.
        holds = torch.tensor([1] * FINE**3 + [CELLS**2] * COARSE**3 + [(CELLS // 2) ** 2] * ANGLES)
        self.register_buffer("_repeats", torch.arange(len(holds)).repeat_interleave(holds), persistent=False)
        self.register_buffer("_weight", weight, persistent=False)
        self.register_buffer("_mean", torch.tensor(OPENAI_DATASET_MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(OPENAI_DATASET_STD).reshape(3, 1, 1), persistent=False)

    def pixels(self, image: Tensor) -> Tensor:
        """Red, green and blue in [0, 1], [B, 3, H, W], of normalised pictures."""
        return (image * self._std + self._mean).clamp(0, 1).float()

    def cells(self, image: Tensor) -> Tensor:
        """Shares of fine and coarse colours and sums of edges of each cell, [B, 8^3 + 3^3 + 4, 8, 8]."""
        pixels = self.pixels(image)
        parts = hsv(pixels)
        maps = [_shares(_binned(parts, bins), bins**3) for bins in (FINE, COARSE)]
        return torch.cat([*maps, edges(pixels)], dim=1).to(image.dtype)

    def describe(self, cells: Tensor) -> Tensor:
        """The three descriptors, [B, 2304], of cells [B, 8^3 + 3^3 + 4, 8, 8]."""
        fine, coarse, edge = cells.split([FINE**3, COARSE**3, ANGLES], dim=1)
        edge = adaptive_avg_pool2d(edge, CELLS // 2).flatten(1)
        edge = edge / edge.sum(dim=1, keepdim=True).clamp_min(1e-6)
        shares = torch.cat([fine.mean(dim=(2, 3)), coarse.flatten(1), edge], dim=1)
        normed: Tensor = self.norm(shares.sqrt()) * self._weight
        return normed

    def forward(self, image: Tensor) -> Tensor:
        """The three descriptors, [B, 2304]."""
        return self.describe(self.cells(image))

    def forward_features(self, image: Tensor) -> Tensor:
        """For each cell the shares and sums of a picture that is like it all over, [B, 2304, 8, 8]."""
        return self.cells(image)[:, self._repeats]

    def forward_head(self, x: Tensor) -> Tensor:
        """The three descriptors, [B, 2304], of `forward_features`, or of one cell of it, [B, 2304, 1, 1]."""
        firsts = torch.searchsorted(self._repeats, torch.arange(int(self._repeats[-1]) + 1, device=x.device))
        return self.describe(x[:, firsts].expand(-1, -1, CELLS, CELLS))

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Timm's way to take the classifier away; there is none."""

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Timm's words for "all parameters are one group"."""
        return {"stem": r".*"}


def hsv(pixels: Tensor) -> Tensor:
    """Hue, saturation and value in [0, 1], [3, B, H, W], of red, green and blue in [0, 1], [B, 3, H, W]."""
    red, green, blue = pixels.unbind(1)
    top, low = pixels.amax(1), pixels.amin(1)
    span = top - low
    apart = span.clamp_min(1e-6)
    hue = torch.where(top == green, (blue - red) / apart + 2, (red - green) / apart + 4)
    hue = torch.where(top == red, ((green - blue) / apart) % 6, hue) / 6
    hue = torch.where(span < 1e-6, 0.0, hue)
    return torch.stack([hue, span / top.clamp_min(1e-6), top])


def edges(pixels: Tensor) -> Tensor:
    """How much brightness changes along each of four directions in each cell, [B, 4, 8, 8], of pixels [B, 3, H, W]."""
    grey = pixels.mean(1, keepdim=True)
    across = pad(grey[..., 2:] - grey[..., :-2], (1, 1))[:, 0]
    down = pad(grey[..., 2:, :] - grey[..., :-2, :], (0, 0, 1, 1))[:, 0]
    angle = (torch.atan2(down, across) / math.pi % 1 * ANGLES).long().clamp_max(ANGLES - 1)
    change = one_hot(angle, ANGLES).movedim(-1, 1) * torch.hypot(across, down)[:, None]
    pooled: Tensor = adaptive_avg_pool2d(change, CELLS)
    return pooled


def _binned(parts: Tensor, bins: int) -> Tensor:
    """Number of the colour of each pixel, [B, H, W]: hue, then saturation, then value."""
    hue, saturation, value = (parts * bins).long().clamp(0, bins - 1).unbind()
    return (hue * bins + saturation) * bins + value


def _shares(numbers: Tensor, colours: int) -> Tensor:
    """Share of each colour in each cell, [B, colours, 8, 8], of numbers [B, H, W]."""
    height, width = numbers.shape[1:]
    if height % CELLS or width % CELLS:
        raise ValueError(
            f"layout_descriptor: a picture of {height} x {width} pixels does not fall into {CELLS} x {CELLS} equal "
            f"cells; set model.image_size to a multiple of {CELLS}"
        )
    rows, columns = (torch.arange(side, device=numbers.device) * CELLS // side for side in (height, width))
    at = (numbers * CELLS + rows[:, None]) * CELLS + columns
    counts = torch.zeros(len(numbers), colours * CELLS**2, device=numbers.device)
    counts.scatter_add_(1, at.flatten(1), torch.ones_like(at.flatten(1), dtype=counts.dtype))
    counts *= CELLS**2 / (height * width)
    return counts.view(-1, colours, CELLS, CELLS)


@register_model  # type: ignore[untyped-decorator]
def layout_descriptor(pretrained: bool = False, **settings: Any) -> LayoutDescriptor:
    """The tower by timm's rules; there are no published weights."""
    return LayoutDescriptor()
