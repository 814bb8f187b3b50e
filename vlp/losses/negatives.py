"""Captions that are wrong on purpose, as further columns."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from vlp import dist
from vlp.kernels.blocks import Block, Impl, full
from vlp.kernels.logsumexp import row_logsumexp
from vlp.losses.contrast import Pool, global_mean, pool, positive_counts, positive_sums
from vlp.losses.loss import Loss, column
from vlp.losses.scale import scale_of
from vlp.types import Batch, Features

ADVICE = "ask for caption negatives in the data: `negatives` of the captions of a source"


class NegCLIP(Loss):
    """NegCLIP (arXiv 2210.01936): `infonce` whose picture rows also see the caption negatives of the global batch.

    Each picture is contrasted with all captions and with all M negatives of every sample; each caption with all
    pictures. Negatives have no row of their own. Our deviations: the paper's similar pictures in one batch are a matter
    of the data; with K captions the negatives are columns in every slot; equal labels are positives as in `infonce`.
    """

    temperature: float | None = Field(None, gt=0.0, allow_inf_nan=False, description="in place of the learned scale")
    impl: Impl = "auto"
    block: Block = None

    joint: ClassVar[frozenset[str]] = frozenset({"negclip/text"})

    def heads(self, dual: Any) -> dict[str, nn.Module]:
        return {"negclip": CaptionNegatives()}

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """The term "contrast"."""
        everyone = pool(features, batch)
        negatives, real = _negatives(features, batch)
        scale = scale_of(features, self.temperature)
        slots = [self._slot(everyone, k, negatives, real, scale) for k in range(everyone.text.shape[1])]
        return {"contrast": global_mean(torch.stack(slots).sum(), everyone.num_captions)}

    def _slot(
        self,
        everyone: Pool,
        k: int,
        negatives: Float[Tensor, "NM D"],
        real: Bool[Tensor, "NM"],
        scale: Float[Tensor, "1"],
    ) -> Float[Tensor, ""]:
        """Sum over this rank's pairs that have a k-th caption of the mean of both cross entropies."""
        image, text, valid, own = everyone.image, everyone.text[:, k], everyone.real[:, k], everyone.own
        columns, column_valid = torch.cat([text, negatives]), torch.cat([valid, real])
        texts = row_logsumexp(image[own], columns, scale, column_valid=column_valid, impl=self.impl, block=self.block)
        images = row_logsumexp(text[own], image, scale, column_valid=valid, impl=self.impl, block=self.block)
        # as in infonce both directions draw pairs together alike, summed over all ranks
        counts = positive_counts(valid, group=everyone.group, own=own).clamp(min=1)
        target = positive_sums(text, group=everyone.group, own=own) / counts[:, None]
        drawn = scale * (image[own] * target).sum(1)
        return torch.where(valid[own], (texts + images) / 2 - drawn, 0.0).sum()


def _negatives(features: Features, batch: Batch) -> tuple[Tensor, Tensor]:
    """Caption negatives of all ranks [N * M, D], differentiable, and which of them are real."""
    mask = column(batch, "negative_mask", advice=ADVICE)
    real = mask.any(-1) & batch.valid[:, None]
    text = torch.where(real[..., None], features.extra["negclip/text"], 0.0)
    return full(dist.gather(text)).flatten(0, 1), dist.gather_const(real).flatten()


class CaptionNegatives(nn.Module):
    """Runs the caption negatives of a batch through its text tower: one call, of those that are there."""

    def forward(self, batch: Batch, towers: Any) -> dict[str, Tensor]:
        """Column "negclip/text" [B, M, D] of unit features, zero where there is no negative.

        A rank that has none encodes one row with weight 0, so that every rank makes the same calls.
        """
        ids = column(batch, "negative_text", advice=ADVICE)
        mask = column(batch, "negative_mask", advice=ADVICE)
        B, M, T = ids.shape
        flat = mask.flatten(0, 1)
        there = (flat.any(-1) & batch.valid.repeat_interleave(M)).nonzero()[:, 0]
        rows = there if len(there) else there.new_zeros(1)
        start = torch.arange(T, device=ids.device) == 0  # a row of nothing has an end, too
        prefixes = towers.dual.prefix  # of the source that each sample came from, as its captions have
        prefix = None if prefixes is None else prefixes(prefixes.kinds(batch.source).repeat_interleave(M)[rows])
        made = towers.dual.encode_text(ids.flatten(0, 1)[rows], flat[rows] | start, prefix)
        if not len(there):
            made = made * 0
        text = made.new_zeros(B * M, made.shape[-1]).index_copy(0, rows, made)
        return {"negclip/text": text.reshape(B, M, -1)}
