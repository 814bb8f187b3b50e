"""Matching of whole distributions: what a row likes against who has its identity."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from vlp import dist
from vlp.kernels.blocks import Block, Impl, full
from vlp.kernels.recompute import by_rows
from vlp.losses.contrast import Pool, global_mean, pool
from vlp.losses.loss import Loss
from vlp.types import Batch, Features


class SDM(Loss):
    """Similarity distribution matching (IRRA, arXiv 2303.12501): KL(P_i || Q_i + eps), both directions added.

    P_i is the softmax of the cosines over tau, Q_i even over the pairs with the label of i (it sums to 1 along its row;
    code of the field normalises columns instead). For PLIP's identity contrast let labels be identities. `temperature`
    is fixed: the learned scale has no part in it. K captions an image as in `infonce`.
    """

    temperature: float = Field(0.02, gt=0.0, allow_inf_nan=False, description="tau of the cosines")
    eps: float = Field(1e-8, gt=0.0, lt=1.0, description="probability of what is no match")
    impl: Impl = "auto"
    block: Block = None

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """The term "contrast"."""
        everyone, how = pool(features, batch), {"eps": self.eps, "impl": self.impl, "block": self.block}
        pictures = everyone.image / self.temperature
        slots = [matching(pictures, everyone, k, **how) for k in range(everyone.text.shape[1])]  # type: ignore[arg-type]
        return {"contrast": global_mean(torch.stack(slots).sum(), everyone.num_captions)}


class CMPM(Loss):
    """Cross-modal projection matching (Zhang and Lu, ECCV 2018; PLIP, arXiv 2305.08386): KL(P_i || Q_i + eps).

    P_i is the softmax over j of x_i.y_j, x the picture's vector as the tower gives it, not of unit norm, y the unit
    caption; Q_i even over the pairs with the label of i, along its row as in `sdm`. Both directions are added. No scale
    and no temperature has a part in it. K captions an image as in `infonce`.

    Our deviation: both directions read the same products, where theirs puts captions of any length against unit
    pictures in the other one.
    """

    eps: float = Field(1e-8, gt=0.0, lt=1.0, description="probability of what is no match")
    impl: Impl = "auto"
    block: Block = None

    cuts: ClassVar[bool] = False

    def heads(self, dual: Any) -> dict[str, nn.Module]:
        return {"cmpm": PooledImage()}

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """The term "contrast"."""
        everyone = pool(features, batch)
        pictures = dist.gather(full(torch.where(batch.valid[:, None], features.extra["cmpm/image"], 0.0)))
        how = {"eps": self.eps, "impl": self.impl, "block": self.block}
        slots = [matching(pictures, everyone, k, **how) for k in range(everyone.text.shape[1])]  # type: ignore[arg-type]
        return {"contrast": global_mean(torch.stack(slots).sum(), everyone.num_captions)}


class PooledImage(nn.Module):
    """The pictures' vectors as long as the tower makes them: "cmpm/image" [B, D]."""

    def forward(self, batch: Batch, towers: Any) -> dict[str, Tensor]:
        return {"cmpm/image": towers.image_pooled}


def matching(
    pictures: Float[Tensor, "N D"], everyone: Pool, k: int, *, eps: float, impl: Impl, block: int | None
) -> Float[Tensor, ""]:
    """Sum over this rank's pairs that have a k-th caption of both directions' divergences; logits are the products."""
    own, group, valid, texts = everyone.own, everyone.group, everyone.real[:, k], everyone.text[:, k]

    def direction(x: Tensor, y: Tensor) -> Tensor:
        def tile(x: Tensor, rows: Tensor) -> Tensor:
            logits = (x @ y.T).masked_fill(~valid, torch.finfo(x.dtype).min)
            matches = ((rows[:, None] == group) & valid).to(x.dtype)
            q = matches / matches.sum(1, keepdim=True).clamp(min=1)
            apart = logits.log_softmax(1) - (q + eps).log()
            return (logits.softmax(1) * apart.masked_fill(~valid, 0.0)).sum(1)

        found = by_rows(tile, x[own], group[own], num_columns=len(y), impl=impl, block=block)
        return torch.where(valid[own], found, 0.0).sum()

    return direction(pictures, texts) + direction(texts, pictures)
