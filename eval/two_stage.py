"""Retrieval in two stages: the pooled features choose candidates, their tokens order them (late interaction)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlp.kernels.late import PadMax
from vlp.metrics.recall import TIE, Found, Ranks
from vlp.token_scores import scores_of_image, scores_of_text, token_scores
from vlp.token_store import ImageTokens, TextTokens

TOKEN_TIE = 1e-5  # tokens are kept in half precision: nearer similarities are equal for all we know
Side = Literal["image", "text"]


@dataclass(frozen=True)
class TwoStage:
    """N pictures and their M captions; a query's first `rerank` answers by pooled cosine are ordered by their tokens.

    Captions rank pictures by the mean over words of the best patch, pictures rank captions by the mean over patches of
    the best word. What is not among the candidates stands behind them in its pooled order; 0 re-ranks everything.
    """

    image: ImageTokens
    text: TextTokens
    caption_image: Int[Tensor, "M"]  # row of the picture that each caption describes
    rerank: int
    pad_max: PadMax = "exclude"
    block: int = 256
    device: torch.device | str = "cpu"

    def ranks(self) -> Ranks:
        """1-based ranks as `vlp.metrics.recall` defines them, ties against the model."""
        return Ranks(self._ranks("image"), self._ranks("text"))

    def best(self, side: Side, queries: Int[Tensor, "Q"], *, k: int) -> Found:
        """The k best answers to pictures or captions, with their similarity by tokens."""
        gallery = self._features("text" if side == "image" else "image")
        count = self._count(len(gallery))
        rows, scores = [], []
        for query in queries.tolist():
            pooled = gallery @ self._features(side)[query]
            candidates = pooled.topk(min(max(count, k), len(gallery))).indices
            late = self._one(side, query, candidates)
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
            return _rank(self._all(side, rows), right, tie=TOKEN_TIE)
        candidates = pooled.topk(count).indices
        hit = right.gather(1, candidates)
        for place in hit.any(dim=1).nonzero().flatten().tolist():
            late = self._one(side, int(rows[place]), candidates[place])
            rank[place] = _rank(late[None], hit[place : place + 1], tie=TOKEN_TIE)[0]
        return rank

    def _one(self, side: Side, query: int, candidates: Int[Tensor, "k"]) -> Float[Tensor, "k"]:
        """Similarities by tokens of one query."""
        text, mask = self.text.tokens, self.text.mask
        if side == "text":
            return scores_of_text(self.image.tokens[candidates], text[query, mask[query]], device=self.device)
        return scores_of_image(
            self.image.tokens[query], text[candidates], mask[candidates], pad_max=self.pad_max, device=self.device
        )

    def _all(self, side: Side, queries: Int[Tensor, "q"]) -> Float[Tensor, "q G"]:
        """Similarities by tokens with the whole gallery."""
        image, text, mask = self.image.tokens, self.text.tokens, self.text.mask
        if side == "image":
            return token_scores(image[queries], text, mask, want="rows", pad_max=self.pad_max, device=self.device)
        return token_scores(image, text[queries], mask[queries], want="columns", device=self.device).T

    def _features(self, side: Side) -> Tensor:
        return self.image.features if side == "image" else self.text.features

    def _owner(self, side: Side) -> Callable[[Tensor], Tensor]:
        """Of queries: bool [q, G], which answers are right."""
        if side == "image":
            return lambda rows: self.caption_image == rows[:, None]
        return lambda rows: torch.arange(len(self.image.features)) == self.caption_image[rows][:, None]

    def _count(self, gallery: int) -> int:
        return min(self.rerank or gallery, gallery)


def _rank(scores: Float[Tensor, "q k"], right: Bool[Tensor, "q k"], *, tie: float = 0.0) -> Int[Tensor, "q"]:
    """1 + number of wrong answers that score at least as well as the best right one; what is no number ranks last."""
    best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True) - tie
    return 1 + (~(best > scores) & ~right).sum(dim=1)
