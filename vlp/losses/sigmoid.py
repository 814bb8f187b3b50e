"""Every pair of a picture and a caption as its own yes-or-no question."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from vlp.kernels.blocks import Block, Impl, full
from vlp.kernels.softplus import pair_softplus
from vlp.losses.contrast import Pool, global_mean, pool, positive_counts, positive_sums
from vlp.losses.loss import Loss
from vlp.losses.scale import scale_of
from vlp.types import Batch, Features


class Sigmoid(Loss):
    """SigLIP (arXiv 2303.15343): -log sigmoid(q z) summed over captions, averaged over pictures.

    Pairs with equal labels count as positives (q = +1), with `positives: own` only the pair itself. With K captions an
    image, slot k is its own problem, and the result is the mean over all captions. Our deviation: where the paper
    passes texts around a ring, we gather them and work in blocks of rows; the values are the same.
    """

    temperature: float | None = Field(None, gt=0.0, allow_inf_nan=False, description="in place of the learned scale")
    positives: Literal["label", "own"] = Field("label", description="pairs with equal labels, or only the pair itself")
    impl: Impl = "auto"
    block: Block = None

    needs: ClassVar[frozenset[str]] = frozenset({"bias"})

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """The term "contrast"."""
        if features.bias is None:
            raise ValueError('the sigmoid loss needs features.bias; build the model with needs={"bias"}')
        everyone = pool(features, batch) if self.positives == "label" else pool(features, batch).apart()
        scale, bias = scale_of(features, self.temperature), full(features.bias)
        slots = [self._slot(everyone, k, scale, bias) for k in range(everyone.text.shape[1])]
        return {"contrast": global_mean(torch.stack(slots).sum(), everyone.num_captions)}

    def _slot(self, everyone: Pool, k: int, scale: Float[Tensor, "1"], bias: Float[Tensor, "1"]) -> Float[Tensor, ""]:
        """Sum over this rank's pictures, and the k-th captions of all ranks, of softplus(-q z)."""
        image, text, valid, own = everyone.image[everyone.own], everyone.text[:, k], everyone.real[:, k], everyone.own
        pairs = pair_softplus(
            image, text, scale, bias, row_valid=valid[own], column_valid=valid, impl=self.impl, block=self.block
        )
        # softplus(-z) = softplus(z) - z, and the sum of z over positives is linear
        sums = positive_sums(text, group=everyone.group, own=own)
        counts = positive_counts(valid, group=everyone.group, own=own)
        positives = scale * (image * sums).sum(1) + bias * counts
        return pairs - torch.where(valid[own], positives, 0.0).sum()
