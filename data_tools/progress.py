"""A bar on stderr while a list of work goes by; plain lines when stderr is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
QUIET_SECONDS = 10.0  # between two plain lines


def progress(items: Iterable[T], *, total: int, label: str) -> Iterator[T]:
    """The items as they come."""
    if total <= 1:
        yield from items
    elif sys.stderr.isatty():
        yield from _bar(items, total, label)
    else:
        yield from _lines(items, total, label)


def _bar(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        for item in items:
            yield item
            bar.advance(task)


def _lines(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    start = said = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - said >= QUIET_SECONDS and done < total:
            said = now
            left = (now - start) / done * (total - done)
            print(f"{label}: {done} of {total}, about {left:.0f} s left", file=sys.stderr, flush=True)
