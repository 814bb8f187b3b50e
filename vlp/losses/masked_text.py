"""Masked language modelling on the text tower."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from vlp.losses.loss import Loss
from vlp.losses.per_sample import idle, mean_of
from vlp.losses.vocabulary import Vocabulary, hidden_width, token_table
from vlp.types import Batch, Features

_MASKED, _KEPT = 0.8, 0.1  # of the chosen tokens; the rest becomes a random token


class MaskedText(Loss):
    """BERT's masked language modelling (arXiv 1810.04805, 3.1), as UniPT and DeCLIP have it beside the contrast.

    A share of the words of every caption is chosen, never its start or end token; of these 80 % become the mask, 10 % a
    random token, 10 % stay. The mean over chosen tokens of all ranks of -log p(token). One more pass of the text tower;
    logits exist only for chosen tokens. `grounded` adds the projected image feature to their vectors, so that the
    picture may help. A causal tower predicts from the words before alone.

    Deviation: the mask is a learned vector unless `mask_id` names the tokenizer's own.
    """

    share: float = Field(0.15, gt=0.0, lt=1.0, description="of words that are chosen")
    tied: bool = Field(True, description="predict by the token embeddings; false: by a table of its own")
    grounded: bool = Field(False, description="let the pooled image feature help")
    mask_id: int | None = Field(None, ge=0, description="id of the tokenizer's mask token; None: a learned vector")

    cuts: ClassVar[bool] = False

    def heads(self, dual: Any) -> dict[str, nn.Module]:
        ids = token_table(dual.text).num_embeddings
        if self.mask_id is not None and self.mask_id >= ids:
            raise ValueError(
                f"mlm: mask_id {self.mask_id}, but the text tower has embeddings of {ids} ids, 0 the first"
            )
        return {"mlm": MaskedTextHead(self, dual)}

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """The term "mlm"."""
        term = mean_of(features.extra["mlm/nll"], features.extra["mlm/count"], batch)
        return {"mlm": term + idle(features, batch)}


class MaskedTextHead(nn.Module):
    """Sum of -log p over the chosen tokens of a sample's captions and their number: "mlm/nll", "mlm/count" [B]."""

    def __init__(self, settings: MaskedText, dual: Any) -> None:
        super().__init__()
        tower, table = dual.text_tower, token_table(dual.text)
        width, embedded = hidden_width(tower), table.embedding_dim
        self.share, self.mask_id = settings.share, settings.mask_id
        self.mask = nn.Parameter(0.02 * torch.randn(tower.width)) if settings.mask_id is None else None
        self.ground = nn.Linear(dual.dim, width) if settings.grounded else None
        transform = nn.Sequential(nn.Linear(width, embedded), nn.GELU(), nn.LayerNorm(embedded))
        self.vocabulary = Vocabulary(transform, table, tied=settings.tied)

    def forward(self, batch: Batch, towers: Any) -> dict[str, Tensor]:
        dual, (B, K, T) = towers.dual, batch.text.shape
        ids = batch.text.flatten(0, 1)
        seen = (batch.token_mask & (batch.valid[:, None] & batch.caption_mask)[..., None]).flatten(0, 1)
        chosen = words(seen, start=dual.prefix_at) & (torch.rand(B * K, T, device=ids.device) < self.share)
        hidden = self._hidden(dual, ids, chosen, seen)
        if self.ground is not None:
            hidden = hidden + self.ground(towers.features.image).repeat_interleave(K, dim=0)[:, None]
        row, place = chosen.nonzero(as_tuple=True)
        nll = self.vocabulary(hidden[row, place], ids[row, place], token_table(dual.text))
        sums = nll.new_zeros(B * K).index_add(0, row, nll)
        return {"mlm/nll": sums.reshape(B, K).sum(1), "mlm/count": chosen.sum(1).reshape(B, K).sum(1)}

    def _hidden(self, dual: Any, ids: Tensor, chosen: Tensor, seen: Tensor) -> Float[Tensor, "n T width"]:
        """What the tower makes of the texts with their chosen tokens hidden; rows without a text see one token."""
        masked, drawn = fates(chosen)
        random = torch.randint(dual.tokenizer.vocab_size, ids.shape, device=ids.device)
        ids = torch.where(drawn, random, ids)
        if self.mask_id is not None:
            ids = torch.where(masked, self.mask_id, ids)
        embeds = dual.embed(ids)
        if self.mask is not None:
            embeds = torch.where(masked[..., None], self.mask.to(embeds.dtype), embeds)
        first = torch.arange(seen.shape[1], device=seen.device) == 0
        seen = torch.where(seen.any(1, keepdim=True), seen, first)
        hidden: Tensor = dual.text_tower.run(embeds, seen, seen.sum(1) - 1, tokens=True).hidden
        return hidden


def words(seen: Bool[Tensor, "n T"], *, start: int) -> Bool[Tensor, "n T"]:
    """The real tokens without the last one, which ends the text, and without the first `start`."""
    place = torch.arange(seen.shape[1], device=seen.device)
    return (place >= start) & (place < seen.sum(1, keepdim=True) - 1)


def fates(chosen: Bool[Tensor, "n T"]) -> tuple[Bool[Tensor, "n T"], Bool[Tensor, "n T"]]:
    """Which of the chosen become the mask, and which a random token."""
    lot = torch.rand(chosen.shape, device=chosen.device)
    return chosen & (lot < _MASKED), chosen & (lot >= _MASKED + _KEPT)
