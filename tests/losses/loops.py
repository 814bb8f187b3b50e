"""The losses as their papers write them, one pair at a time: slow, and with nothing in common with ours."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlp.types import Batch, Features


def infonce(
    features: Features, batch: Batch, *, smoothing: float = 0.0, image_to_text: float = 0.5, scale: float | None = None
) -> Tensor:
    """Mean over real captions of the weighted cross entropies against targets that are even over positives."""
    s = features.scale[0] if scale is None else scale
    result, count = [], 0
    for k in range(features.text.shape[1]):
        real = [i for i in range(len(batch)) if batch.valid[i] and batch.caption_mask[i, k]]
        count += len(real)
        for i in real:
            by_text = {j: s * (features.image[i] @ features.text[j, k]) for j in real}
            by_image = {j: s * (features.image[j] @ features.text[i, k]) for j in real}
            for weight, logits in ((image_to_text, by_text), (1 - image_to_text, by_image)):
                positives = [j for j in real if batch.label[j] == batch.label[i]]
                partition = sum(logit.exp() for logit in logits.values())
                for j in real:
                    target = (1 - smoothing) / len(positives) * (j in positives) + smoothing / len(real)
                    result.append(-weight * target * (logits[j].exp() / partition).log())
    return sum(result) / count if count else torch.zeros((), dtype=torch.float64)


def sigmoid(features: Features, batch: Batch, *, scale: float | None = None) -> Tensor:
    """Mean over real captions' pictures of the sum over captions of -log sigmoid(q z)."""
    s = features.scale[0] if scale is None else scale
    result, count = [], 0
    for k in range(features.text.shape[1]):
        real = [i for i in range(len(batch)) if batch.valid[i] and batch.caption_mask[i, k]]
        count += len(real)
        for i in real:
            for j in real:
                z = s * (features.image[i] @ features.text[j, k]) + features.bias[0]
                q = 1 if batch.label[i] == batch.label[j] else -1
                result.append((1 + (-q * z).exp()).log())
    return sum(result) / count if count else torch.zeros((), dtype=torch.float64)


def orthonormal(num: int, scale: float) -> float:
    """InfoNCE of pairs that are equal to each other and at right angles to all others."""
    return math.log(1 + (num - 1) * math.exp(-scale))
