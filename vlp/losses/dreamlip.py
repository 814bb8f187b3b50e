"""Each caption against the patches that it speaks of: DreamLIP's sub-caption grouping."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import normalize

from vlp import dist
from vlp.kernels.blocks import Block, Impl, full, no_autocast
from vlp.kernels.masked import masked_logsumexp
from vlp.losses.contrast import global_mean, group_ids
from vlp.losses.loss import Loss
from vlp.losses.per_sample import idle
from vlp.losses.scale import FixedScale, OwnScale, scale_of
from vlp.types import Batch, Features


class DreamLIP(Loss):
    """DreamLIP (arXiv 2403.17007), the grouping term; its multi-positive contrast is `infonce` with K captions.

    Caption k of picture i makes of the patch tokens X_i one vector v_ik = unit(sum_p w_p X_ip): w are its products with
    the patches, min-max normalised over patches, set to 0 below `delta` (None: 1/P), divided by their sum; even where
    all products are equal. Symmetric InfoNCE between all v_ik and all captions y_jl of the global batch with a learned
    scale of its own; only (i, k) = (j, l) is positive. No gradient is stopped. With `focus` the weights are a softmax
    of the products at that temperature, which leaves less to patches that say nothing; nothing is cut off then.

    Siblings, that is other captions of the same picture and captions of pairs with an equal label, are left out of the
    denominators, since two of them may speak of the same place; `sibling_negatives` keeps them as negatives, as the
    released code does. Our deviation: the patches are `Features.image_tokens`, projected and each of unit length, so
    that weights compare directions; whether the authors' patches keep their lengths is not certain from their release.
    """

    delta: float | None = Field(None, ge=0.0, le=1.0, description="weights below become 0; None: 1 / patches")
    focus: float | None = Field(
        None, gt=0.0, allow_inf_nan=False, description="softmax at this temperature for min-max"
    )
    sibling_negatives: bool = Field(False, description="other captions of a picture are negatives")
    temperature: float | None = Field(None, gt=0.0, allow_inf_nan=False, description="in place of the learned scale")
    impl: Impl = "auto"
    block: Block = None

    needs: ClassVar[frozenset[str]] = frozenset({"image_tokens"})
    batchless: ClassVar[frozenset[str]] = frozenset({"dreamlip/scale"})

    @model_validator(mode="after")
    def _one_way_to_weigh(self) -> DreamLIP:
        if self.focus is not None and self.delta is not None:
            raise ValueError("delta cuts off min-max weights, and focus takes a softmax; leave one of them out")
        return self

    def heads(self, dual: Any) -> dict[str, nn.Module]:
        """The scale of this contrast."""
        return {"dreamlip": OwnScale("dreamlip/scale") if self.temperature is None else FixedScale(self.temperature)}

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """The term "group"."""
        if features.image_tokens is None:
            raise ValueError('dreamlip needs features.image_tokens; build the model with needs={"image_tokens"}')
        B, K = batch.caption_mask.shape
        real = batch.valid[:, None] & batch.caption_mask
        text = torch.where(real[..., None], full(features.text), 0.0)
        tokens = torch.where(batch.valid[:, None, None], full(features.image_tokens), 0.0)
        grouping = grouped(text, tokens, delta=self.delta, focus=self.focus)
        rows = dist.gather(torch.stack([grouping, text], 1))
        marks = dist.gather_const(torch.cat([batch.label[:, None], real], 1))
        group, valid = group_ids(marks[:, 0]).repeat_interleave(K), marks[:, 1:].bool().flatten()
        own = slice(dist.rank() * B * K, (dist.rank() + 1) * B * K)
        images, texts = rows[:, 0].flatten(0, 1), rows[:, 1].flatten(0, 1)
        if self.sibling_negatives:
            group = torch.arange(len(group), device=group.device)
        scale = self._scale(features)
        together = scale * (images[own] * texts[own]).sum(1)
        partition = partial(self._partition, together, scale=scale, own=own, group=group, valid=valid)
        each = (partition(images[own], texts) + partition(texts[own], images)) / 2 - together
        local_sum = torch.where(valid[own], each, 0.0).sum()
        mean = global_mean(local_sum, valid.sum().clamp(min=1).to(each.dtype))
        return {"group": mean + idle(features, batch)}

    def _partition(
        self, together: Tensor, x: Tensor, y: Tensor, *, scale: Tensor, own: slice, group: Tensor, valid: Tensor
    ) -> Tensor:
        """Log-sum-exps over each row's own column, whose logit is `together`, and the columns of other groups."""
        others = masked_logsumexp(
            x,
            y,
            scale,
            row_group=group[own],
            column_group=group,
            column_valid=valid,
            impl=self.impl,
            block=self.block,
        )
        return torch.where(others.counts > 0, torch.logaddexp(others.sums, together), together)

    def _scale(self, features: Features) -> Tensor:
        if self.temperature is not None:
            return scale_of(features, self.temperature)
        if "dreamlip/scale" not in features.extra:
            raise ValueError("dreamlip needs the scale of its head: build the model with the heads of the loss")
        return full(features.extra["dreamlip/scale"])


def grouped(
    text: Float[Tensor, "B K D"], tokens: Float[Tensor, "B P D"], *, delta: float | None, focus: float | None = None
) -> Float[Tensor, "B K D"]:
    """For each caption the unit sum of its picture's patches, weighted by how much the caption speaks of them."""
    with no_autocast(text):
        products = text @ tokens.mT
        weights = patch_weights(products, delta=delta) if focus is None else (products / focus).softmax(-1)
        return normalize(weights @ tokens, dim=-1)


def patch_weights(products: Float[Tensor, "B K P"], *, delta: float | None) -> Float[Tensor, "B K P"]:
    """Min-max over patches, 0 below `delta` (None: 1 / P), divided by the sum; even where all products are equal."""
    low, high = products.amin(-1, keepdim=True), products.amax(-1, keepdim=True)
    flat = high - low <= torch.finfo(products.dtype).eps  # products of unit vectors: no larger than rounding
    spread = torch.where(flat, 1.0, (products - low) / torch.where(flat, 1.0, high - low))
    spread = torch.where(spread < (1 / products.shape[-1] if delta is None else delta), 0.0, spread)
    return spread / spread.sum(-1, keepdim=True)
