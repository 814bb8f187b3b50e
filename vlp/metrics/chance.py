"""What guessing reaches in expectation: the value a result has to beat."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor


def recall_at(k: int, *, candidates: int, positives: Int[Tensor, "Q"]) -> float:
    """Mean over queries of P(one of `positives` lies in the first k of a random order): 1 - C(M-c, k) / C(M, k)."""
    if k >= candidates:
        return 1.0
    place = torch.arange(int(positives.max()), dtype=torch.float64)
    # the same number as prod over j < c of (M - k - j) / (M - j), which is short because c is
    misses = ((candidates - k - place) / (candidates - place)).clamp_min(0).cumprod(dim=0)
    return 1.0 - float(misses[positives - 1].mean())


def mean_rank(*, candidates: int, positives: Int[Tensor, "Q"]) -> float:
    """Expected rank of the best of c positives among M candidates in random order, other positives aside."""
    c = positives.double()
    return float((1 + (candidates - c) / (c + 1)).mean())


def median_rank(*, candidates: int, positives: Int[Tensor, "Q"]) -> float:
    """Smallest rank that at least half of the queries reach in a random order."""
    low, high = 1, candidates
    while low < high:
        middle = (low + high) // 2
        if recall_at(middle, candidates=candidates, positives=positives) >= 0.5:
            high = middle
        else:
            low = middle + 1
    return float(low)


def accuracy_at(k: int, *, classes: int) -> float:
    """Share of samples whose class is among k random ones; the mean of class recalls has the same chance."""
    return min(k, classes) / classes


def contains(chance: float, interval: tuple[float, float], *, lower_is_better: bool = False) -> bool:
    """Whether a result is not shown to be better than chance: its interval reaches chance, or lies on the wrong side.

    A value far below chance says no more for a model than one at chance, so it is marked too.
    """
    low, high = interval
    return high >= chance if lower_is_better else low <= chance
