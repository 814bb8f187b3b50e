"""Scores of given (picture, text) pairs by the pooled features, by tokens, or by text-conditioned pooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from eval.heads import Conditioned, Head
from eval.view import View
from vlp.kernels.late import PadMax

BLOCK = 64  # pairs scored at once by tokens


def scores(view: View, rows: Sequence[int], texts: list[str], *, head: Head, pad_max: PadMax = "exclude") -> Tensor:
    """Score [n] of picture `rows[i]` and `texts[i]`: the cosine of the pooled features, the mean of both directions'
    token-wise similarities (FILIP), with `pad_max` as in `vlp.kernels.late`, or the cosine with the picture as the text
    sees it (FLAIR).
    """
    if head == "global":
        text = view.text_features(texts)
        return (view.image[list(rows)] * text).sum(1)
    if head == "conditioned":
        image, text = view.image_tokens().tokens, view.text_features(texts)
        return Conditioned.of(view.encoder.dual, image, text, device=view.encoder.device).given(rows)
    images, words = view.image_tokens(), view.text_tokens(texts)
    found, device = [], view.encoder.device
    for start in range(0, len(rows), BLOCK):
        part = slice(start, start + BLOCK)
        patches = images.tokens[torch.tensor(rows[part])].to(device).float()
        real = words.mask[part].to(device)
        products = patches @ words.tokens[part].to(device).float().mT  # [b, P, T]; those with padding are zeros
        nearest = products if pad_max == "zero" else products.masked_fill(~real[:, None], -torch.inf)
        to_text = nearest.amax(2).mean(1)
        to_image = (products.amax(1) * real).sum(1) / real.sum(1).clamp(min=1)
        found.append((to_text + to_image) / 2)
    return torch.cat(found).cpu()
