"""Learned vectors among the words of a text: prefix conditioning (2206.01125) and shallow prompts."""

from __future__ import annotations

import torch
from torch import Tensor


def make_room(ids: Tensor, mask: Tensor, end: Tensor, *, room: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same texts with at most `room` positions: the longer ones lose words before their end token.

    ids, mask: [n, T], end: [n].
    """
    if room < 2:
        raise ValueError(f"a prefix leaves {room} positions for the text; use a shorter prefix or a longer context")
    if ids.shape[1] <= room:
        return ids, mask, end
    row = torch.arange(len(ids), device=ids.device)
    end_id, end = ids[row, end], end.clamp_max(room - 1)
    ids, mask = ids[:, :room].clone(), mask[:, :room]
    ids[row, end] = end_id
    return ids, mask, end


def insert(embeds: Tensor, mask: Tensor, end: Tensor, prefix: Tensor, *, at: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings [n, T + p, width] with `prefix` [(n,) p, width] at position `at`, and mask and end moved on."""
    n, p = len(embeds), prefix.shape[-2]
    prefix = prefix.to(embeds.dtype).expand(n, -1, -1)
    seen = mask.new_ones(n, p)
    return (
        torch.cat([embeds[:, :at], prefix, embeds[:, at:]], dim=1),
        torch.cat([mask[:, :at], seen, mask[:, at:]], dim=1),
        end + p,
    )
