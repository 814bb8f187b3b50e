"""Retrieval: ranks of the right answers by counting what scores at least as well, and recall at k from ranks.

Letters: N pictures, M captions, Q queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlp.metrics import chance
from vlp.metrics.interval import Interval, of_means, of_median

TIE = 1e-6  # scores of unit-norm fp32 features that differ by less are equal for all we know


class Ranks(NamedTuple):
    """1-based ranks, ties against the model: 1 + number of wrong answers that score at least as well."""

    image_to_text: Int[Tensor, "N"]  # of the best caption of each picture, its other captions aside
    text_to_image: Int[Tensor, "M"]


def retrieval_ranks(
    image: Float[Tensor, "N D"], text: Float[Tensor, "M D"], caption_image: Int[Tensor, "M"], *, block: int = 256
) -> Ranks:
    """Ranks both ways from one product of all pairs, `block` captions at a time; `caption_image`: each caption's row.

    In fp64 with ties within 1e-6, so that neither the size of the block nor the rounding of the product can make a
    right answer beat its own copy. A feature that is not a number ranks last, since only what is beaten is not counted.
    """
    n = len(image)
    if len(torch.unique(caption_image)) != n or (n and int(caption_image.max()) >= n):
        missing = sorted(set(range(n)) - set(caption_image.tolist()))[:5]
        raise ValueError(f"every picture needs a caption and every caption a picture; pictures without: {missing}")
    image, text = image.double(), text.double()
    bar = _scores_of_pairs(image, text, caption_image) - TIE
    best = torch.full((n,), -torch.inf, dtype=torch.float64, device=image.device)
    best.scatter_reduce_(0, caption_image, bar, "amax")
    image_to_text = torch.ones(n, dtype=torch.long, device=image.device)
    text_to_image = torch.empty(len(text), dtype=torch.long, device=image.device)
    no = torch.tensor(False, device=image.device)
    for start in range(0, len(text), block):
        rows = slice(start, start + block)
        scores = text[rows] @ image.T
        right = (torch.arange(len(scores), device=scores.device), caption_image[rows])
        text_to_image[rows] = 1 + (~(bar[rows, None] > scores)).index_put(right, no).sum(dim=1)
        image_to_text += (~(best > scores)).index_put(right, no).sum(dim=0)
    return Ranks(image_to_text, text_to_image)


class Found(NamedTuple):
    """The k best answers to each query, best first."""

    rows: Int[Tensor, "Q k"]
    scores: Float[Tensor, "Q k"]


def best_answers(query: Float[Tensor, "Q D"], gallery: Float[Tensor, "N D"], *, k: int, block: int = 256) -> Found:
    """Rows and scores of the k gallery features nearest to each query (fewer if the gallery is smaller)."""
    found = [(part @ gallery.T).topk(min(k, len(gallery))) for part in query.split(block)]
    if not found:
        return Found(torch.empty(0, k, dtype=torch.long), torch.empty(0, k))
    return Found(torch.cat([f.indices for f in found]), torch.cat([f.values for f in found]))


@dataclass
class RecallAtK:
    """Recall at k, mean and median rank of one direction; the state is the ranks themselves.

    `prefix` is what the numbers are called: "image_retrieval" finds pictures, "text_retrieval" finds captions.
    """

    prefix: str
    candidates: int
    k: Sequence[int] = (1, 5, 10)
    _ranks: list[Tensor] = field(default_factory=list)
    _positives: list[Tensor] = field(default_factory=list)
    _groups: list[Tensor | None] = field(default_factory=list)

    def update(
        self,
        ranks: Int[Tensor, "Q"],
        *,
        positives: Int[Tensor, "Q"] | None = None,
        groups: Int[Tensor, "Q"] | None = None,
    ) -> None:
        """Ranks of some queries, how many right answers each has (1), and which are drawn together in the bootstrap."""
        ranks = ranks.cpu()
        self._ranks.append(ranks)
        self._positives.append(torch.ones_like(ranks) if positives is None else positives.cpu())
        self._groups.append(None if groups is None else groups.cpu())

    def merge(self, other: RecallAtK) -> None:
        """Adds the other state's queries; group numbers must mean the same in both."""
        if (self.prefix, self.candidates, tuple(self.k)) != (other.prefix, other.candidates, tuple(other.k)):
            raise ValueError(f"states of different metrics cannot be merged: {self.prefix} and {other.prefix}")
        self._ranks += other._ranks
        self._positives += other._positives
        self._groups += other._groups

    def compute(self) -> dict[str, float]:
        """Shares of queries ranked k or better, mean and median rank."""
        ranks = self._cat(self._ranks).double()
        if not len(ranks):
            return {}
        values = {name: float((ranks <= k).double().mean()) for name, k in self._names()}
        return {**values, self._mean: float(ranks.mean()), self._median: float(ranks.quantile(0.5))}

    def intervals(self, *, n_boot: int = 1000, seed: int = 0) -> dict[str, Interval]:
        """95 % bootstrap interval of every number of `compute`; that of the median does not know groups."""
        ranks = self._cat(self._ranks).double()
        if not len(ranks):
            return {}
        columns = torch.stack([*((ranks <= k).double() for _, k in self._names()), ranks], dim=1)
        given = [groups for groups in self._groups if groups is not None]
        if given and len(given) < len(self._groups):
            raise ValueError(f"{self.prefix}: groups were given for some queries and not for others")
        groups = self._cat(given) if given else None
        found = of_means(columns, groups=groups, n_boot=n_boot, seed=seed)
        names = [*(name for name, _ in self._names()), self._mean]
        return {**dict(zip(names, found)), self._median: of_median(ranks, n_boot=n_boot, seed=seed)}

    def chance(self) -> dict[str, float]:
        """What random scores reach in expectation."""
        with_c = {"candidates": self.candidates, "positives": self._cat(self._positives)}
        values = {name: chance.recall_at(k, **with_c) for name, k in self._names()}  # type: ignore[arg-type]
        return {**values, self._mean: chance.mean_rank(**with_c), self._median: chance.median_rank(**with_c)}  # type: ignore[arg-type]

    @property
    def lower_is_better(self) -> frozenset[str]:
        return frozenset({self._mean, self._median})

    @property
    def _mean(self) -> str:
        return f"{self.prefix}_mean_rank"

    @property
    def _median(self) -> str:
        return f"{self.prefix}_median_rank"

    def _names(self) -> list[tuple[str, int]]:
        return [(f"{self.prefix}_recall@{k}", k) for k in self.k]

    @staticmethod
    def _cat(parts: list[Tensor]) -> Tensor:
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)


def _scores_of_pairs(image: Tensor, text: Tensor, caption_image: Tensor) -> Tensor:
    pairs = zip(text.split(4096), caption_image.split(4096))
    return torch.cat([torch.linalg.vecdot(t, image[rows]) for t, rows in pairs])
