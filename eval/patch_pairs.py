"""How alike patches of one region are, and how alike those of different ones: MMC's second evaluation (2308.11448)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlp.metrics.interval import Interval
from vlp.metrics.multilabel import percentiles_of, resamples

BINS = 100  # of cosines from -1 to 1


class Region(NamedTuple):
    """An object, or a class where masks show classes: its pixels, and the share of each patch that it covers."""

    kind: str  # what prompts of other pictures know it by
    pixels: Bool[Tensor, "h w"]
    cover: Float[Tensor, "P"]


class PatchPairs:
    """intra_similarity and inter_similarity, the mean cosine of patches inside regions and between a region and what is
    not it, and similarity_overlap, the share that the histograms of the two have in common (smaller is better).
    """

    def __init__(self) -> None:
        self.means: list[Tensor] = []  # [2]
        self.counts: list[Tensor] = []  # [2, BINS], shares

    def add(self, tokens: Float[Tensor, "P W"], regions: Sequence[Region]) -> bool:
        """Adds a picture by its unit tokens; False where it has no pair of one of the two kinds."""
        if not regions:
            return False
        made = pair_cosines(tokens, owners(regions), len(regions))
        if not all(len(cosines) for cosines in made):
            return False
        self.means.append(torch.stack([cosines.double().mean() for cosines in made]))
        places = [((cosines + 1) / 2 * BINS).long().clamp(0, BINS - 1) for cosines in made]
        self.counts.append(torch.stack([torch.bincount(place, minlength=BINS) / len(place) for place in places]))
        return True

    def compute(self) -> dict[str, float]:
        """Means over pictures; empty without one."""
        return {name: float(value) for name, value in self._numbers(torch.ones(1, len(self.means))).items()}

    def intervals(self, *, n_boot: int) -> dict[str, Interval]:
        """95 % bootstrap intervals, drawing pictures."""
        every = resamples(torch.zeros(len(self.means), dtype=torch.long), n_boot=n_boot, seed=0)
        return percentiles_of(self._numbers(times) for times in every) if self.means else {}

    def histograms(self) -> dict[str, list[float]]:
        """Shares of cosines from -1 to 1, mean over pictures."""
        if not self.counts:
            return {}
        return dict(zip(("intra_histogram", "inter_histogram"), torch.stack(self.counts).mean(dim=0).tolist()))

    def _numbers(self, times: Tensor) -> dict[str, Tensor]:
        """[R] by name, of pictures drawn `times` [R, n]"""
        if not self.means:
            return {}
        share = times.double() / times.sum(dim=1, keepdim=True)
        means = share @ torch.stack(self.means)
        counts = (share @ torch.stack(self.counts).double().flatten(1)).unflatten(1, (2, BINS))
        overlap = counts.amin(dim=1).sum(dim=1)
        return {"intra_similarity": means[:, 0], "inter_similarity": means[:, 1], "similarity_overlap": overlap}


def owners(regions: Sequence[Region]) -> Int[Tensor, "P"]:
    """Number of the region that covers more than half of each patch; len(regions) where all together cover less; -1
    for patches that are neither.
    """
    cover = torch.stack([region.cover for region in regions])
    most, number = cover.max(dim=0)
    rest = torch.where(cover.sum(dim=0) < 0.5, len(regions), -1)
    return torch.where(most > 0.5, number, rest)


def pair_cosines(
    tokens: Float[Tensor, "P W"], owner: Int[Tensor, "P"], background: int
) -> tuple[Float[Tensor, "intra"], Float[Tensor, "inter"]]:
    """Cosines of all pairs of patches of one region, and of those of a region with patches of another or of none."""
    first, second = torch.triu_indices(len(tokens), len(tokens), offset=1)
    cosines, one, other = (tokens @ tokens.T)[first, second], owner[first], owner[second]
    known, object_in = (one >= 0) & (other >= 0), (one < background) | (other < background)
    return cosines[known & object_in & (one == other)], cosines[known & object_in & (one != other)]
