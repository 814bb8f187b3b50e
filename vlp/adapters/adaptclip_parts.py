"""What AdaptCLIP learns (2505.09926): adapters of what is seen, and of how it differs from normal pictures; their loss.

Letters: B pictures, P patches, R patches of normal pictures, W width, L levels of features. Classes: normal, anomalous.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, normalize

from vlp.adapters.dense_task import IGNORED, PatchMaps
from vlp.adapters.pixel_training import enlarged

MOST = 10  # patches whose mean stands beside the mean of all, in each channel


class Judged(NamedTuple):
    """Logits [B, 2] of pictures and probabilities [B, 2, h, w] of places."""

    image: Tensor
    places: Tensor


class Compared(NamedTuple):
    """One judgement a level, and how far patches are from the nearest normal one, 1 - cosine [B, 1, h, w]."""

    judged: list[Judged]
    apart: list[Tensor]


def judged(
    maps: PatchMaps, image: Tensor, patches: Tensor, words: Float[Tensor, "2 D"], *, temperature: float
) -> Judged:
    """Softmax over the two words, of whole pictures [B, D] and of their patches [B, P, D]."""
    return Judged(image @ words.T / temperature, maps.as_map((patches @ words.T / temperature).softmax(dim=-1)))


class Residual(nn.Module):
    """x + MLP(x) of vectors [n, D] through D / reduction; it starts as x, since the last layer starts at zero."""

    def __init__(self, dim: int, reduction: int) -> None:
        super().__init__()
        narrow = max(1, dim // reduction)
        self.inside = nn.Sequential(nn.Linear(dim, narrow, bias=False), nn.BatchNorm1d(narrow), nn.ReLU())
        self.out = nn.Linear(narrow, dim, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        found: Tensor = x + self.out(self.inside(x))
        return found


class VisualAdapter(nn.Module):
    """Unit features of pictures and patches that frozen words fit better."""

    def __init__(self, dim: int, reduction: int) -> None:
        super().__init__()
        self.whole, self.places = Residual(dim, reduction), Residual(dim, reduction)

    def forward(self, maps: PatchMaps) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B P D"]]:
        """Adapted pictures and patches."""
        patches = self.places(maps.patches.flatten(0, 1)).unflatten(0, maps.patches.shape[:2])
        return normalize(self.whole(maps.image), dim=-1), normalize(patches, dim=-1)


class PromptQuery(nn.Module):
    """Anomalies by comparison: each patch q with the nearest patch p of normal pictures, as q + |q - p|.

    widths: of the levels of features. Every level has heads of its own; the released code shares one set among all
    levels while each has its own normalisation.
    """

    def __init__(self, widths: list[int], middle: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.places = nn.ModuleList(_places(width, middle) for width in widths)
        self.whole = nn.ModuleList(_whole(width, middle) for width in widths)

    def forward(self, queries: list[Tensor], normals: list[Tensor], grid: tuple[int, int]) -> Compared:
        """queries: [B, P, W] and normals: [B, R, W] or [R, W], unit vectors, one a level."""
        found = Compared([], [])
        for query, normal, norm, places, whole in zip(queries, normals, self.norms, self.places, self.whole):
            difference, apart = compared(query, normal)
            joint = norm((query + difference).transpose(1, 2).unflatten(2, grid))
            flat = joint.flatten(2)
            most = flat.topk(min(MOST, flat.shape[2]), dim=2).values.mean(dim=2)
            image = whole((flat.mean(dim=2) + most) / 2)
            found.judged.append(Judged(image, places(joint).softmax(dim=1)))
            found.apart.append(apart.unflatten(1, grid)[:, None])
        return found


def compared(query: Float[Tensor, "B P W"], normal: Tensor) -> tuple[Float[Tensor, "B P W"], Float[Tensor, "B P"]]:
    """|q - p| with the nearest p of `normal` ([B, R, W] or [R, W]) by cosine, and 1 - that cosine."""
    normal = normal.expand(len(query), -1, -1)
    cosine, place = (query @ normal.transpose(1, 2)).max(dim=2)
    nearest = normal.gather(1, place[..., None].expand_as(query))
    return (query - nearest).abs(), 1 - cosine


def _places(width: int, middle: int) -> nn.Sequential:
    """Logits [B, 2, 4 h, 4 w] of maps [B, W, h, w]."""
    narrow = max(1, middle // 2)
    return nn.Sequential(
        nn.Conv2d(width, middle, 3, padding=1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(),
        nn.ConvTranspose2d(middle, middle, 2, stride=2),
        nn.Conv2d(middle, narrow, 3, padding=1, bias=False),
        nn.BatchNorm2d(narrow),
        nn.ReLU(),
        nn.ConvTranspose2d(narrow, narrow, 2, stride=2),
        nn.Conv2d(narrow, 2, 1),
    )


def _whole(width: int, middle: int) -> nn.Sequential:
    """Logits [B, 2] of vectors [B, W]."""
    narrow = max(1, middle // 2)
    return nn.Sequential(
        nn.Linear(width, middle, bias=False),
        nn.BatchNorm1d(middle),
        nn.ReLU(),
        nn.Linear(middle, narrow, bias=False),
        nn.BatchNorm1d(narrow),
        nn.ReLU(),
        nn.Linear(narrow, 2, bias=False),
    )


def anomaly_loss(found: Judged, label: Int[Tensor, "B"], mask: Int[Tensor, "B H W"]) -> Tensor:
    """Cross-entropy of pictures + focal loss + Dice loss of the anomalous and of the normal pixels.

    Pixels that are ignored count nowhere.
    """
    normal, anomalous = enlarged(found.places, (mask.shape[1], mask.shape[2])).unbind(dim=1)
    counted = (mask != IGNORED).float()
    truth = (mask == 1).float()
    right = torch.where(mask == 1, anomalous, normal)
    focal = -((1 - right) ** 2) * (right + 1e-5).log()
    dice = _dice(anomalous * counted, truth) + _dice(normal * counted, (mask == 0).float())
    return cross_entropy(found.image, label) + (focal * counted).sum() / counted.sum().clamp_min(1) + dice


def _dice(share: Float[Tensor, "B H W"], truth: Float[Tensor, "B H W"]) -> Tensor:
    """1 - Dice coefficient, a mean over pictures, with 1 added above and below."""
    both = (share * truth).flatten(1).sum(dim=1)
    return (1 - (2 * both + 1) / (share.flatten(1).sum(dim=1) + truth.flatten(1).sum(dim=1) + 1)).mean()


def harmonic(scores: list[Tensor]) -> Tensor:
    """Harmonic mean, element by element, of scores that are not negative; 0 where one of them is."""
    return len(scores) / torch.stack([1 / one.clamp_min(1e-12) for one in scores]).sum(dim=0)


def arithmetic(scores: list[Tensor]) -> Tensor:
    """Mean, element by element."""
    return torch.stack(scores).mean(dim=0)


def of_one_size(maps: list[Float[Tensor, "B h w"]]) -> list[Float[Tensor, "B H W"]]:
    """The maps, interpolated to the largest of them."""
    size = max((one.shape[1], one.shape[2]) for one in maps)
    return [interpolate(one[:, None], size=size, mode="bilinear", align_corners=False)[:, 0] for one in maps]
