"""Global batches as a pure function of the step, made by worker processes. Its whole state is one integer."""

from __future__ import annotations

import multiprocessing
import os
import re
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from vlp.data.heartbeat import Heartbeat
from vlp.data.plan import Plan
from vlp.data.serve import Server
from vlp.data.settings import Data
from vlp.data.shared_memory import refuse_small
from vlp.data.sources import digest
from vlp.data.stream import Stream
from vlp.data.transforms import Preprocess
from vlp.types import Batch, Tokenizer

_MARK = re.compile(r"DataLoader (worker \(pid|timed out)")  # what torch says of a worker that died or is late
_PASSED_ON = "in DataLoader worker process"  # and of an error that a worker met and lived on
_NOTICED = 1.0  # seconds from the end of a pipe to that of its process, at most


def of_death(error: Exception, batches: Any) -> Exception:
    """The error; in torch's words where it is that of a pipe whose worker died as its batch was fetched."""
    if isinstance(error, RuntimeError) or _PASSED_ON in str(error):
        return error
    until = time.monotonic() + _NOTICED
    while not (dead := [worker.pid for worker in getattr(batches, "_workers", []) if not worker.is_alive()]):
        if time.monotonic() > until:
            return error
        time.sleep(0.01)
    return RuntimeError(f"DataLoader worker (pid(s) {', '.join(map(str, dead))}) exited unexpectedly: {error}")


class LoaderError(RuntimeError):
    """A loader worker died or hangs; the message says which one, and at which shard and key."""


@dataclass
class Loading:
    """The workers of a loader, and the step whose batch they owe next."""

    heartbeat: Heartbeat
    step: int

    def explained(self, error: Exception, *, plan: Plan) -> LoaderError:
        shards = ", ".join(plan.where(self.step)[:8])
        said = str(error).partition("\n")[0]
        return LoaderError(
            f"loader, batch of step {self.step} (reads {shards}): "
            f"{self.heartbeat.blame(said, plan, step=self.step)}. {said.rstrip('.')}. Workers killed for "
            "memory need a lower data.workers or data.prefetch, slow storage a higher data.timeout; data.workers=0 "
            "shows a fault of the sample itself"
        )


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
        self.loading: Loading | None = None  # the last workers that made batches

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

    @property
    def batch_bytes(self) -> int:
        """Bytes of a local batch whose captions are as long as they may be."""
        data, slots = self.data, self.batch_size // self.plan.world
        height, width = self.preprocess.size
        texts = (data.captions + data.negatives) * self.tokenizer.context * 9  # ids and mask
        columns = sum(value.numel() * value.element_size() for value in self.server.blank.values())
        return slots * (3 * height * width + texts + columns + data.captions + 33)

    def explained(self, error: Exception) -> Exception:
        """The error; as a LoaderError with worker, shard and key where a loader worker died or hangs.

        torch raises it wherever the run happens to be when a worker dies, so the loop has to ask.
        """
        if self.loading is None or isinstance(error, LoaderError) or not _MARK.search(str(error)):
            return error
        return self.loading.explained(error, plan=self.plan)

    def _parallel(self, start: int, stop: int) -> Generator[Batch]:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive a fork
        workers = min(self.data.workers, stop - start)
        refuse_small(self.batch_bytes, workers=workers, prefetch=self.data.prefetch)
        heartbeat = Heartbeat(workers)
        loader: DataLoader[Batch] = DataLoader(
            self.server,  # type: ignore[arg-type]  # it has __getitem__, which is all that a sampler needs
            batch_size=None,
            sampler=range(start, stop),
            num_workers=workers,
            prefetch_factor=self.data.prefetch,
            timeout=self.data.timeout,
            worker_init_fn=heartbeat.start_worker,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # or each start would draw from the default one
        )
        others = set(multiprocessing.active_children())
        self.loading = loading = Loading(heartbeat, start)
        batches: Any = None
        try:
            batches = iter(loader)
            while loading.step < stop:
                batch = next(batches)
                loading.step += 1
                yield batch
        except (RuntimeError, OSError, EOFError) as error:  # a worker died, or gave nothing for `timeout` seconds
            if (cause := self.explained(of_death(error, batches))) is error:
                raise
            raise cause from error
        finally:
            with heartbeat.ending(others):
                if batches is not None:
                    batches._shutdown_workers()  # what its __del__ calls, which a traceback may hold up

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
