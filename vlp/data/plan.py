"""Which sample stands in which slot of which step: sources, their orders and the mixture, opened and put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vlp.data.mixture import Schedule
from vlp.data.order import EMPTY, Indices, SourceOrder, allowed_worlds
from vlp.data.schema import DataError
from vlp.data.settings import Data
from vlp.data.sources import Records, Source, digest, open_records
from vlp.data.stream import Stream, WebDataset

NEXT = -2  # index of a slot that takes whatever a stream gives next


class Slots(NamedTuple):
    """The slots of one rank at one step, all [B]; `sample` is its index, EMPTY or NEXT, `epoch` its source's."""

    source: Indices
    sample: Indices
    epoch: Indices


class Plan:
    """The opened sources of a run, and the slots of any step in O(1)."""

    def __init__(self, data: Data, *, seed: int, rank: int = 0, world: int = 1) -> None:
        self.data, self.seed, self.rank, self.world = data, seed, rank, world
        self.streams = data.num_streams
        if self.streams % world:
            raise DataError(
                f"{world} processes cannot share {self.streams} streams of data.batch_size {data.batch_size}; "
                f"run on {', '.join(map(str, allowed_worlds(self.streams)))} processes, or change the batch size"
            )
        self.parts: tuple[Source, ...] = data.sources
        self.names = _distinct([part.shown() for part in self.parts])
        self.records: list[Records | Stream] = [self._open(part, number) for number, part in enumerate(self.parts)]
        self.orders = [
            SourceOrder(records.sizes, streams=self.streams, window=data.window, seed=seed, source=number)
            if not isinstance(records, Stream)
            else None
            for number, records in enumerate(self.records)
        ]
        self.slots_per_stream = data.batch_size // self.streams
        self.weights = [part.weight or float(len(records)) for part, records in zip(self.parts, self.records)]
        self.schedule = Schedule(
            self.weights,
            slots=self.slots_per_stream,
            seed=seed,
            block=data.mixture_block,
            single_source=data.single_source,
        )
        share = self.streams // world
        self.served = np.arange(rank * share, (rank + 1) * share)

    @property
    def places(self) -> int:
        """Slots of one pass over every source, the empty ones at the end of its epochs too."""
        places = (order.places * self.streams if order else len(r) for order, r in zip(self.orders, self.records))
        return sum(places)

    def slots(self, step: int) -> Slots:
        """The slots that this rank serves at a step, stream by stream."""
        row = self.schedule.row(step)
        source, ordinal = np.tile(row.source, len(self.served)), np.tile(row.ordinal, len(self.served))
        stream = np.repeat(self.served, self.slots_per_stream)
        index, epoch = np.full(source.shape, NEXT), np.zeros(source.shape, dtype=np.int64)
        for number in np.unique(row.source).tolist():
            order, chosen = self.orders[number], source == number
            if order is not None:
                epoch[chosen], index[chosen] = order.many(ordinal[chosen], stream[chosen])
        return Slots(source, index, epoch)

    def where(self, step: int) -> list[str]:
        """Shards that a step reads, for messages."""
        slots = self.slots(step)
        found = set()
        for number, index in zip(slots.source.tolist(), slots.sample.tolist()):
            records = self.records[number]
            if not isinstance(records, Stream) and index != EMPTY:
                shard = int(np.searchsorted(np.cumsum(records.sizes), index, side="right"))
                found.add(f"{self.names[number]}/{records.facts[shard].name}")
        return sorted(found)

    def shards(self) -> dict[str, str]:
        """Of all sources but streams: "source/shard" -> a short hash of what the shard holds."""
        finite = [(name, records) for name, records in zip(self.names, self.records) if not isinstance(records, Stream)]
        return {f"{name}/{fact.name}": digest([repr(tuple(fact))])[:16] for name, rows in finite for fact in rows.facts}

    def _open(self, part: Source, number: int) -> Records | Stream:
        if isinstance(part, WebDataset):
            return Stream(part, seed=self.seed, source=number, rank=self.rank, world=self.world)
        try:
            return open_records(part, cache=self.data.cache)
        except DataError as error:
            raise DataError(f"data.sources.{number} ({part.shown()}): {error}") from error


def changed_shards(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """A line for every shard of two `Plan.shards` that is not the same, by name."""
    fates = {
        "holds other data": [name for name in before.keys() & now.keys() if before[name] != now[name]],
        "is gone": before.keys() - now.keys(),
        "is new": now.keys() - before.keys(),
    }
    return sorted(f"{name} {fate}" for fate, names in fates.items() for name in names)


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The names, with their number behind those that an earlier source has too."""
    return tuple(f"{name} ({number})" if name in names[:number] else name for number, name in enumerate(names))
