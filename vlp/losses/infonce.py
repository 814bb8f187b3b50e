"""Softmax contrast between pictures and captions, and the methods that are settings of it."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from vlp import dist
from vlp.kernels.blocks import Block, Impl
from vlp.kernels.logsumexp import Both, pair_logsumexp, row_logsumexp
from vlp.losses.contrast import Pool, global_mean, pool, positive_counts, positive_sums
from vlp.losses.loss import Loss
from vlp.losses.scale import scale_of
from vlp.types import Batch, Features


class InfoNCE(Loss):
    """CLIP (arXiv 2103.00020), and by its settings ALIGN, ConVIRT and UniCL.

    `label_smoothing` spreads that share of the target evenly over all valid columns (ALIGN, arXiv 2102.05918).
    `image_to_text` is the weight of that direction, the other has the rest (lambda of ConVIRT, arXiv 2010.00747: 0.75).
    `temperature` replaces the learned scale (ConVIRT: 0.1). Pairs with equal labels are positives of each other, the
    target is even over them, in each direction for itself (UniCL, arXiv 2204.03610); with `positives: own` each pair is
    its own only positive (plain CLIP on labelled data).

    With K captions an image, slot k contrasts the pairs that have a k-th caption; the result is the mean over all
    captions. `impl` and `block` choose how it is computed, never the value.
    """

    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0, description="share of the target spread over all columns")
    image_to_text: float = Field(0.5, ge=0.0, le=1.0, description="weight of that direction; the other has the rest")
    temperature: float | None = Field(None, gt=0.0, allow_inf_nan=False, description="in place of the learned scale")
    positives: Literal["label", "own"] = Field("label", description="pairs with equal labels, or only the pair itself")
    impl: Impl = "auto"
    block: Block = None

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """The term "contrast"."""
        everyone = self._everyone(features, batch)
        scale = scale_of(features, self.temperature)
        slots = [self._slot(everyone, k, scale) for k in range(everyone.text.shape[1])]
        return {"contrast": global_mean(torch.stack(slots).sum(), everyone.num_captions)}

    def _everyone(self, features: Features, batch: Batch) -> Pool:
        """Features of all ranks, and who is whose positive."""
        everyone = pool(features, batch)
        return everyone if self.positives == "label" else everyone.apart()

    def _slot(self, everyone: Pool, k: int, scale: Float[Tensor, "1"]) -> Float[Tensor, ""]:
        """Sum over this rank's pairs that have a k-th caption of both directions' weighted cross entropies."""
        image, text, valid, own = everyone.image, everyone.text[:, k], everyone.real[:, k], everyone.own
        over_texts, over_images = self._partition(image, text, scale, valid, own)
        partition = torch.lerp(over_images, over_texts, self.image_to_text)
        # Targets are a symmetric matrix, so summed over all ranks both directions draw pairs together alike, and their
        # weights add up to 1: our pictures to everyone's texts is enough.
        drawn = scale * (image[own] * self._target(text, everyone, valid)).sum(1)
        return torch.where(valid[own], partition - drawn, 0.0).sum()

    def _partition(self, image: Tensor, text: Tensor, scale: Tensor, valid: Tensor, own: slice) -> Both:
        """Log-sum-exps over all texts for each of our pictures, over all pictures for each of our texts."""
        if dist.world() == 1:  # both from one product
            return pair_logsumexp(
                image, text, scale, row_valid=valid, column_valid=valid, impl=self.impl, block=self.block
            )
        return Both(
            row_logsumexp(image[own], text, scale, column_valid=valid, impl=self.impl, block=self.block),
            row_logsumexp(text[own], image, scale, column_valid=valid, impl=self.impl, block=self.block),
        )

    def _target(self, text: Float[Tensor, "N D"], everyone: Pool, valid: Bool[Tensor, "N"]) -> Float[Tensor, "B D"]:
        """What each of our pictures is drawn to: the mean of its positives, `label_smoothing` of the mean of all."""
        group, own = everyone.group, everyone.own
        counts = positive_counts(valid, group=group, own=own).clamp(min=1)
        positives = positive_sums(text, group=group, own=own) / counts[:, None]
        if self.label_smoothing == 0:
            return positives
        everything = text.sum(0) / valid.sum().clamp(min=1)
        return torch.lerp(positives, everything.expand_as(positives), self.label_smoothing)
