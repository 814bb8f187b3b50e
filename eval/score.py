"""Scores of given (picture, text) pairs by the pooled features or by tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from eval.view import View
from vlp.kernels.late import late_similarity

BLOCK = 64  # pairs scored at once by tokens


def scores(view: View, rows: Sequence[int], texts: list[str], *, head: Literal["global", "tokens"]) -> Tensor:
    """Score [n] of picture `rows[i]` and `texts[i]`: the cosine of the pooled features, or the mean of both directions'
    token-wise similarities (FILIP).
    """
    if head == "global":
        text = view.text_features(texts)
        return (view.image[list(rows)] * text).sum(1)
    images, words = view.image_tokens(), view.text_tokens(texts)
    found = []
    for start in range(0, len(rows), BLOCK):
        part = slice(start, start + BLOCK)
        own = torch.tensor(rows[part])
        late = late_similarity(
            images.tokens[own].float(), words.tokens[part].float(), x_mask=None, y_mask=words.mask[part]
        )
        assert late.rows is not None
        assert late.columns is not None
        found.append((late.rows.diagonal() + late.columns.diagonal()) / 2)
    return torch.cat(found)
