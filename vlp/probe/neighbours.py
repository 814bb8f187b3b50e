"""Weighted k-nearest-neighbour votes by cosine, in blocks of queries."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

NUMBERS = 1 << 26  # similarities held at once


class Neighbours(NamedTuple):
    """The nearest rows of a bank, nearest first."""

    similarity: Float[Tensor, "n k"]
    row: Int[Tensor, "n k"]


def neighbours(query: Float[Tensor, "n D"], bank: Float[Tensor, "N D"], *, k: int) -> Neighbours:
    """The k rows of the bank with the highest cosine, for features of unit norm; ValueError if it has fewer."""
    if not 1 <= k <= len(bank):
        raise ValueError(f"{k} neighbours of {len(bank)} samples; take at most {len(bank)}, at least 1")
    found = [(part @ bank.T).topk(k, dim=1) for part in query.split(max(1, NUMBERS // len(bank)))]
    return Neighbours(torch.cat([top.values for top in found]), torch.cat([top.indices for top in found]))


def votes(
    found: Neighbours, label: Int[Tensor, "N"], *, classes: int, k: int, temperature: float = 0.07
) -> Float[Tensor, "n C"]:
    """Per class the sum of exp(cosine / temperature) over its share of the k nearest (Wu et al. 2018, equation 5).

    Divided by the weight of the nearest, which changes no order and keeps small temperatures from overflow.
    """
    similarity = found.similarity[:, :k].double()
    weight = ((similarity - similarity[:, :1]) / temperature).exp()
    empty = torch.zeros(len(weight), classes, dtype=torch.float64, device=weight.device)
    return empty.scatter_add_(1, label.to(weight.device)[found.row[:, :k]], weight)
