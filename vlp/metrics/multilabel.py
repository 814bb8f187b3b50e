"""Multi-label classification: mean average precision over classes; the bootstrap of numbers that are no means.

Letters: n samples, C classes, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlp.metrics.interval import CHUNK, Interval
from vlp.metrics.ranking import expected_average_precision


class PrecisionTable(NamedTuple):
    """Per class: samples that have it, average precision (nan where there are none)."""

    support: Int[Tensor, "C"]
    average_precision: Float[Tensor, "C"]


@dataclass
class MeanAveragePrecision:
    """mean_average_precision over classes; the state is the scores and labels themselves.

    The average precision of a class is the mean, over the samples that have it, of the precision down to each, as
    CLIP_benchmark's code computes it. There the order of equal scores is the sort's; here a tie counts against the
    model, and so does a score that is not a number. There a class that no sample has counts 0; here it is left out of
    the mean and counted in `skipped`.
    """

    classes: int
    _scores: list[Tensor] = field(default_factory=list)
    _labels: list[Tensor] = field(default_factory=list)

    def update(self, scores: Float[Tensor, "B C"], labels: Bool[Tensor, "B C"]) -> None:
        """Adds samples; ValueError where shapes differ or labels are not boolean."""
        if scores.shape != labels.shape or scores.ndim != 2 or scores.shape[1] != self.classes:
            raise ValueError(
                f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)} must both have {self.classes} columns"
            )
        if labels.dtype != torch.bool:
            raise ValueError(f"labels are {labels.dtype}; give booleans, one column a class")
        self._scores.append(scores.cpu())
        self._labels.append(labels.cpu())

    def merge(self, other: MeanAveragePrecision) -> None:
        """Adds the other state's samples."""
        if self.classes != other.classes:
            raise ValueError(f"cannot merge average precisions of {self.classes} and {other.classes} classes")
        self._scores += other._scores
        self._labels += other._labels

    @property
    def skipped(self) -> dict[str, int]:
        """How many classes have no number, by reason."""
        absent = self.classes - int(self._labelled().any(dim=0).sum())
        return {"class_without_a_sample": absent} if absent else {}

    def compute(self) -> dict[str, float]:
        """The mean in 0..1; empty where no class has a sample."""
        average = self.table().average_precision
        return {} if average.isnan().all() else {"mean_average_precision": float(average.nanmean())}

    def table(self) -> PrecisionTable:
        """Support and average precision of every class."""
        labels = self._labelled()
        hit = labels.gather(0, self._order())
        rank = torch.arange(1, len(hit) + 1, dtype=torch.float64)[:, None]
        support = labels.sum(dim=0)
        return PrecisionTable(support, (hit.cumsum(dim=0) / rank * hit).sum(dim=0) / support)

    def intervals(self, *, n_boot: int = 1000, seed: int = 0) -> dict[str, Interval]:
        """95 % bootstrap interval over samples; a resample's mean leaves out the classes that it has no sample of.

        Copies of a right sample stand in a row, so resampled average precisions lie a little high, more so for classes
        with few samples.
        """
        labels, order = self._labelled(), self._order()
        if not labels.any():
            return {}
        harmonic = torch.arange(len(labels) + 1, dtype=torch.float64).reciprocal()
        harmonic[0] = 0
        harmonic = harmonic.cumsum(dim=0)
        draws = []
        for times in resamples(torch.zeros(len(labels), dtype=torch.long), n_boot=n_boot, seed=seed):
            columns = [_resampled(times[:, o], lab[o], harmonic) for o, lab in zip(order.T, labels.T) if lab.any()]
            draws.append({"mean_average_precision": torch.stack(columns).nanmean(dim=0)})
        return percentiles_of(draws)

    def chance(self) -> dict[str, float]:
        """What random scores reach in expectation: about the mean share of samples that have a class."""
        labels = self._labelled()
        positives = labels.sum(dim=0)
        if not labels.any():
            return {}
        value = expected_average_precision(candidates=len(labels), positives=positives[positives > 0])
        return {"mean_average_precision": value}

    def _labelled(self) -> Tensor:
        return torch.cat(self._labels) if self._labels else torch.empty(0, self.classes, dtype=torch.bool)

    def _order(self) -> Tensor:
        """Rows by falling score in each column, of equal ones those first that lack the class."""
        if not self._scores:
            return torch.empty(0, self.classes, dtype=torch.long)
        labels, scores = self._labelled(), torch.cat(self._scores)
        scores = torch.where(scores.isnan(), torch.where(labels, -torch.inf, torch.inf), scores)
        lacking = labels.byte().argsort(dim=0, stable=True)
        return lacking.gather(0, scores.gather(0, lacking).argsort(dim=0, descending=True, stable=True))


def _resampled(times: Tensor, hit: Tensor, harmonic: Tensor) -> Tensor:
    """Average precision [R] of resamples in which the sample at place i of the order occurs times[:, i] times.

    A sample drawn w times is w equal scores in a row. With f wrong ones and t right ones above, its precisions sum to
    sum over j = 1..w of (t + j) / (f + t + j) = w - f * (H(f + t + w) - H(f + t)), H(m) the m-th harmonic number.
    """
    copies = times[:, hit]
    last = times.cumsum(dim=1)[:, hit]
    wrong = last - copies.cumsum(dim=1)
    return (copies - wrong * (harmonic[last] - harmonic[last - copies])).sum(dim=1) / copies.sum(dim=1)


def resamples(strata: Int[Tensor, "n"], *, n_boot: int, seed: int) -> Iterator[Int[Tensor, "R n"]]:
    """How often each of n things is drawn in `n_boot` resamples, some rows at a time, each stratum for itself.

    The rows do not depend on how many come at a time, for every stratum has a generator of its own.
    """
    places = [torch.where(strata == s)[0] for s in strata.unique()]
    generators = [np.random.default_rng([seed, i]) for i in range(len(places))]
    step = max(1, CHUNK // max(1, len(strata)))
    for start in range(0, n_boot, step):
        times = torch.empty(min(step, n_boot - start), len(strata), dtype=torch.long)
        for place, generator in zip(places, generators):
            n = len(place)
            times[:, place] = torch.from_numpy(generator.multinomial(n, np.full(n, 1 / n), size=len(times)))
        yield times


def percentiles(draws: Float[Tensor, "R"], *, level: float = 0.95) -> Interval:
    """The middle `level` of resampled values; resamples that define no value (nan) are left out."""
    if not len(draws):
        return Interval(math.nan, math.nan)
    tail = (1 - level) / 2
    low, high = draws.double().nanquantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(low, high)


def percentiles_of(draws: Iterable[Mapping[str, Float[Tensor, "R"]]]) -> dict[str, Interval]:
    """95 % interval of every named value, from resampled values that come in parts."""
    parts = list(draws)
    return {name: percentiles(torch.cat([part[name] for part in parts])) for name in (parts[0] if parts else ())}
