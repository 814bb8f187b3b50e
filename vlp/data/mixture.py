"""Which source each slot of each step takes from: a periodic schedule with exact counts, O(1) at any step.

A step has R = N / C slots in each stream, the same sources for every stream. A block of M steps holds M * R slots (or,
with one source a step, M steps), shared out among the sources exactly in proportion to their weights and permuted
by (seed, block). So a source's ordinal at a slot is block * count + the number of its slots before in the block.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vlp.data.order import Indices, permutation

_BLOCK = 3  # first key of the generator, beside those of order.py


class Row(NamedTuple):
    """The slots of one step in any stream: source and the source's ordinal in that stream, both [R]."""

    source: Indices
    ordinal: Indices


class Schedule:
    """The mixture of `weights`, with `slots` = N / C slots a step and stream."""

    def __init__(
        self, weights: Sequence[float], *, slots: int, seed: int, block: int = 128, single_source: bool = False
    ) -> None:
        self.slots, self.seed, self.block, self.single_source = slots, seed, block, single_source
        self.units = block if single_source else block * slots  # what a block deals out: steps, or slots
        self.counts = share_out(weights, self.units)
        self._blocks: OrderedDict[int, tuple[Indices, Indices]] = OrderedDict()

    def row(self, step: int) -> Row:
        """Sources and ordinals of the slots of a step."""
        block, offset = divmod(step, self.block)
        sources, ordinals = self._dealt(block)
        if self.single_source:
            first = int(ordinals[offset]) * self.slots
            return Row(np.repeat(sources[offset], self.slots), np.arange(first, first + self.slots))
        chosen = slice(offset * self.slots, (offset + 1) * self.slots)
        return Row(sources[chosen], ordinals[chosen])

    def _dealt(self, block: int) -> tuple[Indices, Indices]:
        """Source and running ordinal of every unit of a block, both [units]."""
        if block not in self._blocks:
            units = np.repeat(np.arange(len(self.counts)), self.counts)
            if len(self.counts) > 1:
                units = units[permutation(self.units, self.seed, _BLOCK, block)]
            ordinals = np.empty(self.units, dtype=np.int64)
            for source, count in enumerate(self.counts.tolist()):
                ordinals[units == source] = block * count + np.arange(count)
            self._blocks[block] = units.astype(np.int64), ordinals
            if len(self._blocks) > 4:
                self._blocks.popitem(last=False)
        return self._blocks[block]


def share_out(weights: Sequence[float], units: int) -> Indices:
    """Whole numbers that sum to `units`, as near to the weights as can be (largest remainders); none is 0."""
    shares = np.asarray(weights, dtype=np.float64)
    if len(shares) == 0 or not np.all(np.isfinite(shares)) or np.any(shares <= 0):
        raise ValueError(f"weights of a mixture must be above 0, not {list(weights)}; leave a source out to not use it")
    exact = shares / shares.sum() * units
    counts: Indices = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[: units - int(counts.sum())]] += 1
    if np.any(counts == 0):
        low = shares[counts == 0].tolist()
        raise ValueError(
            f"weights {low} are too small to get one of {units} places of a block: raise data.mixture_block"
        )
    return counts
