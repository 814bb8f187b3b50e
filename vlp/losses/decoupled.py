"""Contrast whose positives are not in the denominator: the pull does not fade while the negatives are easy."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from vlp.kernels.blocks import Block, Impl
from vlp.kernels.masked import Masked, masked_logsumexp
from vlp.losses.contrast import Pool, global_mean, pool, positive_counts, positive_sums
from vlp.losses.loss import Loss
from vlp.losses.scale import scale_of
from vlp.types import Batch, Features


class DCL(Loss):
    """Decoupled contrast (arXiv 2110.06848): -s x_i.y_i + log sum_{j != i} exp(s x_i.y_j), both directions.

    Negatives are the other modality's; with `intra` the same modality's too, as in the paper's pictures-only form. Our
    deviations: pairs with equal labels are positives of each other: all of them leave the denominator, and the pull is
    the mean over them. A row without any negative gives 0. K captions an image as in `infonce`.

    With a learned scale it has no lower bound: the scale is held below 100, and belongs on the log.
    """

    intra: bool = Field(False, description="pictures are negatives of pictures too, and captions of captions")
    temperature: float | None = Field(None, gt=0.0, allow_inf_nan=False, description="in place of the learned scale")
    impl: Impl = "auto"
    block: Block = None

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """The term "contrast"."""
        everyone = pool(features, batch)
        scale = scale_of(features, self.temperature)
        slots = [self._slot(everyone, k, scale) for k in range(everyone.text.shape[1])]
        return {"contrast": global_mean(torch.stack(slots).sum(), everyone.num_captions)}

    def weights(self, similarity: Float[Tensor, "N"], valid: Bool[Tensor, "N"]) -> Float[Tensor, "N"]:
        """Weight of the pull of each pair of the global batch, whose cosine with its positives is `similarity`."""
        return torch.ones_like(similarity)

    def _slot(self, everyone: Pool, k: int, scale: Float[Tensor, "1"]) -> Float[Tensor, ""]:
        """Sum over this rank's pairs that have a k-th caption of the mean of both directions."""
        image, text, valid = everyone.image, everyone.text[:, k], everyone.real[:, k]
        return (
            self._direction(_Side(image, text, valid), everyone, scale)
            + self._direction(_Side(text, image, valid), everyone, scale)
        ) / 2

    def _direction(self, side: _Side, everyone: Pool, scale: Float[Tensor, "1"]) -> Float[Tensor, ""]:
        own, valid = everyone.own, side.valid
        similarity = _with_positives(side, everyone)
        pull = scale * (self.weights(similarity.detach(), valid) * similarity)[own]
        push = self._push(side, everyone, scale)
        return torch.where(valid[own] & (push.counts > 0), push.sums - pull, 0.0).sum()

    def _push(self, side: _Side, everyone: Pool, scale: Float[Tensor, "1"]) -> Masked:
        group, own = everyone.group, everyone.own
        over = partial(
            masked_logsumexp,
            scale=scale,
            row_group=group[own],
            column_group=group,
            column_valid=side.valid,
            impl=self.impl,
            block=self.block,
        )
        push = over(side.x[own], side.y)
        if not self.intra:
            return push
        return Masked(torch.logaddexp(push.sums, over(side.x[own], side.x).sums), push.counts)


class DCLW(DCL):
    """DCL with a weight on the pull (arXiv 2110.06848): w_i = 2 - exp(x_i.y_i / sigma) / mean of the same.

    The mean is over the valid pairs of the global batch, and no gradient goes through w. Where labels repeat, x_i.y_i
    is the mean over the positives of i.
    """

    sigma: float = Field(0.5, gt=0.0, allow_inf_nan=False, description="a pair further apart than others pulls more")

    def weights(self, similarity: Float[Tensor, "N"], valid: Bool[Tensor, "N"]) -> Float[Tensor, "N"]:
        """2 - exp(p_i / sigma) / mean, [N]; of mean 1."""
        lowest = torch.finfo(similarity.dtype).min
        shares = (similarity / self.sigma).masked_fill(~valid, lowest).softmax(0)  # a small sigma must not overflow
        return 2 - shares * valid.sum()


class _Side(NamedTuple):
    """One direction: rows x against columns y, [N, D] each, where `valid` [N]."""

    x: Tensor
    y: Tensor
    valid: Tensor


def _with_positives(side: _Side, everyone: Pool) -> Float[Tensor, "N"]:
    """Mean cosine of each row of the global batch with its positives."""
    columns = torch.where(side.valid[:, None], side.y, 0.0)
    whole = slice(0, len(columns))
    counts = positive_counts(side.valid, group=everyone.group, own=whole).clamp(min=1)
    return (side.x * positive_sums(columns, group=everyone.group, own=whole)).sum(1) / counts
