"""Texts of like length together, padded no further than their batch needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def by_length(widths: Sequence[int], *, budget: int) -> list[list[int]]:
    """Rows in order of their padded length, cut into batches of at most `budget` tokens."""
    batches: list[list[int]] = []
    for row in sorted(range(len(widths)), key=lambda row: widths[row]):
        if not batches or (len(batches[-1]) + 1) * widths[row] > budget:
            batches.append([])
        batches[-1].append(row)
    return batches


def pad(ids: Sequence[Sequence[int]], tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Ids [n, T] and the mask of real tokens, T the longest rounded up to 8, but not above the context.

    T is 1 or more: where a tokenizer sets no special tokens an empty text has no tokens at all.
    """
    width = min(round_up(max([1, *map(len, ids)])), tokenizer.context)
    padded = torch.full((len(ids), width), tokenizer.pad)
    for row, tokens in enumerate(ids):
        padded[row, : len(tokens)] = torch.tensor(tokens)
    lengths = torch.tensor([len(tokens) for tokens in ids])
    return padded, torch.arange(width) < lengths[:, None]


def round_up(length: int) -> int:
    """The next multiple of 8."""
    return -(-length // 8) * 8
