"""Retrieval in two stages: the pooled features choose candidates, a closer comparison orders them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eval.heads import Pairs, Side
from vlp.metrics.recall import TIE, Found, Ranks

TOKEN_TIE = 1e-5  # tokens are kept in half precision: nearer similarities are equal for all we know


@dataclass(frozen=True)
class TwoStage:
    """N pictures and their M captions; a query's first `rerank` answers by pooled cosine are ordered by `pairs`.

    What is not among the candidates stands behind them in its pooled order; 0 re-ranks everything.
    """

    image: Float[Tensor, "N D"]
    text: Float[Tensor, "M D"]
    caption_image: Int[Tensor, "M"]  # row of the picture that each caption describes
    pairs: Pairs
    rerank: int
    block: int = 256

    def ranks(self) -> Ranks:
        """1-based ranks as `vlp.metrics.recall` defines them, ties against the model."""
        return Ranks(self._ranks("image"), self._ranks("text"))

    def best(self, side: Side, queries: Int[Tensor, "Q"], *, k: int) -> Found:
        """The k best answers to pictures or captions, with their similarity by `pairs`."""
        gallery = self._features("text" if side == "image" else "image")
        count = self._count(len(gallery))
        rows, scores = [], []
        for query in queries.tolist():
            pooled = gallery @ self._features(side)[query]
            candidates = pooled.topk(min(max(count, k), len(gallery))).indices
            late = self.pairs.one(side, query, candidates)
            order = torch.cat([late[:count].argsort(descending=True), torch.arange(count, len(candidates))])[:k]
            rows.append(candidates[order])
            scores.append(late[order])
        return Found(torch.stack(rows), torch.stack(scores))

    def _ranks(self, side: Side) -> Int[Tensor, "Q"]:
        query, gallery = self._features(side).double(), self._features("text" if side == "image" else "image").double()
        owner = self._owner(side)
        found = []
        for rows in torch.arange(len(query)).split(self.block):
            right = owner(rows)
            pooled = query[rows] @ gallery.T
            pooled[right] -= TIE  # so that a tie stands in front of the right answer, also at the end of the candidates
            found.append(self._block(side, rows, pooled, right))
        return torch.cat(found)

    def _block(
        self, side: Side, rows: Int[Tensor, "q"], pooled: Float[Tensor, "q G"], right: Bool[Tensor, "q G"]
    ) -> Int[Tensor, "q"]:
        """Ranks of some queries: among the candidates if a right answer is there, else in the pooled order."""
        rank = _rank(pooled, right)
        count = self._count(pooled.shape[1])
        if count == pooled.shape[1]:
            return _rank(self.pairs.all(side, rows), right, tie=TOKEN_TIE)
        candidates = pooled.topk(count).indices
        hit = right.gather(1, candidates)
        for place in hit.any(dim=1).nonzero().flatten().tolist():
            late = self.pairs.one(side, int(rows[place]), candidates[place])
            rank[place] = _rank(late[None], hit[place : place + 1], tie=TOKEN_TIE)[0]
        return rank

    def _features(self, side: Side) -> Tensor:
        return self.image if side == "image" else self.text

    def _owner(self, side: Side) -> Callable[[Tensor], Tensor]:
        """Of queries: bool [q, G], which answers are right."""
        if side == "image":
            return lambda rows: self.caption_image == rows[:, None]
        return lambda rows: torch.arange(len(self.image)) == self.caption_image[rows][:, None]

    def _count(self, gallery: int) -> int:
        return min(self.rerank or gallery, gallery)


def _rank(scores: Float[Tensor, "q k"], right: Bool[Tensor, "q k"], *, tie: float = 0.0) -> Int[Tensor, "q"]:
    """1 + number of wrong answers that score at least as well as the best right one; what is no number ranks last."""
    best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True) - tie
    return 1 + (~(best > scores) & ~right).sum(dim=1)
