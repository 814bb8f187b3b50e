"""An image tower that sees colours alone: the histogram of a picture, for sets too small to learn shapes from.

Importing this file makes it known to timm as `colour_histogram`; see configs/vlp-colours-64.json.
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from timm.models import register_model
from torch import Tensor, nn
from torch.nn.functional import one_hot


class ColourHistogram(nn.Module):
    """Pictures [B, 3, H, W] to [B, bins^3]: shares of hue, saturation and value (Swain and Ballard 1991).

    Ours: HSV in place of opponent colours, and the square root of each share, whose dot product is the Bhattacharyya
    coefficient; then BatchNorm, so that rare colours count as much as white. Pictures come normalised as CLIP's.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(self, bins: int = 8) -> None:
        super().__init__()
        self.bins, self.num_features, self.num_prefix_tokens = bins, bins**3, 0
        self.default_cfg: dict[str, Any] = {"input_size": (3, 64, 64)}
        self.norm = nn.BatchNorm1d(self.num_features)
        self.register_buffer("_mean", torch.tensor(OPENAI_DATASET_MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(OPENAI_DATASET_STD).reshape(3, 1, 1), persistent=False)

    def colours(self, image: Tensor) -> Tensor:
        """Number of the colour of each pixel, [B, H, W]: hue, then saturation, then value."""
        red, green, blue = (image * self._std + self._mean).clamp(0, 1).float().unbind(1)
        top, low = torch.stack([red, green, blue]).amax(0), torch.stack([red, green, blue]).amin(0)
        span = top - low
        apart = span.clamp_min(1e-6)
        hue = torch.where(top == green, (blue - red) / apart + 2, (red - green) / apart + 4)
        hue = torch.where(top == red, ((green - blue) / apart) % 6, hue) / 6
        hue = torch.where(span < 1e-6, 0.0, hue)
        found = torch.zeros_like(hue, dtype=torch.long)
        for part in (hue, span / top.clamp_min(1e-6), top):
            found = found * self.bins + (part * self.bins).long().clamp(0, self.bins - 1)
        return found

    def forward_features(self, image: Tensor) -> Tensor:
        """One-hot colours, [B, bins^3, H, W]."""
        return one_hot(self.colours(image), self.num_features).movedim(-1, 1).to(image.dtype)

    def forward_head(self, x: Tensor) -> Tensor:
        """Shares of a map of colours, of unit spread each."""
        normed: Tensor = self.norm(x.mean(dim=(2, 3)).sqrt())
        return normed

    def forward(self, image: Tensor) -> Tensor:
        """The same without the map, which would be some thousand times the picture."""
        colours = self.colours(image).flatten(1)
        counts = torch.zeros(len(colours), self.num_features, device=image.device)
        counts.scatter_add_(1, colours, torch.ones_like(colours, dtype=counts.dtype))
        normed: Tensor = self.norm((counts / colours.shape[1]).sqrt().to(image.dtype))
        return normed

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Timm's way to take the classifier away; there is none."""

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Timm's words for "all parameters are one group"."""
        return {"stem": r".*"}


@register_model  # type: ignore[untyped-decorator]
def colour_histogram(pretrained: bool = False, **settings: Any) -> ColourHistogram:
    """The tower by timm's rules; there are no published weights."""
    return ColourHistogram(bins=int(settings.get("bins", 8)))
