"""open_clip's TextTransformer, run on embeddings at natural length where that changes nothing.

A causal tower that pools at the end token never looks past it, so columns behind the longest text may be cut.
A tower that looks both ways without masking (SigLIP, CLIPA, MobileCLIP-S), or pools at the last position, sees its
padding: cut texts get other features (by up to 0.42), so its input is padded to the full context instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from vlp.models.blocks import can_pool_early, pooled_block, run_blocks


class TextOutput(NamedTuple):
    """What a text tower makes of n texts; nothing is normalised yet."""

    pooled: Tensor  # [n, D]
    tokens: Tensor | None = None  # [n, T, D], projected
    hidden: Tensor | None = None  # [n, T, width], before the projection


class TextTower(Protocol):
    """How a text module is run: from ids to embeddings, from embeddings to vectors."""

    width: int  # of token embeddings
    context: int  # most positions a text may have
    trims: bool  # features do not change when columns of padding are cut

    @property
    def blocks(self) -> Sequence[nn.Module]: ...
    def mask(self, ids: Tensor) -> Tensor: ...
    def end(self, ids: Tensor, mask: Tensor | None) -> Tensor: ...
    def embed(self, ids: Tensor) -> Tensor: ...
    def run(self, embeds: Tensor, mask: Tensor, end: Tensor, *, tokens: bool) -> TextOutput: ...
    def checkpoint_blocks(self) -> None: ...


class ClipText:
    """The module is open_clip's, so weights keep their names; positions, mask, pooling and projection as there."""

    def __init__(self, text: Any, *, pad: Callable[[], int]) -> None:
        if text.pool_type not in ("first", "last", "argmax", "eos"):
            raise ValueError(
                f'text_cfg.pool_type "{text.pool_type}" gives no pooled text; use argmax, eos, first or last'
            )
        self.text = text
        self.width = int(text.token_embedding.embedding_dim)
        self.context = int(text.context_length)
        self.pad = pad  # id that fills rows; asked for only where the tower looks at padding
        self.causal = text.attn_mask is not None
        self.masked = bool(getattr(text, "use_pad_mask", False)) and not self.causal
        self.trims = (self.causal or self.masked) and text.pool_type != "last" and text.cls_emb is None
        self.checkpointing = False

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.text.transformer.resblocks)

    def checkpoint_blocks(self) -> None:
        self.checkpointing = True

    def mask(self, ids: Tensor) -> Tensor:
        """Bool [n, T]: what the tower masks, else up to the end token; all where it pools at the last position."""
        if self.masked or self.text.cls_emb is not None:
            seen: Tensor = ids != self.text.pad_id
            return seen
        if self.text.pool_type in ("first", "last"):
            return torch.ones_like(ids, dtype=torch.bool)
        upto: Tensor = torch.arange(ids.shape[1], device=ids.device) <= self.end(ids, None)[:, None]
        return upto

    def end(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Position of the end token, [n]: the last of the mask, else by open_clip's rule."""
        if mask is not None:
            return (mask.sum(dim=1) - 1).clamp_min(0)
        if self.text.pool_type == "eos":
            return ids.eq(int(self.text.eos_id)).int().argmax(dim=1)
        return ids.argmax(dim=1)

    def embed(self, ids: Tensor) -> Tensor:
        return self.text.token_embedding(ids).to(self.text.transformer.get_cast_dtype())  # type: ignore[no-any-return]

    def run(self, embeds: Tensor, mask: Tensor, end: Tensor, *, tokens: bool) -> TextOutput:
        t, T = self.text, embeds.shape[1]
        x = self._fill(embeds)
        if t.cls_emb is not None:
            x = torch.cat([x, t.cls_emb.to(x.dtype).expand(len(x), 1, -1)], dim=1)
        x = x + t.positional_embedding[: x.shape[1]].to(x.dtype)
        attention, at = self._attention(mask, x), self._pool_at(end, x)
        blocks = self.blocks
        early = not tokens and (self.causal or not self.masked) and t.cls_emb is None and can_pool_early(blocks[-1])
        x = run_blocks(blocks[:-1] if early else blocks, x, attention, checkpointing=self.checkpointing)
        if early:
            return TextOutput(self.project(t.ln_final(pooled_block(blocks[-1], x, at, causal=self.causal))))
        hidden = t.ln_final(x)
        pooled = self.project(hidden[torch.arange(len(x), device=x.device), at])
        if not tokens:
            return TextOutput(pooled)
        hidden = hidden[:, :T]
        return TextOutput(pooled, self.project(hidden), hidden)

    def project(self, x: Tensor) -> Tensor:
        projection = self.text.text_projection
        if projection is None:
            return x
        result: Tensor = projection(x) if isinstance(projection, nn.Linear) else x @ projection
        return result

    def _fill(self, x: Tensor) -> Tensor:
        """X up to the full context with embedded padding, where the tower looks at it."""
        missing = self.context - x.shape[1]
        if missing < 0:
            raise ValueError(f"a text of {x.shape[1]} positions does not fit the context of {self.context}")
        if self.trims or not missing:
            return x
        pad = self.embed(torch.full((1, 1), self.pad(), device=x.device))
        return torch.cat([x, pad.to(x.dtype).expand(len(x), missing, -1)], dim=1)

    def _pool_at(self, end: Tensor, x: Tensor) -> Tensor:
        if self.text.cls_emb is not None or self.text.pool_type == "last":
            return torch.full_like(end, x.shape[1] - 1)
        return torch.zeros_like(end) if self.text.pool_type == "first" else end

    def _attention(self, mask: Tensor, x: Tensor) -> Tensor | None:
        """Additive mask [L, L] or [n * heads, L, L], or None."""
        t, L = self.text, x.shape[1]
        causal = t.attn_mask[:L, :L].to(x.dtype) if self.causal else None
        if not self.masked and t.cls_emb is None:
            return causal
        seen = torch.nn.functional.pad(mask, (0, L - mask.shape[1] - (t.cls_emb is not None)))
        if t.cls_emb is not None:  # CoCa's published weights mask one position off; open_clip keeps that, so do we
            one = seen.new_ones(len(seen), 1)
            seen = torch.cat([seen, one] if getattr(t, "correct_cls_mask", False) else [one, seen], dim=1)
        additive = torch.zeros_like(seen, dtype=x.dtype).masked_fill_(~seen, float("-inf"))
        additive = additive[:, None].expand(-1, L, -1).repeat_interleave(t.heads, dim=0)
        return additive if causal is None else causal + additive
