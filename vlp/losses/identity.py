"""Matching of whole distributions: what a row likes against who has its identity."""

from __future__ import annotations

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from vlp.kernels.blocks import Block, Impl
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
        everyone = pool(features, batch)
        slots = []
        for k in range(everyone.text.shape[1]):
            image, text = everyone.image, everyone.text[:, k]
            slots += [self._direction(image, text, everyone, k), self._direction(text, image, everyone, k)]
        return {"contrast": global_mean(torch.stack(slots).sum(), everyone.num_captions)}

    def _direction(self, x: Float[Tensor, "N D"], y: Float[Tensor, "N D"], everyone: Pool, k: int) -> Float[Tensor, ""]:
        """Sum of the divergences of this rank's rows that have a k-th caption."""
        own, group, valid = everyone.own, everyone.group, everyone.real[:, k]

        def tile(x: Tensor, rows: Tensor) -> Tensor:
            logits = (x @ y.T / self.temperature).masked_fill(~valid, torch.finfo(x.dtype).min)
            matches = ((rows[:, None] == group) & valid).to(x.dtype)
            q = matches / matches.sum(1, keepdim=True).clamp(min=1)
            apart = logits.log_softmax(1) - (q + self.eps).log()
            return (logits.softmax(1) * apart.masked_fill(~valid, 0.0)).sum(1)

        found = by_rows(tile, x[own], group[own], num_columns=len(y), impl=self.impl, block=self.block)
        return torch.where(valid[own], found, 0.0).sum()
