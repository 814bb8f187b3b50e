"""Items to one batch: pictures stacked as uint8, all captions tokenised in one call."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

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
    negatives: int = 0,
    blank: Mapping[str, Tensor] | None = None,
    round_to: int = 8,
    image: Tensor | None = None,
) -> Batch:
    """A batch with K = `captions` slots a picture; None makes a slot with `valid = False` and zeros.

    `labels` are the final ones (class + source offset); without them an item's own label is taken, and one that is
    unique in this batch where it has none. T is the longest caption rounded up to `round_to`, at most the context.

    With M = `negatives` above 0, extra has `negative_text` long [B, M, T'] and `negative_mask` bool [B, M, T'], True up
    to the end token; one whose ids are those of a caption of its picture is left out. `blank` has the zeros of one slot
    for every column, so that a batch without any sample has them too. `image` comes from `pictures`, and the items'
    pictures may lie in it already.
    """
    valid = torch.tensor([item is not None for item in items], dtype=torch.bool)
    image = _filled(pictures(len(items), size) if image is None else image, items)
    said, denied = _encode(items, tokenizer, captions, negatives)
    said, wordless = _with_tokens(said)
    denied, notes = _unlike(denied, said)
    text, token_mask = _padded(said, (len(items), captions), tokenizer, round_to)
    caption_mask = torch.zeros(len(items), captions, dtype=torch.bool)
    for place in said:
        caption_mask[place] = True
    extra = dict(_columns(items, blank or {}))
    if negatives:
        extra["negative_text"], extra["negative_mask"] = _padded(denied, (len(items), negatives), tokenizer, round_to)
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
        extra=extra,
        keys=tuple(keys) if keys is not None else tuple("" if item is None else item.key for item in items),
        skips=tuple(skips),
        notes=(*(note for item in items if item for note in item.notes), *wordless, *notes),
    )


def pictures(count: int, size: tuple[int, int]) -> Tensor:
    """Memory for uint8 [B, 3, H, W]; in a loader worker the memory that it shares, or all would be copied there."""
    shape = (count, 3, *size)
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    shared = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(shared, 0, shape)  # type: ignore[call-overload, no-any-return]


def _filled(image: Tensor, items: Sequence[Item | None]) -> Tensor:
    for item, target in zip(items, image):
        if item is None:
            target.zero_()
        elif item.image.shape != target.shape:
            raise ValueError(f"{item.key}: picture {list(item.image.shape)}, the batch holds {list(target.shape)}")
        elif item.image.data_ptr() != target.data_ptr():
            target.copy_(item.image)
    return image


Rows = dict[tuple[int, int], list[int]]  # (slot, number in it) -> ids


def _encode(items: Sequence[Item | None], tokenizer: Tokenizer, captions: int, negatives: int) -> tuple[Rows, Rows]:
    """Ids of the captions and of the false captions, by their places."""
    present = [(slot, item) for slot, item in enumerate(items) if item is not None]
    said = {(slot, k): text for slot, item in present for k, text in enumerate(item.captions[:captions])}
    denied = {(slot, m): text for slot, item in present for m, text in enumerate(item.negatives[:negatives])}
    rows = tokenizer.encode([*said.values(), *denied.values()])
    return dict(zip(said, rows)), dict(zip(denied, rows[len(said) :]))


def _with_tokens(said: Rows) -> tuple[Rows, list[str]]:
    """The captions without those that a tokenizer with no end token makes nothing of; a note for each of these."""
    kept = {place: ids for place, ids in said.items() if ids}
    return kept, ["caption_without_tokens"] * (len(said) - len(kept))


def _unlike(denied: Rows, said: Rows) -> tuple[Rows, list[str]]:
    """The false captions without those that, once cut, are a caption of their picture; a note for each of these."""
    truths: dict[int, list[list[int]]] = {}
    for (slot, _), ids in said.items():
        truths.setdefault(slot, []).append(ids)
    kept = {place: ids for place, ids in denied.items() if ids not in truths.get(place[0], ())}
    return kept, ["negative_is_caption"] * (len(denied) - len(kept))


def _padded(rows: Rows, shape: tuple[int, int], tokenizer: Tokenizer, round_to: int) -> tuple[Tensor, Tensor]:
    """Ids and mask [*shape, T]; T is the longest row rounded up to `round_to`, at most the context."""
    longest = max((len(ids) for ids in rows.values()), default=1)
    length = min(-(-longest // round_to) * round_to, tokenizer.context)
    text = torch.full((*shape, length), tokenizer.pad, dtype=torch.long)
    mask = torch.zeros(*shape, length, dtype=torch.bool)
    for (slot, number), ids in rows.items():
        text[slot, number, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        mask[slot, number, : len(ids)] = True
    return text, mask


def _own_label(item: Item | None, slot: int) -> int:
    return UNLABELLED + slot if item is None or item.label is None else item.label


def _columns(items: Sequence[Item | None], blank: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The columns of `blank` and any that an item has: zeros where an item is missing; all items need the same ones."""
    present = [item for item in items if item is not None]
    zeros = {name: torch.zeros_like(value) for item in present[:1] for name, value in item.extra.items()} | dict(blank)
    columns = {}
    for name in sorted({*zeros, *(name for item in present for name in item.extra)}):
        lacking = [item.key for item in present if name not in item.extra]
        if lacking:
            raise ValueError(f'column "{name}" is missing in {lacking[0]} and {len(lacking) - 1} more of this batch')
        columns[name] = torch.stack([zeros[name] if item is None else item.extra[name] for item in items])
    return columns
