"""A bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.errors import LiveError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vlp import dist
from vlp.log import console

T = TypeVar("T")
PLAIN_EVERY = 15.0  # seconds


def progress(
    batches: Iterable[T], *, total: int, size: Callable[[T], int], what: str, quiet: bool = False
) -> Iterator[T]:
    """The batches as they are, while `size` of each is shown against `total`; only the first process shows anything."""
    if quiet or not dist.is_main():
        yield from batches
    elif (bar := _bar()) is not None:
        with bar:
            task = bar.add_task(what, total=total)
            for batch in batches:
                yield batch
                bar.advance(task, size(batch))
    else:
        yield from _lines(batches, total=total, size=size, what=what)


def _bar() -> Progress | None:
    """A started bar; None where there is no terminal, or where another bar stands that this rich cannot nest into."""
    if not console.is_terminal:
        return None
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    try:
        bar.start()
    except LiveError:
        return None
    return bar


def _lines(batches: Iterable[T], *, total: int, size: Callable[[T], int], what: str) -> Iterator[T]:
    done, began = 0, time.monotonic()
    said = began
    for batch in batches:
        yield batch
        done += size(batch)
        now = time.monotonic()
        if now - said > PLAIN_EVERY:
            said = now
            console.print(f"{what} {done}/{total}  {done / (now - began):.0f}/s", highlight=False)
