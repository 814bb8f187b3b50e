"""Texts that begin alike: their common beginning goes through a causal tower once (prompt templates, for one).

In a causal tower what stands behind a token cannot change it, so keys and values of a common beginning are the same for
all texts that have it. A text is cut into a beginning that it shares and the rest, which looks at the stored keys and
values. Exact up to the order of sums: the features are those of whole texts. Learned prompts in front of class names
are such a beginning, too: `run_begun` takes embeddings and hands gradients back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from vlp.models.blocks import can_pool_early
from vlp.models.groups import plan
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
            stored = _begin(tower, _placed(tower, tower.embed(beginnings), 0))
            owner = {place: row for row, group in enumerate(some) for place in group.places}
            for places in _batches(ids, list(owner), length, budget):
                rest = [ids[place][length:] for place in places]
                width = max(map(len, rest))
                padded = torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in rest], device=device)
                end = torch.tensor([len(row) - 1 for row in rest], device=device)
                rows = torch.tensor([owner[place] for place in places], device=device)
                yield places, _finish(tower, _placed(tower, tower.embed(padded), length), end, stored, rows)


def run_begun(
    tower: ClipText, begin: Tensor, rest: Tensor, end: Tensor, of: Tensor, *, deep: Sequence[Tensor] = (), at: int = 0
) -> Tensor:
    """Pooled vectors [n, D] of texts of embeddings: row i is begin[of[i]] [p, width], then rest[i] up to end[i].

    Differentiable; nothing is normalised. rest: [n, s, width] without positions; it runs at natural length, by groups
    of like length. deep[i] [m, width] stands in place of positions at..at+m of beginnings at the input of block i + 1.
    """
    stored = _begin(tower, _placed(tower, begin, 0), deep, at)
    parts, order = list[Tensor](), list[int]()
    for group in plan((end + 1).tolist(), min(4, 1 + len(rest) // 64)):  # a call has its price, so not for a few rows
        if group.rows:
            rows = torch.tensor(group.rows, device=rest.device)
            x = _placed(tower, rest[rows, : group.length], begin.shape[1])
            parts.append(_finish(tower, x, end[rows], stored, of[rows]))
            order += group.rows
    back = torch.tensor(order, device=rest.device).argsort()
    return torch.cat(parts)[back]


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


def _begin(tower: ClipText, x: Tensor, deep: Sequence[Tensor] = (), at: int = 0) -> Beginnings:
    """Keys and values of beginnings x [g, p, width] in every block, with `deep` put in before the later ones."""
    stored = Beginnings([], [])
    for number, block in enumerate(_blocks(tower), start=1):
        if 1 < number <= len(deep) + 1:
            fresh = deep[number - 2].to(x.dtype)
            x = torch.cat([x[:, :at], fresh.expand(len(x), -1, -1), x[:, at + len(fresh) :]], dim=1)
        q, k, v = _heads(block, block.ln_1(x))
        stored.keys.append(k)
        stored.values.append(v)
        if number < len(tower.blocks) and x.shape[1]:
            x = _through(block, x, scaled_dot_product_attention(q, k, v, is_causal=True))
    return stored


def _finish(tower: ClipText, x: Tensor, end: Tensor, stored: Beginnings, rows: Tensor) -> Tensor:
    """Pooled vectors of texts whose rest is x [n, s, width] and whose beginning is number `rows` of the stored ones."""
    width, length = x.shape[1], stored.keys[0].shape[2]
    seen = torch.ones(width, length + width, dtype=torch.bool, device=x.device).tril(length)
    blocks = _blocks(tower)
    row = torch.arange(len(x), device=x.device)
    for number, (block, keys, values) in enumerate(zip(blocks, stored.keys, stored.values), start=1):
        q, k, v = _heads(block, block.ln_1(x))
        k, v = torch.cat([_owned(keys, rows), k], 2), torch.cat([_owned(values, rows), v], 2)
        if number < len(blocks):
            x = _through(block, x, scaled_dot_product_attention(q, k, v, attn_mask=seen))
            continue
        one = scaled_dot_product_attention(q[row, :, end][:, :, None], k, v, attn_mask=seen[end][:, None, None])
        x = _through(block, x[row, end][:, None], one)[:, 0]
    return tower.project(tower.text.ln_final(x))


def _blocks(tower: ClipText) -> Sequence[Any]:
    return tower.blocks


def _owned(stored: Tensor, rows: Tensor) -> Tensor:
    """Those of each row; a single beginning is not copied, so that its gradient is one sum."""
    return stored.expand(len(rows), -1, -1, -1) if len(stored) == 1 else stored[rows]


def _placed(tower: ClipText, embeds: Tensor, start: int) -> Tensor:
    """Token embeddings [n, t, width] with their positions, the first of which is `start`."""
    positions: Tensor = tower.text.positional_embedding
    return embeds + positions[start : start + embeds.shape[1]].to(embeds.dtype)


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
