"""Leaving on request: SIGTERM or SIGUSR1 ends the run after its step, with a checkpoint, to be started again."""

from __future__ import annotations

import signal
from typing import Any

from vlp import dist

REQUEUE = 75  # exit code (EX_TEMPFAIL) of a run that saved and left because it was told to


class Requeue(SystemExit):
    """Raised after the checkpoint is written when the process was asked to leave."""

    def __init__(self) -> None:
        super().__init__(REQUEUE)


class Signals:
    """The names of the signals seen while the `with` block runs."""

    def __enter__(self) -> list[str]:
        self.seen: list[str] = []
        self._before: dict[int, Any] = {}
        for number in (signal.SIGTERM, signal.SIGUSR1):
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread (a notebook, a test): signals stay as they are
                break
        return self.seen

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Signals as before; but not after a failure of several ranks: who has yet to say why is not to be ended."""
        if dist.world() > 1 and kind is not None and not issubclass(kind, Requeue):
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        self.seen.append(signal.Signals(number).name)
