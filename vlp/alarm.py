"""Ranks that end together: what one of them fails of is told to all, also to those that wait for it in a collective.

A rank that leaves lets the others wait: gloo ends with "Connection closed by peer", NCCL with nothing until its time
limit. So a rank that fails writes its reason into the store where the processes met, before it leaves. A thread of
every other rank looks there, and ends a process that is still waiting for what will not come.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as torch_dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from vlp import dist
from vlp.log import console

POLL_SECONDS = 0.5
GRACE_SECONDS = 10.0  # for a rank that was told, to come out of its collective by itself
ROLL_CALL_SECONDS = 3.0  # for living ranks to answer

_numbers = itertools.count()  # of the blocks: every rank enters the same ones, so the numbers agree
_CONNECTION = re.compile(r"gloo/transport|NCCL|ProcessGroup|Connection (closed|reset) by peer|Broken pipe")


class RankError(RuntimeError):
    """Another rank failed or is gone; the message says which one, and why."""


@contextmanager
def shared_fate() -> Iterator[None]:
    """Around what all ranks do together: none leaves before all are done, and what one fails of is every rank's error.

    A rank that failed itself raises its own error, the others RankError with the cause. One that is still inside ten
    seconds after it was told is ended with exit code 1. With one process nothing happens here.
    """
    if dist.world() == 1:
        yield
        return
    alarm = _Alarm(next(_numbers))
    try:
        yield
        dist.barrier()  # nobody stops listening while another one may still fail
    except (Exception, KeyboardInterrupt) as error:
        cause = alarm.raised(error)
        if os.environ.get("TORCHELASTIC_ERROR_FILE"):
            get_error_handler().record_exception(cause)  # for the table that torchrun ends with
        if cause is error:
            raise
        raise cause from error
    finally:
        alarm.stop()


class _Alarm:
    """One rank's ear and voice at the store."""

    def __init__(self, number: int) -> None:
        self.rank, self.key = dist.rank(), f"vlp/alarm/{number}"
        self.store = (
            torch_dist.distributed_c10d._get_default_store().clone()
        )  # the other may be locked by a waiting call
        self.heard = ""  # what another rank failed of
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._listen, name="vlp-alarm", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """End the thread; what comes after this is nobody else's concern."""
        self.over.set()
        self.thread.join(timeout=2 * ROLL_CALL_SECONDS)

    def raised(self, error: BaseException) -> BaseException:
        """What this rank leaves with: its own error, of which the others are told, or what another one told."""
        lost = _is_lost_connection(error)
        try:
            if lost:
                return RankError(self.heard or self._ask(str(error)))
            self._tell({"rank": self.rank, "cause": f"{type(error).__name__}: {error}"})
            self._wait_for_all()
        except _STORE_ERRORS as gone:
            return RankError(self._orphaned(gone)) if lost else error
        return error

    def _ask(self, lost: str) -> str:
        self._tell({"rank": self.rank, "lost": lost})
        return self._cause()

    def _tell(self, word: dict[str, Any]) -> None:
        self.store.compare_set(self.key, "", json.dumps(word))  # the first word stands

    def _answer(self) -> None:
        self.store.set(f"{self.key}/{self.rank}", "here")

    def _silent(self) -> list[int]:
        """Ranks that have not answered."""
        return [rank for rank in range(dist.world()) if not self.store.check([f"{self.key}/{rank}"])]

    def _wait_for_all(self) -> None:
        """Stay until the others have heard: without a launcher's agent the store ends with rank 0."""
        self._answer()
        deadline = time.monotonic() + ROLL_CALL_SECONDS
        while self._silent() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 5)

    def _cause(self) -> str:
        """The first word that was told, in a sentence."""
        self._answer()
        word = json.loads(self.store.get(self.key))
        if "lost" not in word:
            return f"rank {word['rank']} failed, so rank {self.rank} ends too: {word['cause']}"
        time.sleep(ROLL_CALL_SECONDS)
        gone = self._silent()
        if self.rank == 0:
            time.sleep(2 * POLL_SECONDS)  # others may still ask the store that it keeps
        if gone:
            return (
                f"rank {', '.join(map(str, gone))} of {dist.world()} is gone without a word, so rank {self.rank} ends "
                "too. It was killed, perhaps for memory (`dmesg` then names its process): lower data.batch_size, "
                "micro_batch or data.workers. Started again, the run goes on from its last checkpoint"
            )
        return (
            f"rank {word['rank']} lost touch with another rank though all of them live: {word['lost']}. If it waited "
            "too long, raise collective_timeout; VLP_TRACE=1 shows where"
        )

    def _orphaned(self, error: Exception) -> str:
        return (
            f"rank {self.rank} ends, since the process that keeps the rendezvous (the launcher; without one rank 0) is "
            f"gone ({str(error).partition(chr(10))[0]}). Started again, the run goes on from its last checkpoint"
        )

    def _listen(self) -> None:
        while not self.over.wait(POLL_SECONDS):
            try:
                if not self.store.check([self.key]):
                    continue
                self.heard = self._cause()
            except _STORE_ERRORS as error:
                self.heard = self._orphaned(error)
            if not self.over.wait(GRACE_SECONDS):
                _end(self.heard)
            return


def _end(cause: str) -> None:
    """End this process from beside a main thread that waits in a collective and hears no signal."""
    console.print(cause, style="bold red", highlight=False, markup=False, soft_wrap=True)
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(1)


_STORE_ERRORS = (torch_dist.DistError, RuntimeError, OSError)


def _is_lost_connection(error: BaseException) -> bool:
    """Whether the error only says that another rank did not come, or left."""
    return isinstance(error, torch_dist.DistError) or (
        isinstance(error, RuntimeError) and _CONNECTION.search(str(error)) is not None
    )
