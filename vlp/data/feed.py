"""Global batches as a pure function of the step, made by worker processes. Its whole state is one integer."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from typing import Any

import torch
from torch.utils.data import DataLoader

from vlp.data.plan import Plan
from vlp.data.serve import Server
from vlp.data.settings import Data
from vlp.data.sources import digest
from vlp.data.stream import Stream
from vlp.data.transforms import Preprocess
from vlp.types import Batch, Tokenizer

LEAVE_SECONDS = 300  # that a worker stays after SIGTERM, if nobody ends it


class Feed:
    """The batches of a run: local batch `rank` of `world` at any step, [N / W] pairs.

    The ranks' batches one behind the other are the same global batch for every `world` that divides the streams, and
    for every number of workers.
    """

    def __init__(
        self,
        data: Data,
        *,
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.data, self.tokenizer, self.preprocess = data, tokenizer, preprocess
        self.plan = Plan(data, seed=seed, rank=rank, world=world)
        self.server = Server(self.plan, tokenizer=tokenizer, preprocess=preprocess)

    @property
    def num_samples(self) -> int:
        """Samples of one pass over every source."""
        return sum(len(records) for records in self.plan.records)

    @property
    def batch_size(self) -> int:
        """N, pairs of a global batch."""
        return self.data.batch_size

    @property
    def streams(self) -> int:
        """C, the canonical streams: a world size must divide it."""
        return self.plan.streams

    @property
    def steps_per_epoch(self) -> float:
        """Steps of one pass over every source, its empty slots counted: for one source the epoch ends exactly there."""
        return self.plan.places / self.batch_size

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kind of every source, "caption" or "label", by `Batch.source`."""
        return tuple(part.kind for part in self.plan.parts)

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sources, by `Batch.source`."""
        return self.plan.names

    @property
    def fingerprint(self) -> str:
        """Hash of what the sources hold: shard names, sizes, counts, hashes where known, and what is selected."""
        return digest(f"{part.kind} {records.fingerprint}" for part, records in zip(self.plan.parts, self.plan.records))

    def batch(self, step: int) -> Batch:
        """The local batch of a step, made in this process."""
        return self.server[step]

    def slot_captions(self, step: int) -> list[list[str]]:
        """The captions of every slot of the local batch of a step, as text; none for a slot without a sample."""
        return [list(slot.item.captions) if slot.item else [] for slot in self.server.make(step)]

    def batches(self, start: int, stop: int) -> Generator[Batch]:
        """Local batches of steps start..stop, made ahead by `data.workers` processes."""
        for records in self.plan.records:
            if isinstance(records, Stream):
                records.restart(start)
        if self.data.workers == 0 or stop <= start:
            return (self.batch(step) for step in range(start, stop))
        return self._parallel(start, stop)

    def _parallel(self, start: int, stop: int) -> Generator[Batch]:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
        loader: DataLoader[Batch] = DataLoader(
            self.server,  # type: ignore[arg-type]  # it has __getitem__, which is all that a sampler needs
            batch_size=None,
            sampler=range(start, stop),
            num_workers=min(self.data.workers, stop - start),
            prefetch_factor=self.data.prefetch,
            timeout=self.data.timeout,
            worker_init_fn=start_worker,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # or each start would draw from the default one
        )
        step, batches = start, iter(loader)
        try:
            while step < stop:
                try:
                    batch = next(batches)
                except RuntimeError as error:  # a worker died, or gave nothing for `timeout` seconds
                    shards = ", ".join(self.plan.where(step)[:8])
                    raise RuntimeError(
                        f"loader, batch of step {step} (reads {shards}): {error}; "
                        "workers killed for memory need a lower data.workers or data.prefetch, slow storage a higher "
                        "data.timeout; data.workers=0 shows the fault itself"
                    ) from error
                yield batch
                step += 1
        finally:
            del batches

    def describe(self) -> dict[str, Any]:
        """What the sources hold and how it is shared out, for people."""
        share = self.plan.schedule.counts / self.plan.schedule.units
        found: dict[str, Any] = {}
        for number, (part, records) in enumerate(zip(self.plan.parts, self.plan.records)):
            name = self.plan.names[number]
            found[name] = {"kind": part.kind, "samples": len(records), "share": round(float(share[number]), 4)}
            if not isinstance(records, Stream):
                found[name] |= {"shards": len(records.facts), "bytes": sum(fact.bytes for fact in records.facts)}
                found[name] |= {"epoch_steps": round(len(records) / float(share[number]) / self.batch_size, 2)}
            found[name] |= (
                {"left_out": {k: v for k, v in records.notes.items() if v}} if any(records.notes.values()) else {}
            )
        slots = self.plan.slots_per_stream
        found["batch"] = (
            f"{self.batch_size} pairs = {self.streams} streams x {slots}, window of {self.data.window} shards"
        )
        return found


def start_worker(worker: int) -> None:
    """One thread a worker; signals meant for the run are the main process's, which then ends the workers."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _told_to_leave)


def _told_to_leave(number: int, frame: Any) -> None:
    """A scheduler tells the whole job and the launcher tells it again, while the run finishes its step and saves.

    So no SIGTERM ends a worker, or its run would fail in the middle of that; SIGALRM does, if it is still there later.
    """
    signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.alarm(LEAVE_SECONDS)
