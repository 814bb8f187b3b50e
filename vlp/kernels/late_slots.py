"""Tokens of a side with its padding taken out: each item's real ones first, items with most of them first."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor


class Slots(NamedTuple):
    """Where the tokens of n items with at least one real token lie, of N items with L positions each.

    A slot that an item has no token for repeats its first token with weight 0: it can win no maximum that the token did
    not win before it, so that items of unlike length stand in one product without a mask.
    """

    order: Tensor  # long [n]; which items, those with most slots first
    widths: Tensor  # long [n]; slots in use
    places: Tensor  # long [n, L]; rows of the tokens as [N * L, D]
    weight: Tensor  # float [n, L]; 1 / number of real tokens for these, else 0
    blank: Tensor | None  # bool [n, L]; slots that stand for a vector of zeros

    def take(self, tokens: Tensor, items: slice, width: int, *, slots_first: bool = False) -> Tensor:
        """Tokens of some items as [items * width, D], or [width * items, D]."""
        places = self.places[items, :width]
        packed = tokens.reshape(-1, tokens.shape[-1])[(places.T if slots_first else places).reshape(-1)]
        if self.blank is None:
            return packed
        blank = self.blank[items, :width]
        return packed.masked_fill_((blank.T if slots_first else blank).reshape(-1, 1), 0.0)

    def give(self, grads: Tensor, packed: Tensor, items: slice, width: int, *, slots_first: bool = False) -> None:
        """Adds what `take` handed out back into `grads` [N, L, D]; what zeros received is dropped."""
        places = self.places[items, :width]
        if self.blank is not None:
            blank = self.blank[items, :width]
            packed = packed.masked_fill((blank.T if slots_first else blank).reshape(-1, 1), 0.0)
        grads.view(-1, grads.shape[-1]).index_add_(0, (places.T if slots_first else places).reshape(-1), packed)


def slots(mask: Bool[Tensor, "N L"], *, like: Tensor, zero: bool = False) -> Slots:
    """The slots of the real tokens; with `zero` an item with padding has one more, a vector of zeros, behind them."""
    length = mask.shape[1]
    real = mask.sum(1)
    widths = real + (real < length) if zero else real
    order = widths.masked_fill(real == 0, 0).argsort(descending=True, stable=True)
    order = order[: int((real > 0).sum())]
    real, widths = real[order], widths[order]
    place = torch.arange(length, device=mask.device)
    index = (~mask[order]).to(torch.uint8).argsort(dim=1, stable=True)  # real ones first, in their order
    in_use = place < real[:, None]
    index = torch.where(in_use, index, index[:, :1]) + order[:, None] * length
    weight = in_use.to(like.dtype) / real[:, None]
    blank = (place == real[:, None]) if zero else None
    return Slots(order, widths, index, weight, blank)


def winner_type(length: int) -> torch.dtype:
    """The smallest integers that number the slots of an item."""
    return torch.uint8 if length <= 256 else torch.int16
