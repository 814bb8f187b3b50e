"""Seconds by part of a run, counted alike on both sides. Both environments import it, so it needs neither."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Parts:
    """Seconds by name; a part that runs within another is not counted in the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._within: list[str] = []
        self._since = 0.0

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with its seconds counted towards `part`."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self._enter(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._leave()

        return run

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(self.seconds), encoding="utf-8")

    def _enter(self, part: str) -> None:
        self._count()
        self._within.append(part)

    def _leave(self) -> None:
        self._count()
        self._within.pop()

    def _count(self) -> None:
        now = time.perf_counter()
        if self._within:
            self.seconds[self._within[-1]] = self.seconds.get(self._within[-1], 0.0) + now - self._since
        self._since = now
