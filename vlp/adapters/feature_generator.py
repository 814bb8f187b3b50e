"""Picture features of a class made up from its name and its neighbours (OGEN, 2401.15914, section 3.2)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from vlp.adapters.seen import class_means
from vlp.adapters.task import Examples


class FeatureGenerator(nn.Module):
    """norm(MLP(q) + MHA(q, K, V)): q text features of what is made up, K text and V picture features of neighbours."""

    def __init__(self, width: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads is {heads}, and features of {width} numbers cannot be parted so; set a divisor")
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(
        self, query: Float[Tensor, "B m D"], key: Float[Tensor, "B k D"], value: Float[Tensor, "B k D"]
    ) -> Float[Tensor, "B*m D"]:
        """Unit features, those of one picture one after the other."""
        seen, _ = self.attention(query, key, value, need_weights=False)
        return normalize(self.mlp(query) + seen, dim=-1).flatten(0, 1)


class Terms(NamedTuple):
    """Cross-entropies of made-up features, and squared distances to true ones."""

    unknown: Tensor
    known: Tensor
    novel: Tensor
    unknown_distance: Tensor
    known_distance: Tensor


class Imagined:
    """What is made up of a batch. Text features take no gradient as inputs of the generator, only as classes to tell.

    Statistics of classes are those of the frozen image tower over the support. Neighbours of a class are the nearest
    by mean picture feature. With `held` a share of the classes is new in each epoch, drawn from `rng`; with `extra`
    the new ones are behind the task's own.
    """

    def __init__(
        self,
        generator: nn.Module,
        support: Examples,
        *,
        classes: int,
        extra: int,
        held: float | None,
        neighbours: int,
        scale: float,
        device: torch.device,
        rng: torch.Generator,
    ) -> None:
        self.generator, self.scale, self.rng = generator, scale, rng
        self.classes, self.extra, self.held, self.wanted = classes, extra, held, neighbours
        self.mean, self.std, self.seen = (x.to(device) for x in statistics(support, classes))
        self.epoch, self.device = 0, device
        known = classes - (0 if held is None else self._held())
        if known < 2 or (held is not None and self._held() < 2):
            raise ValueError(
                f"new: held_out makes {classes - known} of {classes} classes new, and both parts need 2; give more "
                "classes, or another share as `held`"
            )
        self.begin(0)

    def _held(self) -> int:
        assert self.held is not None
        return max(2, math.ceil(self.held * self.classes))

    def begin(self, epoch: int) -> None:
        """Draws the classes that are new in this epoch, and finds the neighbours of the others."""
        self.epoch = epoch
        order = torch.randperm(self.classes, generator=self.rng) if self.held is not None else None
        new = (
            torch.arange(self.classes, self.classes + self.extra) if order is None else order[: self._held()].sort()[0]
        )
        self.novel = new.to(self.device)
        old = torch.ones(self.classes, dtype=torch.bool, device=self.device)
        if order is not None:
            old[self.novel] = False
        self.old = torch.where(old)[0]
        self.place = torch.full((self.classes,), -1, device=self.device)  # of a class among the known ones
        self.place[self.old] = torch.arange(len(self.old), device=self.device)
        self.near = nearest_classes(self.mean, old & self.seen, self.wanted)

    def terms(self, features: Float[Tensor, "B D"], label: Int[Tensor, "B"], weight: Float[Tensor, "C+N D"]) -> Terms:
        """Of the pictures in the batch whose class is not new now; zeros where there is none."""
        rows = torch.where(self.place[label] >= 0)[0]
        if not len(rows) or not self.near.shape[1]:
            nothing = weight.sum() * 0 + sum(p.sum() for p in self.generator.parameters()) * 0
            return Terms(*[nothing] * 5)
        x, y = features[rows], label[rows]
        words, near = weight.detach(), self.near[y]
        own, beside = words[y][:, None], words[near]
        drawn = torch.rand(x.shape[1], generator=self.rng).to(self.device)
        pictures = (self.mean[near] + drawn * self.std[near]).to(x.dtype)
        unknown = self.generator(own, beside, pictures)
        known = self.generator(beside, own, x[:, None])
        closest = (own[:, 0] @ words[self.novel].T).topk(min(self.wanted, len(self.novel)), dim=1).indices
        novel = self.generator(words[self.novel][closest], own, x[:, None])
        old = weight[self.old]
        return Terms(
            cross_entropy(self.scale * unknown @ old.T, self.place[y]),
            cross_entropy(self.scale * known @ old.T, self.place[near].flatten()),
            cross_entropy(self.scale * novel @ weight[self.novel].T, closest.flatten()),
            squared_distance(unknown, x.detach()),
            squared_distance(known, pictures.flatten(0, 1)),
        )


def squared_distance(one: Float[Tensor, "n D"], other: Float[Tensor, "n D"]) -> Tensor:
    """Mean over rows."""
    return (one - other).square().sum(dim=1).mean()


def statistics(support: Examples, classes: int) -> tuple[Float[Tensor, "C D"], Float[Tensor, "C D"], Tensor]:
    """Mean and standard deviation (0 of one picture) of each class, and whether it has a picture."""
    count = support.known.bincount(minlength=classes)
    has = count > 0
    mean = class_means(support.image, support.known, classes).nan_to_num()
    away = (support.image.double() - mean[support.known]).square()
    std = class_means(away, support.known, classes).nan_to_num().sqrt()
    return mean.float(), std.float(), has


def nearest_classes(mean: Float[Tensor, "C D"], among: Tensor, wanted: int) -> Int[Tensor, "C k"]:
    """Up to `wanted` classes of `among` of highest inner product of mean features with each class, itself left out."""
    alike = (mean @ mean.T).masked_fill(~among, -torch.inf)
    alike.fill_diagonal_(-torch.inf)
    return alike.topk(max(0, min(wanted, int(among.sum()) - 1)), dim=1).indices
