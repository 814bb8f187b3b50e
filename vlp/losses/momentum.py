"""Contrasts whose targets come from a momentum copy of the towers: MoCo-style image-text contrast, and M3I."""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from vlp import dist
from vlp.kernels.blocks import Block, Impl, full
from vlp.kernels.logsumexp import row_logsumexp
from vlp.losses.contrast import global_mean, group_ids, pool
from vlp.losses.loss import Loss, column
from vlp.losses.scale import scale_of
from vlp.types import UNLABELLED, Batch, Features

COPY = "the companion `momentum` fills it when its `outputs` name it"
QUEUE = "the companion `queue` fills it; or set queue: false"


class Keys(NamedTuple):
    """What rows are contrasted against: M features, which of them count, and their labels."""

    rows: Tensor  # [M, D]
    valid: Tensor  # bool [M]
    label: Tensor  # long [M]

    def plus(self, other: Keys) -> Keys:
        return Keys(*(torch.cat([mine, theirs]) for mine, theirs in zip(self, other, strict=True)))


def attraction(
    x: Float[Tensor, "B D"],
    label: Int[Tensor, "B"],
    keys: Keys,
    scale: Float[Tensor, "1"],
    *,
    impl: Impl = "auto",
    block: int | None = None,
) -> Float[Tensor, "B"]:
    """Cross entropy of each row against the target that is even over the valid keys with its label.

    0 with zero gradient for a row that no key has the label of.
    """
    groups = group_ids(torch.cat([label, keys.label]))
    own, theirs = groups[: len(label)], groups[len(label) :]
    rows = torch.where(keys.valid[:, None], full(keys.rows), 0.0)
    counts = torch.zeros_like(groups).index_add_(0, theirs, keys.valid.long())[own]
    sums = rows.new_zeros(len(groups), rows.shape[1]).index_add(0, theirs, rows)[own]
    partition = row_logsumexp(x, rows, scale, column_valid=keys.valid, impl=impl, block=block)
    drawn = full(scale) * (full(x) * sums).sum(1) / counts.clamp(min=1)
    return torch.where(counts > 0, partition - drawn, 0.0)


class MomentumKeys(NamedTuple):
    """Features of the momentum copy for the pairs of all ranks, without gradient."""

    image: Tensor  # [N, D]
    text: Tensor  # [N, K, D]
    real: Tensor  # bool [N, K]
    label: Tensor  # long [N]


def momentum_keys(batch: Batch) -> MomentumKeys:
    """Two collectives, whatever the data are."""
    image, text = (column(batch, f"momentum/{side}", advice=COPY) for side in ("image", "text"))
    rows = dist.gather_const(torch.cat([image[:, None], text], 1))
    real = batch.valid[:, None] & batch.caption_mask
    marks = dist.gather_const(torch.cat([batch.label[:, None], real], 1))
    return MomentumKeys(rows[:, 0], rows[:, 1:], marks[:, 1:].bool(), marks[:, 0])


