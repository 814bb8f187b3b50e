"""The grid search of a cache's two strengths, over all folds at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from vlp.adapters.selection import Chosen, Score, choose

NUMBERS = 1 << 23  # held at once
Setting = tuple[float, float]  # beta, alpha


class Judged(NamedTuple):
    """m pictures to judge on: logits of the words, cosine to the n keys, label of each key, and their own."""

    words: Float[Tensor, "m C"]
    affinity: Float[Tensor, "m n"]
    key_label: Int[Tensor, "n"]
    label: Int[Tensor, "m"]

    def split(self, rows: int) -> list[Judged]:
        """The same in blocks of so many pictures."""
        return [
            Judged(words, affinity, self.key_label, label)
            for words, affinity, label in zip(
                self.words.split(rows), self.affinity.split(rows), self.label.split(rows), strict=True
            )
        ]


def search(
    judged: Sequence[Judged], betas: Sequence[float], alphas: Sequence[float], *, split: str, unchosen: Setting
) -> Chosen[Setting]:
    """The setting of the best accuracy over all pictures, ties against it; among equals the likeliest, then the first.

    The likelihood is computed only where accuracies are equal to the best: elsewhere it would decide nothing.
    """
    strength = torch.tensor(alphas, dtype=judged[0].words.dtype)
    total = sum(len(own.label) for own in judged)
    rows = max(1, NUMBERS // max(max(own.affinity.shape[1], len(alphas) * own.words.shape[1]) for own in judged))
    blocks = [block for own in judged for block in own.split(rows)]
    right = torch.zeros(len(betas), len(alphas), dtype=torch.long)
    for block in blocks:
        for row, cached in enumerate(_cached(block, betas)):
            right[row] += _right(block, cached, strength)
    scores = {
        (beta, alpha): Score(int(right[row, column]) / total, -torch.inf)
        for row, beta in enumerate(betas)
        for column, alpha in enumerate(alphas)
    }
    best = right == right.max()
    for row in torch.where(best.any(dim=1))[0].tolist():
        own = [alphas[column] for column in torch.where(best[row])[0].tolist()]
        for alpha, likelihood in zip(own, _likelihoods(blocks, betas[row], own), strict=True):
            scores[betas[row], alpha] = Score(int(right.max()) / total, likelihood / total)
    return choose(scores, scores.__getitem__, split=split, unchosen=unchosen)


def _cached(block: Judged, betas: Sequence[float]) -> Iterator[Float[Tensor, "m C"]]:
    """Votes of the cache for each beta."""
    value = one_hot(block.key_label, block.words.shape[1]).to(block.words.dtype)
    for beta in betas:
        yield (beta * (block.affinity - 1)).exp() @ value


def _right(block: Judged, cached: Float[Tensor, "m C"], alphas: Float[Tensor, "A"]) -> Int[Tensor, "A"]:
    """Number of pictures that each alpha gets right."""
    logits = block.words + alphas[:, None, None] * cached
    own = logits.gather(2, block.label[None, :, None].expand(len(alphas), -1, 1))
    return ((logits >= own).sum(dim=2) == 1).sum(dim=1)


def _likelihoods(blocks: Sequence[Judged], beta: float, alphas: Sequence[float]) -> list[float]:
    """Sum of log-likelihoods for each alpha."""
    total = [0.0] * len(alphas)
    for block in blocks:
        cached = next(_cached(block, [beta]))
        for place, alpha in enumerate(alphas):
            logits = (block.words + alpha * cached).double().log_softmax(dim=1)
            total[place] += float(logits.gather(1, block.label[:, None]).sum())
    return total
