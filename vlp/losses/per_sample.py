"""What a loss makes of numbers that its head has summed for each sample: the mean over all ranks."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from vlp import dist
from vlp.kernels.blocks import full
from vlp.losses.contrast import global_mean
from vlp.types import Batch, Features


def mean_of(sums: Float[Tensor, "B"], counts: Shaped[Tensor, "B"], batch: Batch) -> Float[Tensor, ""]:
    """Sum over the valid slots of all ranks / their counts; 0 where nothing was counted. One collective."""
    count = dist.total(torch.where(batch.valid, counts, 0).sum()).clamp(min=1)
    total = torch.where(batch.valid, full(sums), 0.0).sum()
    return global_mean(total, count.to(total.dtype))


def idle(features: Features, batch: Batch) -> Float[Tensor, ""]:
    """0 with a gradient of 0 for the pooled features of both towers.

    DDP waits for the gradient of every parameter, also of a tower that a loss does not read, or of an attention pool
    where it reads tokens alone. What stands in empty slots is not looked at.
    """
    image = torch.where(batch.valid[:, None], features.image, 0.0)
    text = torch.where((batch.valid[:, None] & batch.caption_mask)[..., None], features.text, 0.0)
    return 0.0 * full(image.sum() + text.sum())
