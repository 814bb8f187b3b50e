"""One epoch of a million keys without a picture: the order alone, over resumes at other numbers of processes.

python -m tests.faults.dry --keys 1000000 --resumes 5
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vlp.data.order import EMPTY, Indices
from vlp.data.plan import Plan
from vlp.data.remote import ShardCache
from vlp.data.settings import Data
from vlp.data.sources import Finite, Source

WORLDS = (2, 1, 4, 2, 8, 1, 4)  # processes of one start after the other
BATCH = 1024


class Numbers(Finite):
    """Samples that are nothing but a number, in shards of the given sizes."""

    facts = ()

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.notes: dict[str, int] = {}


class Numbered(Source):
    """A source of them."""

    counts: tuple[int, ...]

    def open(self, cache: ShardCache) -> Numbers:
        return Numbers(self.counts)


class Coverage(NamedTuple):
    """How often each key of one epoch was served in what is kept of it, and what that took."""

    counts: Indices  # [keys]
    empty: int  # slots without a sample
    worlds: list[int]
    repeated: int  # steps that were done again
    seconds: float

    @property
    def wrong(self) -> int:
        """Keys that were not served exactly once."""
        return int((self.counts != 1).sum())


def cover(keys: int, *, resumes: int, seed: int) -> Coverage:
    """An epoch cut `resumes` times at random steps; each start is on other processes, a few steps before the cut."""
    began, lot = time.perf_counter(), random.Random(seed)
    sizes = shard_sizes(keys, lot)
    source = Numbered(counts=tuple(sizes))
    steps = -(-Plan(data_of([source]), seed=seed).places // BATCH)
    cuts = [*sorted(lot.sample(range(10, steps), resumes)), steps]
    served: dict[int, Indices] = {}
    start = repeated = 0
    for stop, world in zip(cuts, WORLDS):
        plans = [Plan(data_of([source]), seed=seed, rank=rank, world=world) for rank in range(world)]
        for step in range(start, stop):  # what an earlier start did at a step is forgotten, as its weights are
            slots = [plan.slots(step) for plan in plans]
            served[step] = np.concatenate([part.sample[part.epoch == 0] for part in slots])  # the last batch has more
        repeated += (back := lot.randrange(8) if stop < steps else 0)
        start = stop - back
    line = np.concatenate([served[step] for step in range(steps)])
    counts = np.bincount(line[line != EMPTY], minlength=keys)
    worlds = list(WORLDS[: len(cuts)])
    return Coverage(counts, int((line == EMPTY).sum()), worlds, repeated, time.perf_counter() - began)


def data_of(sources: Sequence[Source]) -> Data:
    return Data(sources=tuple(sources), batch_size=BATCH, workers=0)


def shard_sizes(keys: int, lot: random.Random) -> list[int]:
    """About a hundred shards of unequal sizes, some of them empty, with `keys` samples together."""
    marks = [0, *sorted(lot.randrange(keys) for _ in range(98)), keys]
    sizes = [after - before for before, after in itertools.pairwise(marks)]
    return [*sizes[:50], 0, *sizes[50:]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--resumes", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = cover(options.keys, resumes=options.resumes, seed=options.seed)
    print(
        f"{options.keys} keys, W={'→'.join(map(str, found.worlds))}, {found.repeated} steps repeated: "
        f"{found.wrong} keys not exactly once, {found.empty} empty slots, {found.seconds:.1f} s"
    )
    return bool(found.wrong)


if __name__ == "__main__":
    sys.exit(main())
