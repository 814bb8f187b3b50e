"""Which row goes with which column so that the sum is largest: the assignment problem, solved exactly."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor


def assign(score: Float[Tensor, "m n"]) -> Int[Tensor, "m"]:
    """A column for each of m <= n rows, no column twice, with the largest sum of scores.

    Shortest augmenting paths (Hungarian method), O(m^2 n); of equally good ones always the same.
    """
    if score.shape[0] > score.shape[1]:
        raise ValueError(f"{score.shape[0]} rows cannot each have their own of {score.shape[1]} columns")
    if not score.isfinite().all():
        raise ValueError("scores to assign by must be finite")
    cost = -score.detach().double().cpu().numpy()
    rows, columns = cost.shape
    row_price, column_price = np.zeros(rows), np.zeros(columns + 1)
    owner = np.full(columns + 1, -1)  # row of each column; the last column is where a search begins
    for row in range(rows):
        owner[columns] = row
        end, before = _shortest(cost, row_price, column_price, owner)
        while end != columns:  # hand each column on the path to the row of the one before it
            owner[end] = owner[before[end]]
            end = before[end]
    found = torch.empty(rows, dtype=torch.long)
    for column in np.flatnonzero(owner[:columns] >= 0):
        found[owner[column]] = int(column)
    return found


def _shortest(
    cost: NDArray[np.float64],
    row_price: NDArray[np.float64],
    column_price: NDArray[np.float64],
    owner: NDArray[np.int64],
) -> tuple[int, NDArray[np.int64]]:
    """The free column at the end of the cheapest path, and the column before each; moves the prices."""
    columns = cost.shape[1]
    distance, before = np.full(columns, np.inf), np.full(columns, columns)
    done = np.zeros(columns + 1, dtype=bool)
    here = columns
    while owner[here] >= 0:
        done[here] = True
        row = owner[here]
        reduced = cost[row] - row_price[row] - column_price[:columns]
        better = ~done[:columns] & (reduced < distance)
        distance[better], before[better] = reduced[better], here
        there = int(np.where(done[:columns], np.inf, distance).argmin())
        step = distance[there]
        row_price[owner[done]] += step
        column_price[done] -= step
        distance[~done[:columns]] -= step
        here = there
    return here, before
