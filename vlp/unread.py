"""Columns that are made for every batch and that nothing reads: a teacher, views or false captions paid for in vain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import Tensor

from vlp.types import Batch

DEAR = ("views", "negative_text")  # columns of the data that cost work; numbers stored with the samples cost none


class Watched(Mapping[str, Tensor]):
    """Columns that remember which of them were asked for; whoever goes through them all has asked for all."""

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        self.columns, self.read = columns, set[str]()

    def __getitem__(self, name: str) -> Tensor:
        found = self.columns[name]
        self.read.add(name)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def __iter__(self) -> Iterator[str]:
        self.read.update(self.columns)
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)


class Watch:
    """Looks at the first update of a run: what its batch held, and what losses, heads and companions read of it."""

    def __init__(self) -> None:
        self.done = False

    def __call__(self, batch: Batch) -> Batch:
        """The batch, watched until `told` has told of one."""
        if self.done:
            return batch
        return replace(batch, extra=Watched(batch.extra), memory=Watched(batch.memory))

    def told(self, batch: Batch) -> str | None:
        """Once, after an update: what of the batch nothing read, by maker ("teacher/..."); None where all was read.

        One column read of a maker's is enough: a momentum copy makes pictures and texts together. With micro-batches
        nothing is told: their rows are cut from all columns.
        """
        places = [place for place in (batch.extra, batch.memory) if isinstance(place, Watched)]
        if self.done or not places:
            return None
        self.done = True
        made = {_maker(name) for place in places for name in place.columns if "/" in name or name in DEAR}
        idle = sorted(made - {_maker(name) for place in places for name in place.read})
        if not idle:
            return None
        return (
            f"nothing reads {', '.join(idle)} of the batch, so that what makes it costs time for nothing: add a loss "
            "that reads it, or leave out what makes it (companions, data.views, captions.negatives, columns)"
        )


def _maker(name: str) -> str:
    head, slash, _ = name.partition("/")
    return f"{head}/..." if slash else name
