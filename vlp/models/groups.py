"""Captions sorted by length and cut into a fixed number of groups, each as wide as its own longest.

Most captions are short and one is long; a batch padded to the longest spends most of a text tower on padding. The
cuts are the ones with the fewest positions in all, found exactly from the counts per length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from vlp import dist
from vlp.models.prefix import Prefixes, run_behind
from vlp.models.text_clip import TextOutput, TextTower


class Captions(NamedTuple):
    """The caption slots of a batch as rows, which of them run together, and what stands among their words."""

    ids: Tensor  # long [n, T]
    mask: Tensor  # bool [n, T]
    made: list[Group]
    prefixes: Prefixes | None = None
    kind: Tensor | None = None  # long [n]: whose prefix each row gets
    at: int = 0  # the position of the prefix


class Group(NamedTuple):
    """Rows of one call of the tower, and how many positions they need. No rows: a dummy call."""

    rows: list[int]
    length: int


def together(mask: Tensor, real: Tensor, *, groups: int, trims: bool) -> list[Group]:
    """Which rows of mask [n, T] run together: the real ones, by length where the tower trims, else all at once."""
    lengths = (mask.sum(dim=-1) * real).tolist()
    if not trims:
        return [Group([row for row, length in enumerate(lengths) if length > 0], mask.shape[1])]
    made = plan(lengths, groups)
    # alone in the world nobody waits for an empty group's call
    return made if dist.world() > 1 else [group for group in made if group.rows] or made[:1]


def plan(lengths: Sequence[int], groups: int) -> list[Group]:
    """`groups` groups of the rows with a length above 0, shortest first; empty ones at the end."""
    rows = [row for row in np.argsort(np.asarray(lengths, dtype=np.int64), kind="stable").tolist() if lengths[row] > 0]
    values, counts = np.unique([lengths[row] for row in rows], return_counts=True)
    made, start = [], 0
    for stop in _cuts(values, counts, groups):
        size = int(counts[start:stop].sum())
        made.append(Group(rows[:size], int(values[stop - 1])))
        rows, start = rows[size:], stop
    return made + [Group([], 0)] * (groups - len(made))


def _cuts(values: np.ndarray, counts: np.ndarray, groups: int) -> list[int]:
    """Ends (exclusive) of at most `groups` runs of `values` with the least sum of (rows in run) * (largest value)."""
    n = len(values)
    if n <= groups:
        return list(range(1, n + 1))
    total = np.concatenate([[0], np.cumsum(counts)])
    cost = np.where(
        np.tri(n + 1, n, -1, dtype=bool), (total[:, None] - total[None, :n]) * np.r_[0, values][:, None], np.inf
    )
    best, choices = cost[:, 0].copy(), []  # best[e]: cheapest way to cover values[:e]
    for _ in range(groups - 1):
        whole = best[None, :n] + cost
        choices.append(np.argmin(whole, axis=1))
        best = whole.min(axis=1)
    cuts = [n]
    for choice in reversed(choices):
        cuts.append(int(choice[cuts[-1]]))
    return cuts[::-1]


def run_captions(tower: TextTower, captions: Captions, *, tokens: bool) -> TextOutput:
    """Unit features [n, D], unit tokens [n, T, D], hidden states [n, T, width]; zeros where nothing is."""
    out, zero = run_groups(tower, captions, tokens=tokens)
    n = len(captions.mask)
    order = torch.tensor([row for group in captions.made for row in group.rows], device=captions.mask.device).long()

    def placed(rows: Tensor) -> Tensor:
        return rows.new_zeros((n, *rows.shape[1:])).index_copy(0, order, rows)

    pooled = placed(normalize(out.pooled, dim=-1)) + zero
    if out.tokens is None or out.hidden is None:
        return TextOutput(pooled)
    seen = captions.mask[order, :, None]
    return TextOutput(pooled, placed(normalize(out.tokens, dim=-1) * seen), placed(out.hidden * seen))


def run_groups(tower: TextTower, captions: Captions, *, tokens: bool) -> tuple[TextOutput, Tensor]:
    """Outputs of the rows that are in a group, in the order of the groups: pooled [m, D]; tokens padded to T columns.
    The second value is a zero on which the idle calls hang; add it to the features.

    One embedding look-up for all groups: its gradient is as large as the vocabulary, so it is made once. An empty
    group still calls the tower, on one token with weight 0, so that every rank makes the same number of calls.
    """
    ids, mask, made = captions[:3]
    device, T = ids.device, ids.shape[1]
    index = [torch.tensor(group.rows or [0], device=device) for group in made]
    width = [max(group.length, 1) for group in made]
    parts = [ids[rows if group.rows else rows[:1], :w] for rows, w, group in zip(index, width, made)]
    flat = tower.embed(torch.cat([part.flatten() for part in parts]))
    outputs: list[TextOutput] = []
    idle: list[TextOutput] = []
    for rows, w, group, embeds in zip(index, width, made, flat.split([part.numel() for part in parts])):
        seen = mask[rows, :w] if group.rows else torch.ones(1, w, dtype=torch.bool, device=device)
        end = (seen.sum(dim=1) - 1).clamp_min(0)
        prefix = None
        if captions.prefixes is not None and captions.kind is not None:
            prefix = captions.prefixes(captions.kind[rows])
        text = (embeds.reshape(len(rows), w, -1), seen, end)
        output = run_behind(prefix, tower, text, at=captions.at, tokens=tokens)
        (outputs if group.rows else idle).append(output)
    return _joined(outputs or [_no_rows(idle[0])], idle, T)


def _no_rows(output: TextOutput) -> TextOutput:
    tokens, hidden = (part if part is None else part[:0] for part in (output.tokens, output.hidden))
    return TextOutput(output.pooled[:0], tokens, hidden)


def _joined(outputs: list[TextOutput], idle: list[TextOutput], T: int) -> tuple[TextOutput, Tensor]:
    """All rows in one output, and the zero that hangs on the idle calls."""
    zero = outputs[0].pooled.new_zeros(())
    for output in idle:
        zero = zero + output.pooled.sum() * 0

    def wide(name: str) -> Tensor | None:
        found = [getattr(output, name) for output in outputs]
        if any(part is None for part in found):
            return None
        return torch.cat([pad(part, (0, 0, 0, T - part.shape[1])) for part in found])

    return TextOutput(torch.cat([output.pooled for output in outputs]), wide("tokens"), wide("hidden")), zero
