"""Items to one batch: pictures stacked as uint8, all captions tokenised in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vlp.data.stages import Item
from vlp.types import UNLABELLED, Batch, Skip, Tokenizer


def collate(
    items: Sequence[Item | None],
    *,
    tokenizer: Tokenizer,
    captions: int,
    size: tuple[int, int],
    labels: Sequence[int] | None = None,
    sources: Sequence[int] | None = None,
    keys: Sequence[str] | None = None,
    skips: Sequence[Skip] = (),
    round_to: int = 8,
) -> Batch:
    """A batch with K = `captions` slots a picture; None makes a slot with `valid = False` and zeros.

    `labels` are the final ones (class + source offset); without them an item's own label is taken, and one that is
    unique in this batch where it has none. T is the longest caption rounded up to `round_to`, at most the context.
    """
    valid = torch.tensor([item is not None for item in items], dtype=torch.bool)
    image = torch.zeros(len(items), 3, *size, dtype=torch.uint8)
    for slot, item in enumerate(items):
        if item is not None:
            if item.image.shape != image.shape[1:]:
                raise ValueError(f"{item.key}: picture {list(item.image.shape)}, the batch holds {[3, *size]}")
            image[slot] = item.image
    text, token_mask, caption_mask = _tokenize(items, tokenizer, captions, round_to)
    if labels is None:
        labels = [_own_label(item, slot) for slot, item in enumerate(items)]
    return Batch(
        image=image,
        text=text,
        token_mask=token_mask,
        caption_mask=caption_mask,
        valid=valid,
        label=torch.tensor(labels, dtype=torch.long),
        source=torch.tensor([0] * len(items) if sources is None else sources, dtype=torch.long),
        extra=_columns(items),
        keys=tuple(keys) if keys is not None else tuple("" if item is None else item.key for item in items),
        skips=tuple(skips),
        notes=tuple(note for item in items if item for note in item.notes),
    )


def _tokenize(
    items: Sequence[Item | None], tokenizer: Tokenizer, captions: int, round_to: int
) -> tuple[Tensor, Tensor, Tensor]:
    places = [
        (slot, number, caption)
        for slot, item in enumerate(items)
        if item is not None
        for number, caption in enumerate(item.captions[:captions])
    ]
    rows = tokenizer.encode([caption for _, _, caption in places])
    longest = max((len(ids) for ids in rows), default=1)
    length = min(-(-longest // round_to) * round_to, tokenizer.context)
    text = torch.full((len(items), captions, length), tokenizer.pad, dtype=torch.long)
    token_mask = torch.zeros(len(items), captions, length, dtype=torch.bool)
    caption_mask = torch.zeros(len(items), captions, dtype=torch.bool)
    for (slot, number, _), ids in zip(places, rows):
        text[slot, number, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        token_mask[slot, number, : len(ids)] = True
        caption_mask[slot, number] = True
    return text, token_mask, caption_mask


def _own_label(item: Item | None, slot: int) -> int:
    return UNLABELLED + slot if item is None or item.label is None else item.label


def _columns(items: Sequence[Item | None]) -> Mapping[str, Tensor]:
    """Extra columns that any item has: zeros where an item is missing; all items of a batch need the same ones."""
    present = [item for item in items if item is not None]
    names = sorted({name for item in present for name in item.extra})
    columns = {}
    for name in names:
        lacking = [item.key for item in present if name not in item.extra]
        if lacking:
            raise ValueError(f'column "{name}" is missing in {lacking[0]} and {len(lacking) - 1} more of this batch')
        zero = torch.zeros_like(present[0].extra[name])
        columns[name] = torch.stack([zero if item is None else item.extra[name] for item in items])
    return columns
