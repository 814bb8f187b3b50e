"""Regions of pictures: proposals around given boxes, their overlap with these, and crops for a frozen image tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

BACKGROUND = -1  # the class of a region that shows no object well enough


@dataclass(frozen=True)
class Regions:
    """Unit features [n, D] of crops, the class of the object that each overlaps most, and how much (IoU)."""

    image: Float[Tensor, "n D"]
    label: Int[Tensor, "n"]
    iou: Float[Tensor, "n"]

    def __post_init__(self) -> None:
        if not len(self.image) == len(self.label) == len(self.iou):
            raise ValueError(f"{len(self.image)} crops, {len(self.label)} labels and {len(self.iou)} overlaps")

    def __len__(self) -> int:
        return len(self.image)

    def only(self, rows: Tensor) -> Regions:
        """These regions."""
        return Regions(self.image[rows], self.label[rows], self.iou[rows])


@dataclass(frozen=True)
class RegionTask:
    """Classes of objects, and regions to learn from.

    names: the classes that may be learned. others: classes that are only named when all is learned, never shown; a
    region of one of them in `support` must not be there. templates: sentences with a slot for the name. seed: of all
    that is random.
    """

    names: Sequence[str]
    others: Sequence[str] = ()
    templates: Sequence[str] = ("{}",)
    support: Regions | None = field(default=None, compare=False)
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            raise ValueError(f"regions are told apart by at least 2 class names, got {list(self.names)}")
        twice = set(self.names) & set(self.others)
        if twice:
            raise ValueError(f'"{min(twice)}" is a class to learn and one of the others; the others are never learned')
        if self.support is not None and len(self.support) and int(self.support.label.max()) >= len(self.names):
            raise ValueError(
                f"support has a region of class {int(self.support.label.max())}, and {len(self.names)} classes are "
                f"learned; leave regions of other classes out, or give them {BACKGROUND}"
            )


class Proposals(NamedTuple):
    """Boxes [n, 4] (x0, y0, x1, y1) in pixels, class and overlap of each with the given box that it overlaps most."""

    boxes: Float[Tensor, "n 4"]
    label: Int[Tensor, "n"]
    iou: Float[Tensor, "n"]


def overlaps(a: Float[Tensor, "n 4"], b: Float[Tensor, "m 4"]) -> Float[Tensor, "n m"]:
    """Intersection over union of boxes (x0, y0, x1, y1); 0 for a box without area."""
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clamp_min(0).prod(dim=-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp_min(0).prod(dim=-1) for boxes in (a, b)]
    return shared / (areas[0][:, None] + areas[1][None] - shared).clamp_min(1e-12)


def jittered(
    boxes: Float[Tensor, "m 4"],
    label: Int[Tensor, "m"],
    *,
    size: tuple[int, int],
    each: int,
    jitter: float,
    generator: torch.Generator,
) -> Proposals:
    """The given boxes, and `each` proposals around every one of them, within a picture of this height and width.

    A proposal's centre is moved by up to `jitter` sides and its sides are stretched by up to 1 + jitter, evenly in
    logarithms, each by a share of its own of that: so all overlaps from none to nearly whole come about.
    """
    if not len(boxes):
        return Proposals(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    whole = boxes.double()
    centre, side = (whole[:, :2] + whole[:, 2:]) / 2, (whole[:, 2:] - whole[:, :2]).clamp_min(1)
    drawn = torch.rand(each, len(boxes), 5, generator=generator, dtype=torch.float64)
    share = jitter * drawn[..., 4:]
    moved = centre + share * (2 * drawn[..., :2] - 1) * side
    stretched = side * torch.exp((2 * drawn[..., 2:4] - 1) * torch.log1p(share))
    made = torch.cat([moved - stretched / 2, moved + stretched / 2], dim=-1).flatten(0, 1)
    made = torch.cat([whole, made])
    limit = torch.tensor([size[1], size[0], size[1], size[0]], dtype=torch.float64)
    made = made.clamp_min(0).minimum(limit)
    made = made[((made[:, 2:] - made[:, :2]) >= 1).all(dim=1)]
    iou, nearest = overlaps(made, whole).max(dim=1)
    return Proposals(made.float(), label[nearest], iou.float())


class Crops:
    """Pictures cut out of others, for `Encoder.images`; wanted: number of the picture, and box.

    A box is widened by `margin` of its sides on each side, as far as the picture goes.
    """

    def __init__(self, pictures: Any, wanted: Sequence[tuple[int, Sequence[float]]], *, margin: float = 0.0) -> None:
        self.pictures, self.wanted, self.margin = pictures, wanted, margin
        self._last: tuple[int, Any] | None = None

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, index: int) -> Any:
        number, (x0, y0, x1, y1) = self.wanted[index]
        if self._last is None or self._last[0] != number:  # the boxes of a picture come in a row
            self._last = number, self._whole(number)
        whole, (dx, dy) = self._last[1], (self.margin * (x1 - x0), self.margin * (y1 - y0))
        left, top = max(0, int(x0 - dx)), max(0, int(y0 - dy))
        right, bottom = min(whole.width, -int(-(x1 + dx) // 1)), min(whole.height, -int(-(y1 + dy) // 1))
        return whole.crop((left, top, max(right, left + 1), max(bottom, top + 1)))

    def _whole(self, number: int) -> Any:
        """The picture as RGB (PIL)."""
        pixels = self.pictures(number)
        return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
