"""A rank of `vlp train` that writes down the keys of every batch it takes, and the audit of these books.

    python -m tests.faults.ledger CONFIG key=value ...

is `vlp train CONFIG key=value ...`; only that `Feed.batches` is watched. $VLP_LEDGER is the folder for the books, and
$VLP_START the number of this start of the run.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter, defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

from vlp.log import JsonLines, read_lines

FOLDER, START = "VLP_LEDGER", "VLP_START"


class Books(NamedTuple):
    """What became of the order: differences from the straight run's, and keys that one epoch did not have just once."""

    batches: int  # global batches that every rank had taken
    keys: int  # in the epoch
    wrong: list[str]
    missing: list[str]
    repeated: list[str]


def watch() -> None:
    """From here on every batch that a run of this process takes is written down before it is trained on."""
    from vlp.data.feed import Feed
    from vlp.types import Batch

    unwatched = Feed.batches

    def batches(feed: Feed, start: int, stop: int) -> Generator[Batch]:
        rank, world = feed.plan.rank, feed.plan.world
        lines = JsonLines(Path(os.environ[FOLDER]) / f"keys.{rank}.jsonl")
        about = {"start": int(os.environ[START]), "rank": rank, "world": world}
        with contextlib.closing(unwatched(feed, start, stop)) as taken, contextlib.closing(lines):
            for step, batch in zip(range(start, stop), taken):
                lines.write({"step": step, **about, "keys": list(batch.keys)})
                yield batch

    Feed.batches = batches  # type: ignore[method-assign]


def parts(folder: Path) -> dict[tuple[int, int], dict[int, list[str]]]:
    """(step, start) -> rank -> its keys; only where all ranks took the batch."""
    found: defaultdict[tuple[int, int], dict[int, list[str]]] = defaultdict(dict)
    worlds = {}
    for path in sorted(folder.glob("keys.*.jsonl")):
        for line in read_lines(path):
            place = line["step"], line["start"]
            found[place][line["rank"]], worlds[place] = line["keys"], line["world"]
    return {place: ranks for place, ranks in found.items() if len(ranks) == worlds[place]}


def global_batches(folder: Path) -> dict[tuple[int, int], list[str]]:
    """(step, start) -> keys of the global batch, rank by rank."""
    return {place: [key for _, keys in sorted(ranks.items()) for key in keys] for place, ranks in parts(folder).items()}


def audit(folder: Path, straight: Path, *, keys: set[str]) -> Books:
    """One epoch's books beside the straight run's; a step counts as the last start took it, as it is what is kept."""
    expected = {step: batch for (step, _), batch in global_batches(straight).items()}
    taken = global_batches(folder)
    wrong = [f"step {step} of start {start}" for (step, start), batch in taken.items() if batch != expected[step]]
    last = {step: batch for (step, _), batch in sorted(taken.items())}
    seen = Counter(key for batch in last.values() for key in batch if key)
    repeated = sorted(key for key, count in seen.items() if count > 1)
    return Books(len(taken), len(keys), wrong, sorted(keys - seen.keys()), repeated)


if __name__ == "__main__":
    from vlp.cli import run_train

    watch()
    run_train()
