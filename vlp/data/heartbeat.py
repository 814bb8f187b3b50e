"""Where each loader worker is: what can be said of one that died or hangs."""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import signal
import struct
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import torch

from vlp.data.plan import Plan
from vlp.data.stream import Stream

IDLE, READING, COLLATING = 0, 1, 2
LEAVE_SECONDS = 3600  # that a worker stays after SIGTERM, if nobody ends it
END_SECONDS = 2  # for workers to end by themselves when their loader is over
_ROW = struct.Struct("6q")  # a tenth of the time that numpy takes to write six numbers


class Beat:
    """What one worker writes: a few numbers in shared memory, at every sample."""

    def __init__(self, row: Any) -> None:
        self.row, self.process = row, os.getpid()
        self.source = self.sample = -1
        self.idle(-1)

    def reading(self, step: int, source: int, sample: int) -> None:
        """The worker is about to read a sample."""
        self.source, self.sample = source, sample
        self._write(READING, step)

    def collating(self, step: int) -> None:
        """The worker has all samples of a step, and makes the batch."""
        self._write(COLLATING, step)

    def idle(self, step: int) -> None:
        """The worker has handed a batch over."""
        self._write(IDLE, step)

    def _write(self, stage: int, step: int) -> None:
        values = (stage, step, self.source, self.sample, time.monotonic_ns(), self.process)
        _ROW.pack_into(self.row, 0, *values)


class Place(NamedTuple):
    """Where a worker last said it was; `source` and `sample` are of the last sample it began."""

    stage: int
    step: int
    source: int
    sample: int
    nanoseconds: int
    process: int


class Heartbeat:
    """The last word of every worker of a loader, and whether they are to end."""

    def __init__(self, workers: int) -> None:
        self.rows = torch.full((workers, len(Place._fields)), -1, dtype=torch.int64).share_memory_()
        self.over = torch.zeros(1, dtype=torch.bool).share_memory_()

    def start_worker(self, worker: int) -> None:
        """In a worker: one thread; beats at every sample; signals meant for the run are the main process's."""
        torch.set_num_threads(1)
        gc.freeze()  # what came with the fork stays: looking through it again and again copies its pages
        info = torch.utils.data.get_worker_info()
        assert info is not None
        server: Any = info.dataset
        server.beat = Beat(self.rows[worker].numpy())
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for name in ("SIGUSR1", "SIGUSR2"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._told_to_leave)

    def _told_to_leave(self, number: int, frame: Any) -> None:
        """A scheduler tells the whole job and the launcher tells it again, while the run finishes its step and saves.

        So SIGTERM ends a worker only where its loader is over, or its run would fail in the middle of that; SIGALRM
        does, if it is still there later. Code 0, since torch raises an error in the run for any other.
        """
        if bool(self.over):
            os._exit(0)
        if hasattr(signal, "alarm"):
            signal.alarm(LEAVE_SECONDS)

    @contextmanager
    def ending(self, others: Collection[BaseProcess]) -> Iterator[None]:
        """Around what shuts the loader down: workers that hang are ended too, or each would be waited for in turn.

        torch sends SIGTERM after five seconds a worker, and the interpreter waits for those that are left without end.
        others: children of this process that are no workers.
        """
        with _deaths_unheard():
            self.over.fill_(True)
            processes = [child for child in multiprocessing.active_children() if child not in others]
            timer = threading.Timer(END_SECONDS, _terminate, [processes])
            timer.daemon = True
            timer.start()
            try:
                yield
            finally:
                timer.cancel()
                for process in processes:
                    process.kill()

    def blame(self, said: str, plan: Plan, *, step: int) -> str:
        """Which worker died, or keeps the batch of `step` waiting, and what it was at: shard and key.

        said: torch's error, which has the process ids of those that died.
        """
        found = re.search(r"\(pid(?:\(s\))? ([\d, ]+)\)", said)
        gone = {int(number) for number in found[1].split(",")} if found else set[int]()
        places = [Place(*row) for row in self.rows.tolist()]
        dead = [n for n, place in enumerate(places) if place.process in gone]
        busy = [n for n, place in enumerate(places) if place.stage in (READING, COLLATING)]
        waited = [n for n in busy if places[n].step == step]
        lines = [
            f"worker {n} (process {places[n].process}) {'died' if n in dead else 'hangs'}, {_doing(places[n], plan)}"
            for n in ([] if gone and not dead else dead or waited or busy)
        ]
        return "; ".join(lines) or f"{'a worker died before its first sample' if gone else 'no worker is at work'}"


@contextmanager
def _deaths_unheard() -> Iterator[None]:
    """Around a shutdown: torch raises its error for a dead worker by a signal, wherever the process is just then."""
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: Any = None
    while heard is None:
        try:
            heard = signal.getsignal(signal.SIGCHLD)
            signal.signal(signal.SIGCHLD, lambda *_: None)
        except RuntimeError:  # the one that was on its way
            heard = None if signal.getsignal(signal.SIGCHLD) is heard else heard
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, heard)


def _terminate(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.terminate()


def _doing(place: Place, plan: Plan) -> str:
    """What a worker was at."""
    seconds = (time.monotonic_ns() - place.nanoseconds) / 1e9
    records = plan.records[place.source] if place.source >= 0 else None
    if records is None:
        sample = "none yet"
    elif isinstance(records, Stream):
        sample = f"the next one of the stream {plan.names[place.source]}"
    else:
        sample = f"{':'.join(records.name(place.sample))} of {plan.names[place.source]}"
    if place.stage == READING:
        return f"reading {sample}, for step {place.step}, since {seconds:.1f} s"
    if place.stage == COLLATING:
        return f"making the batch of step {place.step}, since {seconds:.1f} s; its last sample is {sample}"
    return f"waiting for work; its last sample is {sample}"
