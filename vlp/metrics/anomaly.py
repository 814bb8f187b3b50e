"""Anomaly detection (pictures) and localisation (pixels): AUROC, average precision, best F1, per-region overlap.

All numbers come from counts per threshold, and a threshold cannot part equal scores: what ties is flagged together. A
detector that says the same of everything is at chance in all of them, so that ties gain nothing.

Letters: n pictures, B of a batch, K cells of scores in rising order, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import max_pool2d

from vlp.metrics.interval import Interval
from vlp.metrics.multilabel import percentiles_of, resamples
from vlp.metrics.ranking import expected_average_precision

THRESHOLDS = 1024  # of the pixels' intervals; the values themselves use every score


@dataclass
class AnomalyDetection:
    """image_auroc, image_average_precision and image_f1_max (the best F1 of any threshold) of pictures' scores.

    As scikit-learn's roc_auc_score, average_precision_score and precision_recall_curve give them. A score that is not a
    number is the wrong extreme.
    """

    _scores: list[Tensor] = field(default_factory=list)
    _anomalous: list[Tensor] = field(default_factory=list)

    def update(self, scores: Float[Tensor, "B"], anomalous: Bool[Tensor, "B"]) -> None:
        """Adds pictures; the higher the score, the more anomalous."""
        scores, anomalous = _against(scores, anomalous, ndim=1)
        self._scores.append(scores)
        self._anomalous.append(anomalous)

    def merge(self, other: AnomalyDetection) -> None:
        """Adds the other state's pictures."""
        self._scores += other._scores
        self._anomalous += other._anomalous

    def compute(self) -> dict[str, float]:
        """Values in 0..1; empty without pictures, ValueError where they are all normal or all anomalous."""
        if not self._scores:
            return {}
        times = torch.ones(1, len(torch.cat(self._scores)), dtype=torch.long)
        return {name: float(value) for name, value in self._resampled(times).items()}

    def intervals(self, *, n_boot: int = 1000, seed: int = 0) -> dict[str, Interval]:
        """95 % bootstrap interval of every number; normal and anomalous pictures are drawn apart.

        How many there are of each is the test set's choice, on which average precision and F1 depend.
        """
        return percentiles_of(self.draws(n_boot=n_boot, seed=seed))

    def draws(self, *, n_boot: int = 1000, seed: int = 0) -> Iterator[dict[str, Float[Tensor, "R"]]]:
        """Every number of resampled pictures, some resamples at a time."""
        if self._scores:
            for times in resamples(torch.cat(self._anomalous).long(), n_boot=n_boot, seed=seed):
                yield self._resampled(times)

    def chance(self) -> dict[str, float]:
        """What random scores reach; for the best F1 in the limit of many pictures, where flagging all is best."""
        anomalous = torch.cat(self._anomalous) if self._anomalous else torch.empty(0, dtype=torch.bool)
        return _chance("image", total=len(anomalous), anomalous=int(anomalous.sum())) if len(anomalous) else {}

    def _resampled(self, times: Tensor) -> dict[str, Tensor]:
        scores, anomalous = torch.cat(self._scores), torch.cat(self._anomalous)
        _check_both(normal=int((~anomalous).sum()), anomalous=int(anomalous.sum()), what="picture")
        edges = scores[anomalous].unique()
        cell = _cells(scores, edges)
        counts = torch.zeros(2, len(times), 2 * len(edges) + 1, dtype=torch.float64)
        for part, of in zip(counts, (~anomalous, anomalous)):
            part.index_add_(1, cell[of], times[:, of].double())
        return _curve_numbers("image", normal=counts[0], anomalous=counts[1])


class _Picture(NamedTuple):
    normal: Tensor  # scores of normal pixels
    anomalous: Tensor  # scores of anomalous pixels
    share: Tensor  # of each anomalous pixel in its region: 1 / pixels of the region
    regions: int


