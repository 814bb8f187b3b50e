"""Percentile bootstrap intervals (Efron 1979), seeded, over values per query."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 1 << 22  # resampled values held at once


class Interval(NamedTuple):
    """The two ends of an interval."""

    low: float
    high: float


def of_means(
    values: Float[Tensor, "Q M"],
    *,
    groups: Int[Tensor, "Q"] | None = None,
    n_boot: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> list[Interval]:
    """Interval of each column's mean; columns share their resamples.

    With `groups`, whole groups are drawn instead of single queries: captions of one picture succeed and fail together,
    and treating them as independent makes intervals too narrow.
    """
    sums, counts = _by_group(values.double(), groups)
    if len(counts) == 0:
        return [Interval(math.nan, math.nan)] * values.shape[1]
    rng = np.random.default_rng(seed)
    means = np.empty((n_boot, sums.shape[1]))
    step = max(1, CHUNK // len(counts))
    for start in range(0, n_boot, step):
        rows = min(step, n_boot - start)
        drawn = rng.integers(0, len(counts), (rows, len(counts)))
        size = counts[drawn].sum(axis=1)
        for column in range(sums.shape[1]):
            means[start : start + rows, column] = sums[:, column][drawn].sum(axis=1) / size
    return [_percentiles(column, level) for column in means.T]


def of_median(values: Float[Tensor, "Q"], *, n_boot: int = 1000, level: float = 0.95, seed: int = 0) -> Interval:
    """Interval of the median.

    The median of a resample is the order statistic at the median of the drawn places, so places are drawn instead of
    values: the middle one of n uniform places has a Beta law, which needs no resampling at all.
    """
    n = len(values)
    if n == 0:
        return Interval(math.nan, math.nan)
    ordered = np.sort(values.double().numpy())
    middle = np.random.default_rng(seed).beta((n + 1) / 2, (n + 1) / 2, n_boot)
    return _percentiles(ordered[np.minimum((middle * n).astype(np.int64), n - 1)], level)


def of_class_means(
    hits: Int[Tensor, "C"], support: Int[Tensor, "C"], *, n_boot: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Interval of the mean over classes of hits / support, drawn inside each class; empty classes are left out.

    Resampling n_c zeros and ones is a binomial draw, so that is what is drawn.
    """
    there = support > 0
    n, k = support[there].numpy(), hits[there].numpy()
    if len(n) == 0:
        return Interval(math.nan, math.nan)
    drawn = np.random.default_rng(seed).binomial(n, k / n, (n_boot, len(n))) / n
    return _percentiles(drawn.mean(axis=1), level)


def _by_group(values: Tensor, groups: Tensor | None) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    if groups is None:
        return values.numpy(), np.ones(len(values))
    _, place = torch.unique(groups, return_inverse=True)
    count = torch.bincount(place)
    sums = torch.zeros(len(count), values.shape[1], dtype=torch.float64).index_add_(0, place, values)
    return sums.numpy(), count.double().numpy()


def _percentiles(values: np.ndarray, level: float) -> Interval:  # type: ignore[type-arg]
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(float(low), float(high))
