"""Texts that begin alike: their common beginning goes through a causal tower once (prompt templates, for one).

In a causal tower what stands behind a token cannot change it, so keys and values of a common beginning are the same for
all texts that have it. A text is cut into a beginning that it shares and the rest, which looks at the stored keys and
values. Exact up to the order of sums: the features are those of whole texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from vlp.models.blocks import can_pool_early
from vlp.models.text_clip import ClipText


class Group(NamedTuple):
    """Texts whose first `length` tokens are equal."""

    length: int
    places: list[int]


class Beginnings(NamedTuple):
    """Keys and values of some beginnings of one length, a pair for every block, [g, heads, p, d] each."""

    keys: list[Tensor]
    values: list[Tensor]


def can_share(tower: Any) -> bool:
    """Whether beginnings may be computed once: a causal tower of plain blocks that pools at the end token."""
    return (
        isinstance(tower, ClipText)
        and tower.causal
        and tower.trims
        and tower.text.pool_type in ("argmax", "eos")
        and all(can_pool_early(block) for block in tower.blocks)
    )


def groups(ids: Sequence[Sequence[int]]) -> list[Group]:
    """The texts by shared beginning, cut so that few tokens go through the tower; at least the end stays over."""
    order = sorted(range(len(ids)), key=lambda row: tuple(ids[row]))
    rows = [ids[row] for row in order]
    alike = [_common(a, b) for a, b in pairwise(rows)]
    cuts = _best(rows, alike, 0, len(rows))[1] if rows else []
    return [Group(length, order[start:stop]) for start, stop, length in cuts]


def _best(
    rows: Sequence[Sequence[int]], alike: Sequence[int], start: int, stop: int
) -> tuple[int, list[tuple[int, int, int]]]:
    """Tokens saved, and the ranges (start, stop, shared length) of sorted rows that save them."""
    if stop - start == 1:
        return 0, [(start, stop, 0)]
    shared = min(*alike[start : stop - 1], min(len(row) for row in rows[start:stop]) - 1)
    whole = shared * (stop - start - 1)
    parts = list(_parts(alike, start, stop, shared))
    if len(parts) == 1:
        return whole, [(start, stop, shared)]
    found = [_best(rows, alike, *part) for part in parts]
    apart = sum(saved for saved, _ in found)
    if apart > whole:
        return apart, [cut for _, cuts in found for cut in cuts]
    return whole, [(start, stop, shared)]


def _parts(alike: Sequence[int], start: int, stop: int, shared: int) -> Iterator[tuple[int, int]]:
    """Runs of rows that have more than `shared` tokens in common with their neighbour."""
    first = start
    for place in range(start, stop - 1):
        if alike[place] <= shared:
            yield first, place + 1
            first = place + 1
    yield first, stop


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    for place, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return place
    return min(len(a), len(b))


def run_shared(tower: ClipText, ids: Sequence[Sequence[int]], *, budget: int) -> Iterator[tuple[list[int], Tensor]]:
    """Places and pooled vectors [n, D], batch by batch of at most about `budget` tokens; nothing is normalised."""
    device = tower.text.token_embedding.weight.device
    by_length: dict[int, list[Group]] = {}
    for group in groups(ids):
        by_length.setdefault(group.length, []).append(group)
    for length, alike in sorted(by_length.items()):
        for some in _some(alike, max(1, budget // max(length, 1))):
            beginnings = torch.tensor(
                [list(ids[group.places[0]][:length]) for group in some], dtype=torch.long, device=device
            )
            stored = _begin(tower, beginnings)
            owner = {place: row for row, group in enumerate(some) for place in group.places}
            for places in _batches(ids, list(owner), length, budget):
                rest = [ids[place][length:] for place in places]
                width = max(map(len, rest))
                padded = torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in rest], device=device)
                end = torch.tensor([len(row) - 1 for row in rest], device=device)
                rows = torch.tensor([owner[place] for place in places], device=device)
                yield places, _finish(tower, padded, end, stored, rows, length)


def _some(alike: Sequence[Group], count: int) -> Iterator[Sequence[Group]]:
    for start in range(0, len(alike), count):
        yield alike[start : start + count]


def _batches(ids: Sequence[Sequence[int]], places: list[int], length: int, budget: int) -> Iterator[list[int]]:
    """Texts of like length together; what they look at counts, too."""
    batch: list[int] = []
    for place in sorted(places, key=lambda place: len(ids[place])):
        if batch and (len(batch) + 1) * len(ids[place]) > budget:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _begin(tower: ClipText, ids: Tensor) -> Beginnings:
    """Keys and values of beginnings [g, p] in every block."""
    x = _embed(tower, ids, 0)
    stored = Beginnings([], [])
    for number, block in enumerate(_blocks(tower), start=1):
        q, k, v = _heads(block, block.ln_1(x))
        stored.keys.append(k)
        stored.values.append(v)
        if number < len(tower.blocks) and ids.shape[1]:
            x = _through(block, x, scaled_dot_product_attention(q, k, v, is_causal=True))
    return stored


def _finish(tower: ClipText, ids: Tensor, end: Tensor, stored: Beginnings, rows: Tensor, length: int) -> Tensor:
    """Pooled vectors of texts whose rest is `ids` [n, s] and whose beginning is number `rows` of the stored ones."""
    x = _embed(tower, ids, length)
    width = ids.shape[1]
    seen = torch.ones(width, length + width, dtype=torch.bool, device=ids.device).tril(length)
    blocks = _blocks(tower)
    row = torch.arange(len(x), device=x.device)
    for number, (block, keys, values) in enumerate(zip(blocks, stored.keys, stored.values), start=1):
        q, k, v = _heads(block, block.ln_1(x))
        k, v = torch.cat([keys[rows], k], 2), torch.cat([values[rows], v], 2)
        if number < len(blocks):
            x = _through(block, x, scaled_dot_product_attention(q, k, v, attn_mask=seen))
            continue
        one = scaled_dot_product_attention(q[row, :, end][:, :, None], k, v, attn_mask=seen[end][:, None, None])
        x = _through(block, x[row, end][:, None], one)[:, 0]
    return tower.project(tower.text.ln_final(x))


def _blocks(tower: ClipText) -> Sequence[Any]:
    return tower.blocks


def _embed(tower: ClipText, ids: Tensor, start: int) -> Tensor:
    x = tower.embed(ids)
    positions: Tensor = tower.text.positional_embedding
    return x + positions[start : start + ids.shape[1]].to(x.dtype)


def _heads(block: Any, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [n, heads, t, d] as the block's attention makes them."""
    attention = block.attn
    three = linear(h, attention.in_proj_weight, attention.in_proj_bias).unflatten(-1, (3, attention.num_heads, -1))
    q, k, v = three.permute(2, 0, 3, 1, 4)
    return q, k, v


def _through(block: Any, x: Tensor, seen: Tensor) -> Tensor:
    """The rest of the block behind its attention `seen` [n, heads, t, d]."""
    x = x + block.ls_1(block.attn.out_proj(seen.transpose(1, 2).flatten(2)))
    result: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
    return result
