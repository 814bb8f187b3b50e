"""Retrieval with several right answers a query: average precision, inverse negative penalty, precision and recall at k.

Letters: Q queries, M pictures (or texts) of the gallery, K depths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlp.metrics import chance
from vlp.metrics.interval import Interval, of_means
from vlp.metrics.recall import TIE


class LabelRanks(NamedTuple):
    """Per query, ties against the model. Without a right answer: average precision nan, ranks without meaning."""

    average_precision: Float[Tensor, "Q"]  # mean over the right answers of the precision down to each
    first: Int[Tensor, "Q"]  # 1-based rank of the first right answer
    last: Int[Tensor, "Q"]  # and of the last one
    hits: Int[Tensor, "Q K"]  # right answers among the first k
    positives: Int[Tensor, "Q"]  # right answers in the gallery


def label_ranks(
    query: Float[Tensor, "Q D"],
    gallery: Float[Tensor, "M D"],
    query_label: Int[Tensor, "Q"],
    gallery_label: Int[Tensor, "M"],
    *,
    precision_at: Sequence[int] = (5, 10, 100),
    own: Int[Tensor, "Q"] | None = None,
    block: int = 256,
) -> LabelRanks:
    """Places of the answers with the query's label (identity, class), from all scores of `block` queries at a time.

    In fp64, where a wrong answer within 1e-6 of a right one counts as ahead of it, as in `recall.retrieval_ranks`, and
    so does one whose score is not a number. Depths beyond the gallery see all of it. `own`: the place in the gallery of
    each query itself, which is then no answer to it, right or wrong.
    """
    if len(query) != len(query_label) or len(gallery) != len(gallery_label):
        raise ValueError(
            f"{len(query)} queries with {len(query_label)} labels, gallery of {len(gallery)} with "
            f"{len(gallery_label)} labels: every feature needs one label"
        )
    if len(gallery) <= (own is not None):
        raise ValueError("the gallery is empty, so that no query can be ranked; check which split was opened")
    known, ranked = gallery.double(), []
    for start in range(0, max(1, len(query)), block):
        rows = slice(start, start + block)
        scores, right = query[rows].double() @ known.T, query_label[rows, None] == gallery_label
        if own is not None:
            others = torch.ones_like(right).scatter_(1, own[rows, None], False)
            scores, right = (values[others].view(len(values), -1) for values in (scores, right))
        ranked.append(_ranks(scores, right, precision_at))
    return LabelRanks(*(torch.cat(column) for column in zip(*ranked)))


def _ranks(scores: Tensor, right: Tensor, depths: Sequence[int]) -> LabelRanks:
    bar = torch.where(scores.isnan(), torch.where(right, -torch.inf, torch.inf), scores - TIE * right)
    hit = right.gather(1, bar.argsort(dim=1, descending=True))
    found = hit.cumsum(dim=1)
    rank = torch.arange(1, scores.shape[1] + 1, dtype=torch.float64, device=scores.device)
    positives = found[:, -1]
    columns = torch.tensor([min(k, scores.shape[1]) - 1 for k in depths], dtype=torch.long, device=scores.device)
    return LabelRanks(
        average_precision=(found * hit / rank).sum(dim=1) / positives,
        first=1 + (found == 0).sum(dim=1),
        last=1 + (found < positives[:, None]).sum(dim=1),
        hits=found[:, columns],
        positives=positives,
    )


@dataclass
class LabelRetrieval:
    """Retrieval where every answer with the query's label is right; the state is what `label_ranks` gives.

    mAP           mean average precision
    mINP          mean of right answers / rank of the last one (Ye et al. 2021, arXiv 2001.04193)
    recall@k      share of queries with a right answer among the first k: CMC rank-k of the identity protocol of
                  CUHK-PEDES, ICFG-PEDES and RSTPReid (PLIP, arXiv 2305.08386)
    precision@k   mean share of right answers among the first k (ConVIRT, arXiv 2010.00747)

    Queries without a right answer in the gallery are left out of all and counted in `skipped`.
    """

    prefix: str
    candidates: int
    recall_at: Sequence[int] = (1, 5, 10)
    precision_at: Sequence[int] = (5, 10, 100)
    _ranks: list[LabelRanks] = field(default_factory=list)
    _groups: list[Tensor | None] = field(default_factory=list)

    def update(self, ranks: LabelRanks, *, groups: Int[Tensor, "Q"] | None = None) -> None:
        """Adds queries; `groups` are drawn together in the bootstrap: the identity, where it has several captions."""
        if ranks.hits.shape[1] != len(self.precision_at):
            raise ValueError(
                f"{self.prefix}: ranks with {ranks.hits.shape[1]} depths, {len(self.precision_at)} expected; give "
                f"label_ranks precision_at={tuple(self.precision_at)}"
            )
        self._ranks.append(LabelRanks(*(column.cpu() for column in ranks)))
        self._groups.append(None if groups is None else groups.cpu())

    def merge(self, other: LabelRetrieval) -> None:
        """Adds the other state's queries; group numbers must mean the same in both."""
        if self._settings() != other._settings():
            raise ValueError(f"states of different metrics cannot be merged: {self._settings()}, {other._settings()}")
        self._ranks += other._ranks
        self._groups += other._groups

    @property
    def skipped(self) -> dict[str, int]:
        """How many queries have no number, by reason."""
        without = sum(int((ranks.positives == 0).sum()) for ranks in self._ranks)
        return {"query_without_a_right_answer": without} if without else {}

    def compute(self) -> dict[str, float]:
        """Means over queries; empty where no query has a right answer."""
        columns = self._columns()
        return dict(zip(self._names(), columns.mean(dim=0).tolist())) if len(columns) else {}

    def intervals(self, *, n_boot: int = 1000, seed: int = 0) -> dict[str, Interval]:
        """95 % bootstrap interval of every number of `compute`, drawing groups where they were given."""
        columns = self._columns()
        if not len(columns):
            return {}
        given = [groups for groups in self._groups if groups is not None]
        if given and len(given) < len(self._groups):
            raise ValueError(f"{self.prefix}: groups were given for some queries and not for others")
        groups = torch.cat(given)[self._positives() > 0] if given else None
        return dict(zip(self._names(), of_means(columns, groups=groups, n_boot=n_boot, seed=seed)))

    def chance(self) -> dict[str, float]:
        """What random scores reach in expectation."""
        positives = self._positives()
        positives = positives[positives > 0]
        if not len(positives):
            return {}
        m, share = self.candidates, float(positives.double().mean()) / self.candidates
        values = [
            expected_average_precision(candidates=m, positives=positives),
            expected_inverse_negative_penalty(candidates=m, positives=positives),
            *(chance.recall_at(k, candidates=m, positives=positives) for k in self.recall_at),
            *(share * min(k, m) / k for k in self.precision_at),
        ]
        return dict(zip(self._names(), values))

    def _names(self) -> list[str]:
        recalls = [f"recall@{k}" for k in self.recall_at]
        precisions = [f"precision@{k}" for k in self.precision_at]
        return [f"{self.prefix}_{name}" for name in ("mAP", "mINP", *recalls, *precisions)]

    def _settings(self) -> tuple[str, int, tuple[int, ...], tuple[int, ...]]:
        return self.prefix, self.candidates, tuple(self.recall_at), tuple(self.precision_at)

    def _positives(self) -> Tensor:
        parts = [ranks.positives for ranks in self._ranks]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)

    def _columns(self) -> Tensor:
        """[queries with a right answer, names]"""
        if not self._ranks:
            return torch.empty(0, len(self._names()), dtype=torch.float64)
        ranks = LabelRanks(*(torch.cat(column) for column in zip(*self._ranks)))
        columns = [
            ranks.average_precision,
            ranks.positives.double() / ranks.last,
            *((ranks.first <= k).double() for k in self.recall_at),
            *(ranks.hits[:, i].double() / k for i, k in enumerate(self.precision_at)),
        ]
        return torch.stack(columns, dim=1)[ranks.positives > 0]


