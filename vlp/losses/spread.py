"""Features kept apart on the sphere, each side by itself: terms beside a contrast."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from vlp import dist
from vlp.kernels.blocks import Block, Impl
from vlp.kernels.masked import masked_nearest, sums_over
from vlp.kernels.recompute import by_rows
from vlp.losses.contrast import Pool, global_mean, pool
from vlp.losses.loss import Loss
from vlp.losses.per_sample import idle
from vlp.types import Batch, Features

Sides = Annotated[tuple[Literal["image", "text"], ...], Field(min_length=1)]


class KoLeo(Loss):
    """KoLeo (arXiv 1806.03198): -mean_i log(min_{j != i} |x_i - x_j| + eps), of each of the `sides`.

    The nearest neighbour is sought in the global batch, and gradient goes to both ends. Our deviations: pairs with
    equal labels are no neighbours, since a contrast pulls them together; eps is 1e-4, where DINOv2 has 1e-8, which lets
    two captions of the same words have a gradient of 1e8. A row without another one gives 0.
    """

    sides: Sides = ("image", "text")
    eps: float = Field(1e-4, gt=0.0, allow_inf_nan=False)
    impl: Impl = "auto"
    block: Block = None

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """One term for each of the sides, "image" or "text"."""
        everyone = pool(features, batch)
        terms = {}
        for name, slots in _sides(everyone, batch, self.sides).items():
            count = torch.stack([valid.sum() for _, valid in slots]).sum().clamp(min=1).to(everyone.image)
            sums = [self._side(x, valid, everyone) for x, valid in slots]
            terms[name] = global_mean(torch.stack(sums).sum(), count) + idle(features, batch)
        return terms

    def _side(self, x: Float[Tensor, "N D"], valid: Bool[Tensor, "N"], everyone: Pool) -> Float[Tensor, ""]:
        """Sum over this rank's rows."""
        own, group = everyone.own, everyone.group
        place, some = masked_nearest(
            x[own], x, row_group=group[own], column_group=group, column_valid=valid, impl=self.impl, block=self.block
        )
        distance = torch.linalg.vector_norm(x[own] - x[place], dim=1)
        return torch.where(valid[own] & some, -(distance + self.eps).log(), 0.0).sum()


class Uniformity(Loss):
    """Uniformity (arXiv 2005.10242): log mean_{i != j} exp(-t |x_i - x_j|^2), of each of the `sides`.

    The mean is over all pairs of valid rows of the global batch; with K captions it is made in each slot, and weighted
    by how many captions the slot has. Fewer than two rows give 0. Our deviation: each side is a term of its own, where
    the authors halve them.
    """

    sides: Sides = ("image", "text")
    t: float = Field(2.0, gt=0.0, allow_inf_nan=False)
    impl: Impl = "auto"
    block: Block = None

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """One term for each of the sides, "image" or "text"."""
        everyone = pool(features, batch)
        terms = {}
        for name, slots in _sides(everyone, batch, self.sides).items():
            counts = torch.stack([valid.sum() for _, valid in slots]).to(everyone.image)
            values = torch.stack([self._side(x, valid, everyone.own) for x, valid in slots])
            terms[name] = (values * counts).sum() / counts.sum().clamp(min=1) + idle(features, batch)
        return terms

    def _side(self, x: Float[Tensor, "N D"], valid: Bool[Tensor, "N"], own: slice) -> Float[Tensor, ""]:
        """The global value, on every rank alike: the gather adds up their gradients, DDP's mean divides them again."""
        place = torch.arange(len(x), device=x.device)

        def tile(rows: Tensor, at: Tensor) -> tuple[Tensor, ...]:
            return sums_over(2 * self.t * (rows @ x.T - 1), (at[:, None] != place) & valid)

        sums, _ = by_rows(tile, x[own], place[own], num_columns=len(x), impl=self.impl, block=self.block)
        total, _ = sums_over(dist.gather(sums)[None], valid[None])
        count = valid.sum().to(x)
        return torch.where(count > 1, total[0] - (count * (count - 1)).clamp(min=1).log(), 0.0)


def _sides(everyone: Pool, batch: Batch, sides: Sides) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Rows [N, D] of all ranks and which are valid, by side: pictures once, captions slot by slot."""
    image = (everyone.image, dist.gather_const(batch.valid))
    texts = [(everyone.text[:, k], everyone.real[:, k]) for k in range(everyone.text.shape[1])]
    return {side: [image] if side == "image" else texts for side in sides}