class MomentumContrast(Loss):
    """Image-text contrast against a momentum copy and its queue, as in MoCo (arXiv 1911.05722), ALBEF and CTP.

    The student's picture is contrasted with [momentum captions of the global batch, queued captions], its captions with
    [momentum pictures, queued pictures]; the mean of both directions and over all captions. Keys with equal labels are
    positives, also those in the queue, as ALBEF's retrieval form has it. Slot k contrasts the pairs that have a k-th
    caption. Nothing of the student is gathered.

    Deviation: no soft targets from the copy's own similarities (ALBEF); the scale is the learned one unless
    `temperature` is set (CTP: 0.07).
    """

    joint: ClassVar[frozenset[str]] = frozenset({"momentum/image", "momentum/text", "queue/image", "queue/text"})

    queue: bool = Field(True, description="contrast with the queue too")
    image_to_text: float = Field(0.5, ge=0.0, le=1.0, description="weight of that direction; the other has the rest")
    temperature: float | None = Field(None, gt=0.0, allow_inf_nan=False, description="in place of the learned scale")
    impl: Impl = "auto"
    block: Block = None

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """The term "momentum"."""
        everyone, real = momentum_keys(batch), batch.valid[:, None] & batch.caption_mask
        scale = scale_of(features, self.temperature)
        image = full(torch.where(batch.valid[:, None], features.image, 0.0))
        text = full(torch.where(real[..., None], features.text, 0.0))
        slots = []
        for k in range(text.shape[1]):
            valid, label = everyone.real[:, k], everyone.label
            captions = self._keys(batch, "text", Keys(everyone.text[:, k], valid, label))
            pictures = self._keys(batch, "image", Keys(everyone.image, valid, label))
            to_text = attraction(image, batch.label, captions, scale, impl=self.impl, block=self.block)
            to_image = attraction(text[:, k], batch.label, pictures, scale, impl=self.impl, block=self.block)
            slots.append(torch.where(real[:, k], torch.lerp(to_image, to_text, self.image_to_text), 0.0).sum())
        count = everyone.real.sum().clamp(min=1).to(image.dtype)
        return {"momentum": global_mean(torch.stack(slots).sum(), count)}

    def _keys(self, batch: Batch, side: str, keys: Keys) -> Keys:
        if not self.queue:
            return keys
        rows, filled, label = (column(batch, f"queue/{name}", advice=QUEUE) for name in (side, "filled", "label"))
        return keys.plus(Keys(rows.to(keys.rows.dtype), filled, label))


class M3I(Loss):
    """M3I's maximisation of mutual information (arXiv 2211.09807, eq. 4) as InfoNCE from pictures to several targets.

    Targets of a picture: its captions, or the sentence of its label if it comes from a label source, and the momentum
    copy's feature of its first extra view (`target: image`: of the very picture). Every kind of target is a softmax of
    its own over the global batch, with the shared learned scale and equal labels as positives. A picture's loss is the
    mean over the targets it has; the terms "text", "label" and "momentum" are the shares that add up to it.

    Deviation: written from the paper, whose code is not public, and without its mix of two inputs.
    """

    joint: ClassVar[frozenset[str]] = frozenset({"momentum/image", "momentum/view_image"})

    target: Literal["view", "image"] = Field("view", description="what the momentum copy looked at")
    impl: Impl = "auto"
    block: Block = None

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """The terms "text", "label" and "momentum"."""
        everyone, momentum = pool(features, batch), self._momentum(batch)
        named = dist.gather_const(torch.stack([batch.label, batch.label < UNLABELLED], 1))
        label, labelled = named[:, 0], named[:, 1].bool()
        own, scale = everyone.own, full(features.scale)
        image, number = everyone.image[own], everyone.real[own].sum(1)
        share = 1 / (1 + (number > 0).to(image.dtype))  # of each of a picture's targets

        def drawn(keys: Keys) -> Tensor:
            return attraction(image, batch.label, keys, scale, impl=self.impl, block=self.block)

        terms = {"momentum": torch.where(batch.valid, drawn(momentum) * share, 0.0).sum()}
        for name, kind in (("text", ~labelled), ("label", labelled)):
            slots = []
            for k in range(everyone.text.shape[1]):
                keys = Keys(everyone.text[:, k], everyone.real[:, k] & kind, label)
                slots.append(torch.where(everyone.real[own, k] & kind[own], drawn(keys), 0.0))
            terms[name] = (torch.stack(slots).sum(0) * share / number.clamp(min=1)).sum()
        count = momentum.valid.sum().clamp(min=1).to(image.dtype)
        return {name: global_mean(terms[name], count) for name in ("text", "label", "momentum")}

    def _momentum(self, batch: Batch) -> Keys:
        """The momentum copy's features for all ranks' pictures."""
        if self.target == "image":
            rows = column(batch, "momentum/image", advice=COPY)
        else:
            rows = column(batch, "momentum/view_image", advice=f"{COPY}; it needs data.views")[:, 0]
        return Keys(*(dist.gather_const(x) for x in (rows, batch.valid, batch.label)))