def expected_average_precision(*, candidates: int, positives: Int[Tensor, "Q"]) -> float:
    """Mean over queries of the expected average precision of a random order, G right answers among M candidates.

    The item at rank r is right with probability G / M, and then (r - 1) (G - 1) / (M - 1) right ones are expected above
    it; summed over ranks, (H(M) + (G - 1) / (M - 1) (M - H(M))) / M, H(M) the M-th harmonic number. Near G / M.
    """
    m, g = candidates, positives.double()
    harmonic = float(torch.digamma(torch.tensor(m + 1.0, dtype=torch.float64))) + 0.5772156649015329
    above = (g - 1) / max(m - 1, 1)
    return float(((harmonic + above * (m - harmonic)) / m).mean())


def expected_inverse_negative_penalty(*, candidates: int, positives: Int[Tensor, "Q"]) -> float:
    """Mean over queries of the expected G / (rank of the last of G right answers) of M candidates in random order.

    The last one has rank r with probability C(r - 1, G - 1) / C(M, G), here by the ratio of neighbouring ranks.
    """
    total = 0.0
    for g, queries in zip(*(column.tolist() for column in positives.unique(return_counts=True))):
        rank = torch.arange(candidates, g - 1, -1, dtype=torch.float64)
        ratio = (rank - g + 1) / rank
        ratio[0] = g / candidates
        total += queries * float((g / rank * ratio.cumprod(dim=0)).sum())
    return total / len(positives)
