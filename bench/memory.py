"""Memory of loader workers over many batches: MB of each by 1,000 batches, and the slope of that.

    python bench/memory.py --batches 10000 --workers 2

USS is what a worker alone holds, PSS that and its share of what it shares, RSS everything it has mapped. Pictures have
32 to 342 pixels, so that memory comes and goes in pieces of many sizes. The caches of a worker (indexes, permutations,
open files) fill in the first epoch; slopes are fitted to all batches and to the second half. The exit code is not 0
if a worker's slope of RSS or USS over the second half is above --limit.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
from paired import arguments, conditions, load, parse, print_row
from resume import write_shard

from vlp.data import Data, Feed
from vlp.data.transforms import Preprocess
from vlp.text.clip_bpe import ClipBPE

KINDS = ("RSS", "PSS", "USS")


class Held(NamedTuple):
    """MB of one process."""

    rss: float
    pss: float
    uss: float


def held(pid: int | str) -> Held:
    """What a process holds now, from the kernel's books."""
    kilobytes: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        kilobytes[name] = int(rest.split()[0])
    alone = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return Held(kilobytes["Rss"] / 1024, kilobytes["Pss"] / 1024, alone / 1024)


def slope(batches: list[int], megabytes: list[float]) -> float:
    """MB per 1,000 batches, by least squares."""
    return float(np.polyfit(np.asarray(batches) / 1000, megabytes, 1)[0])


def watched(feed: Feed, batches: int, every: int) -> tuple[list[int], dict[str, list[Held]]]:
    """Batches drawn until each look, and what each process held then."""
    looks: list[int] = []
    found: dict[str, list[Held]] = {}
    with closing(feed.batches(0, batches)) as made:
        for number, batch in enumerate(made, 1):
            assert bool(batch.valid.any()), batch.skips[:1]
            if number % every == 0:
                processes = {f"worker {place}": child.pid for place, child in enumerate(workers())}
                looks.append(number)
                for name, pid in {**processes, "reader": "self"}.items():
                    found.setdefault(name, []).append(held(pid))
                if number % (4 * every) == 0:
                    row = ", ".join(f"{name} {series[-1].rss:.1f}" for name, series in found.items())
                    print(f"{time.strftime('%H:%M:%S')} {number} batches: RSS {row}", file=sys.stderr, flush=True)
    return looks, found


def workers() -> list[multiprocessing.process.BaseProcess]:
    """The loader's processes, in the order they were started."""
    return sorted(multiprocessing.active_children(), key=lambda child: child.pid or 0)


def main() -> int:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("--batches", type=int, default=None, help="default: 10000, or 400 with --quick")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=16, help="of a batch")
    parser.add_argument("--shards", type=int, default=20)
    parser.add_argument("--samples", type=int, default=500, help="of each shard")
    parser.add_argument("--limit", type=float, default=1.0, help="MB per 1,000 batches")
    options = parse(parser)
    batches = options.batches or (400 if options.quick else 10_000)
    print(conditions(options, "no clock"))
    with tempfile.TemporaryDirectory() as out:
        for number in range(options.shards):
            write_shard(Path(out) / f"{number:05d}.tar", samples=options.samples, sizes=range(32, 352, 10))
        sources = [{"name": "shards", "urls": out}]
        data = Data.model_validate({"sources": sources, "batch_size": options.pairs, "workers": options.workers})
        feed = Feed(data, tokenizer=ClipBPE().build(), preprocess=Preprocess(size=32), seed=0)
        epochs = batches / feed.steps_per_epoch
        print(f"{batches} batches of {options.pairs}, {epochs:.1f} epochs of {feed.num_samples} samples\n", flush=True)
        looks, found = watched(feed, batches, every=batches // 40)
    over = report(looks, found, options.limit)
    print(f"load average afterwards {load()}")
    return over


def report(looks: list[int], found: dict[str, list[Held]], limit: float) -> int:
    """Prints a row for each process and kind; the number of workers' slopes above the limit."""
    shown = range(3, len(looks), 4)
    print_row(["process", "MB", *(str(looks[i]) for i in shown), "MB per 1,000", "in the second half"])
    print_row(["---"] * (len(shown) + 4))
    over, half = 0, len(looks) // 2
    for name, series in found.items():
        for kind, values in zip(KINDS, zip(*series)):
            late = slope(looks[half:], list(values[half:]))
            numbers = [f"{values[i]:.1f}" for i in shown]
            print_row([name, kind, *numbers, f"{slope(looks, list(values)):+.2f}", f"{late:+.2f}"])
            over += name != "reader" and kind != "PSS" and late > limit
    return over


if __name__ == "__main__":
    sys.exit(main())