@dataclass
class AnomalyLocalization:
    """pixel_auroc, pixel_average_precision, pixel_f1_max over all pixels, and pixel_aupro.

    pixel_aupro: the per-region overlap (mean over all regions of the share of their pixels flagged) over the share of
    normal pixels flagged, integrated up to `limit` and divided by it (Bergmann et al., arXiv 1911.02357). Regions are
    8-connected, as in MVTec's own code. Every score is a threshold and the end at `limit` is interpolated; the much
    copied code with 200 thresholds rounds both. Small regions weigh as much as large ones.
    """

    limit: float = 0.3
    _pictures: list[_Picture] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 < self.limit <= 1:
            raise ValueError(
                f"limit is {self.limit}; it is a share of normal pixels, above 0 and at most 1 (usual: 0.3)"
            )

    def update(self, maps: Float[Tensor, "B H W"], masks: Bool[Tensor, "B H W"]) -> None:
        """Adds pictures by their maps of scores and true masks; ValueError where sizes differ."""
        maps, masks = _against(maps, masks, ndim=3)
        for scores, mask in zip(maps, masks):
            region = connected_regions(mask)
            share = 1 / torch.bincount(region[mask])[region[mask]].double()
            self._pictures.append(_Picture(scores[~mask], scores[mask], share, int(region.max())))

    def merge(self, other: AnomalyLocalization) -> None:
        """Adds the other state's pictures."""
        if self.limit != other.limit:
            raise ValueError(f"cannot merge per-region overlaps up to {self.limit} and up to {other.limit}")
        self._pictures += other._pictures

    def compute(self) -> dict[str, float]:
        """Values in 0..1; empty without pictures, ValueError where all pixels are normal or all anomalous."""
        if not self._pictures:
            return {}
        self._check()
        edges = torch.cat([p.anomalous for p in self._pictures]).unique()
        counts = torch.zeros(3, 2 * len(edges) + 1, dtype=torch.float64)
        for picture in self._pictures:
            _add(picture, edges, counts)
        numbers = self._numbers(counts, torch.tensor(sum(p.regions for p in self._pictures)))
        return {name: float(value) for name, value in numbers.items()}

    def intervals(self, *, n_boot: int = 1000, seed: int = 0) -> dict[str, Interval]:
        """95 % bootstrap interval of every number, drawing pictures, those with and without anomaly apart.

        With more than 1024 different anomalous scores, resamples look at 1024 thresholds, an equal number of anomalous
        pixels from one to the next.
        """
        return percentiles_of(self.draws(n_boot=n_boot, seed=seed))

    def draws(self, *, n_boot: int = 1000, seed: int = 0) -> Iterator[dict[str, Float[Tensor, "R"]]]:
        """Every number of resampled pictures, some resamples at a time."""
        if not self._pictures:
            return
        self._check()
        found = torch.cat([p.anomalous for p in self._pictures]).sort().values
        edges = found.unique()
        if len(edges) > THRESHOLDS:
            edges = found[torch.linspace(0, len(found) - 1, THRESHOLDS).long()].unique()
        counts = torch.zeros(len(self._pictures), 3, 2 * len(edges) + 1, dtype=torch.float64)
        for picture, row in zip(self._pictures, counts):
            _add(picture, edges, row)
        regions = torch.tensor([p.regions for p in self._pictures])
        each = counts.transpose(0, 1)  # [3, n, K]
        for times in resamples((regions > 0).long(), n_boot=n_boot, seed=seed):
            yield self._numbers(times.double() @ each, times.double() @ regions.double())

    def chance(self) -> dict[str, float]:
        """What random scores reach; per-region overlap then equals the share of normal pixels flagged."""
        if not self._pictures:
            return {}
        normal, anomalous = self._totals()
        return {**_chance("pixel", total=normal + anomalous, anomalous=anomalous), "pixel_aupro": self.limit / 2}

    def _totals(self) -> tuple[int, int]:
        return sum(len(p.normal) for p in self._pictures), sum(len(p.anomalous) for p in self._pictures)

    def _check(self) -> None:
        normal, anomalous = self._totals()
        _check_both(normal=normal, anomalous=anomalous, what="pixel")

    def _numbers(self, counts: Tensor, regions: Tensor) -> dict[str, Tensor]:
        """Numbers [...] of counts [3, ..., K] of normal pixels, anomalous pixels and shares of regions"""
        numbers = _curve_numbers("pixel", normal=counts[0], anomalous=counts[1])
        flagged, overlap = _from_above(counts[0]), _from_above(counts[2])
        overlap, flagged = overlap / regions[..., None], flagged / flagged[..., -1:]
        return {**numbers, "pixel_aupro": _area(flagged, overlap, self.limit) / self.limit}


