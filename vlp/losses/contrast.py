"""What every contrastive loss needs: both sides from all ranks, positives by label, global counts.

B pairs here, N = W * B pairs on all ranks, K captions an image, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlp import dist
from vlp.kernels.blocks import full, surely_all
from vlp.types import Batch, Features


class Pool(NamedTuple):
    """Features of all ranks, differentiable, zero where there is no picture or caption; and which of them are ours."""

    image: Tensor  # [N, D]
    text: Tensor  # [N, K, D]
    real: Tensor  # bool [N, K]; the slot is valid and has a k-th caption
    group: Tensor  # long [N]; equal numbers are positives; numbers are below N
    own: slice  # rows of this rank

    @property
    def num_captions(self) -> Tensor:
        """Number of real captions on all ranks, at least 1, as a float scalar."""
        return self.real.sum().clamp(min=1).to(self.image.dtype)

    def apart(self) -> Pool:
        """The same with every pair its own only positive, whatever the labels."""
        return self._replace(group=torch.arange(len(self.group), device=self.group.device))


def pool(features: Features, batch: Batch) -> Pool:
    """Features, masks and labels of all ranks, in fp32 or fp64: two collectives, whatever the data are.

    Whatever stands in an absent slot, be it NaN, is replaced by zeros before anything is computed from it.
    """
    real = batch.valid[:, None] & batch.caption_mask
    image = _blank(features.image, batch.valid[:, None])
    text = _blank(features.text, real[..., None])
    if dist.world() > 1:  # one collective for both sides
        rows = dist.gather(torch.cat([image[:, None], text], 1))
        image, text = rows[:, 0], rows[:, 1:]
    marks = dist.gather_const(torch.cat([batch.label[:, None], real], 1))
    start = dist.rank() * len(batch.label)
    return Pool(
        image=full(image),
        text=full(text),
        real=marks[:, 1:].bool(),
        group=group_ids(marks[:, 0]),
        own=slice(start, start + len(batch.label)),
    )


def _blank(rows: Tensor, real: Tensor) -> Tensor:
    return rows if surely_all(real) else torch.where(real, rows, 0.0)


def group_ids(label: Int[Tensor, "N"]) -> Int[Tensor, "N"]:
    """Numbers below N, equal where labels are. (torch.unique would make an accelerator wait.)"""
    ordered, order = label.sort()
    starts = torch.zeros_like(ordered)
    starts[1:] = ordered[1:] != ordered[:-1]
    return torch.zeros_like(ordered).scatter_(0, order, starts.cumsum(0))


def positive_sums(rows: Float[Tensor, "N D"], *, group: Int[Tensor, "N"], own: slice) -> Float[Tensor, "B D"]:
    """For each of this rank's rows the sum of the rows with its label; linear in N, where a mask of pairs is N x N."""
    return torch.zeros_like(rows).index_add_(0, group, rows)[group[own]]


def positive_counts(valid: Bool[Tensor, "N"], *, group: Int[Tensor, "N"], own: slice) -> Int[Tensor, "B"]:
    """For each of this rank's rows the number of valid rows with its label."""
    return torch.zeros_like(group).index_add_(0, group, valid.long())[group[own]]


def global_mean(local_sum: Float[Tensor, ""], global_count: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """W * local sum / global count: its mean over ranks, and DDP's mean of its gradients, are those of one process."""
    return local_sum * dist.world() / global_count
