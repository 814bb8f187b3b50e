"""Learned vectors among the words of a text: prefix conditioning (2206.01125) and shallow prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from vlp import dist
from vlp.models.text_clip import TextOutput, TextTower
from vlp.registry import nearest
from vlp.types import Batch

KINDS = ("caption", "label")  # of sources; texts without a source are read as captions
INIT_STD = 0.02  # as token embeddings of CLIP start


class Prefixes(nn.Module):
    """Learned vectors [length, width] for each kind of source (2206.01125 section 3.2, where length is 1).

    A batch knows its sources by number; `serve` says of which kind each is. Until then, and for texts without a batch,
    all are of the current `kind`.
    """

    table: Tensor | None

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.length, self.kind = length, KINDS[0]
        for kind in KINDS:
            self.register_parameter(kind, nn.Parameter(torch.randn(length, width) * INIT_STD))
        self.register_buffer("table", None, persistent=False)

    def serve(self, kinds: Sequence[str]) -> None:
        """Take batches whose source k is of kind `kinds[k]`."""
        self.table = torch.tensor([KINDS.index(kind) for kind in kinds], device=self.now().device)

    def now(self) -> Tensor:
        """The prefix [length, width] of the current kind."""
        return self.get_parameter(self.kind)

    def kinds(self, source: Tensor) -> Tensor:
        """Number of the kind of each of the sources, [B]."""
        return torch.full_like(source, KINDS.index(self.kind)) if self.table is None else self.table[source]

    def forward(self, kind: Tensor) -> Tensor:
        """Prefixes [n, length, width] of kinds [n]. Every prefix is in the graph, which is what DDP waits for."""
        whole = torch.stack([self.get_parameter(name) for name in KINDS])
        rows: Tensor = embedding(kind, whole.flatten(1)).unflatten(1, (self.length, -1))
        return rows

    def leave_absent(self, batch: Batch) -> None:
        """Take the gradient from each prefix whose kind no rank has a caption of, after the backward of `batch`.

        It is zero then, but AdamW would move the prefix on by its momentum.
        """
        kind = torch.where(batch.valid & batch.caption_mask.any(dim=1), self.kinds(batch.source), len(KINDS))
        counts = dist.total((kind[:, None] == torch.arange(len(KINDS), device=kind.device)).sum(dim=0))
        for name, count in zip(KINDS, counts.tolist(), strict=True):
            if not count:
                self.get_parameter(name).grad = None


@contextmanager
def prefixed(prefixes: Prefixes | None, kind: str) -> Iterator[None]:
    """While open, `kind` is the current one; ValueError where there are no prefixes, or none of that kind."""
    if prefixes is None:
        raise ValueError(f"prefix: {kind}, but this model has no prefixes; leave it out, or train with model.prefix=1")
    if kind not in KINDS:
        raise ValueError(f'prefix: no kind "{kind}" (one of {", ".join(KINDS)}){nearest(kind, KINDS)}')
    before, prefixes.kind = prefixes.kind, kind
    try:
        yield
    finally:
        prefixes.kind = before


def has_start(tokenizer: Any) -> bool:
    """Whether texts begin with a token of their own; the only one that an empty text has may be its end token."""
    ids = tokenizer.encode([""])[0]
    return len(ids) >= 2 or (len(ids) == 1 and getattr(tokenizer, "end", ids[0]) != ids[0])


def make_room(ids: Tensor, mask: Tensor, end: Tensor, *, room: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same texts with at most `room` positions: the longer ones lose words before their end token.

    ids, mask: [n, T], end: [n].
    """
    if room < 2:
        raise ValueError(f"a prefix leaves {room} positions for the text; use a shorter prefix or a longer context")
    if ids.shape[1] <= room:
        return ids, mask, end
    row = torch.arange(len(ids), device=ids.device)
    end_id, end = ids[row, end], end.clamp_max(room - 1)
    ids, mask = ids[:, :room].clone(), mask[:, :room]
    ids[row, end] = end_id
    return ids, mask, end


def insert(embeds: Tensor, mask: Tensor, end: Tensor, prefix: Tensor, *, at: int) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings [n, T + p, width] with `prefix` [(n,) p, width] at position `at`, and mask and end moved on."""
    n, p = len(embeds), prefix.shape[-2]
    prefix = prefix.to(embeds.dtype).expand(n, -1, -1)
    seen = mask.new_ones(n, p)
    return (
        torch.cat([embeds[:, :at], prefix, embeds[:, at:]], dim=1),
        torch.cat([mask[:, :at], seen, mask[:, at:]], dim=1),
        end + p,
    )


def run_behind(
    prefix: Tensor | None, tower: TextTower, text: tuple[Tensor, Tensor, Tensor], *, at: int, tokens: bool
) -> TextOutput:
    """What the tower makes of `text` (embeddings [n, T, width], mask, end) with `prefix` [(n,) p, width] at `at`.

    Tokens and hidden states are those of the text alone, [n, T, ...].
    """
    if prefix is None:
        return tower.run(*text, tokens=tokens)
    out = tower.run(*insert(*text, prefix, at=at), tokens=tokens)

    def words(x: Tensor | None) -> Any:
        return None if x is None else torch.cat([x[:, :at], x[:, at + prefix.shape[-2] :]], dim=1)

    return TextOutput(out.pooled, words(out.tokens), words(out.hidden))