def connected_regions(mask: Bool[Tensor, "H W"]) -> Int[Tensor, "H W"]:
    """The number 1.. of the 8-connected region that each pixel of the mask lies in, 0 outside.

    Every region starts as its pixels, numbered; in each round all regions that touch a higher number take the highest
    one, and chains of these are followed to their end, so that few rounds are needed however long a region winds.
    """
    label = torch.arange(1, mask.numel() + 1).view(mask.shape) * mask
    while True:
        near = max_pool2d(label.double()[None, None], 3, stride=1, padding=1)[0, 0].long() * mask
        parent = torch.arange(mask.numel() + 1).scatter_reduce_(0, label.flatten(), near.flatten(), "amax")
        while not torch.equal(parent, higher := parent[parent]):
            parent = higher
        merged = parent[label]
        if torch.equal(merged, label):
            break
        label = merged
    there = torch.zeros(mask.numel() + 1, dtype=torch.long)
    there[label[mask]] = 1
    return (there.cumsum(dim=0) * there)[label]


def _against(scores: Tensor, anomalous: Tensor, *, ndim: int) -> tuple[Tensor, Tensor]:
    """Both on the CPU, with scores that are not numbers on the wrong side."""
    if scores.shape != anomalous.shape or scores.ndim != ndim:
        raise ValueError(
            f"scores {tuple(scores.shape)} and truth {tuple(anomalous.shape)} must have the same shape of {ndim} "
            "dimensions; resize maps of scores to the masks"
        )
    if anomalous.dtype != torch.bool:
        raise ValueError(f"the truth is {anomalous.dtype}; give booleans, true where anomalous")
    scores, anomalous = scores.cpu(), anomalous.cpu()
    scores = scores if scores.dtype == torch.float64 else scores.float()
    return torch.where(scores.isnan(), torch.where(anomalous, -torch.inf, torch.inf), scores), anomalous


def _check_both(*, normal: int, anomalous: int, what: str) -> None:
    if not normal or not anomalous:
        raise ValueError(
            f"{normal} normal and {anomalous} anomalous {what}s: these measures compare the two; check the labels, or "
            "measure a split that has both"
        )


def _cells(scores: Tensor, edges: Tensor) -> Tensor:
    """2 i + 1 for a score equal to edge i, 2 i for one between edges i - 1 and i."""
    left = torch.searchsorted(edges, scores.to(edges.dtype))
    return 2 * left + (edges[left.clamp_max(len(edges) - 1)] == scores)


def _add(picture: _Picture, edges: Tensor, counts: Tensor) -> None:
    normal, anomalous = _cells(picture.normal, edges), _cells(picture.anomalous, edges)
    counts[0].index_add_(0, normal, torch.ones(len(normal), dtype=torch.float64))
    counts[1].index_add_(0, anomalous, torch.ones(len(anomalous), dtype=torch.float64))
    counts[2].index_add_(0, anomalous, picture.share)


def _from_above(counts: Tensor) -> Tensor:
    """How many lie in a cell or a higher one, highest cell first."""
    return counts.flip(-1).cumsum(dim=-1)


def _curve_numbers(prefix: str, *, normal: Tensor, anomalous: Tensor) -> dict[str, Tensor]:
    """Numbers [...] from counts [..., K]; each cell is one threshold, so those of a cell tie."""
    false, true = _from_above(normal), _from_above(anomalous)
    found = anomalous.flip(-1)
    total = true[..., -1:]
    return {
        f"{prefix}_auroc": _area(false / false[..., -1:], true / total, 1.0),
        f"{prefix}_average_precision": (found * true / (true + false).clamp_min(1)).sum(dim=-1) / total[..., 0],
        f"{prefix}_f1_max": (2 * true / (true + false + total)).amax(dim=-1),
    }


def _area(x: Tensor, y: Tensor, limit: float) -> Tensor:
    """Area [...] under the line from (0, 0) through the points [..., K] up to x = limit."""
    origin = torch.zeros_like(x[..., :1])
    step, rise = torch.diff(x, prepend=origin), torch.diff(y, prepend=origin)
    width = (limit - (x - step)).clamp_min(0).minimum(step)
    part = width / step.where(step > 0, torch.ones_like(step))
    return (width * (y - rise + part * rise / 2)).sum(dim=-1)


def _chance(prefix: str, *, total: int, anomalous: int) -> dict[str, float]:
    _check_both(normal=total - anomalous, anomalous=anomalous, what="picture" if prefix == "image" else "pixel")
    share = anomalous / total
    precision = expected_average_precision(candidates=total, positives=torch.tensor([anomalous]))
    values = {"auroc": 0.5, "average_precision": precision, "f1_max": 2 * share / (1 + share)}
    return {f"{prefix}_{name}": value for name, value in values.items()}
