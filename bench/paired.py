"""The harness of every script here: ours and theirs by turns in one process, results compared before any ratio.

A script makes Cases and hands them to `main`. Each case is run once on both sides, what came out is compared, and only
if it is equal are both timed, in rounds of shuffled order. The ratio of a round is theirs / ours; the
median and the range of these are printed, so that a machine that is busy for a while spoils a round and not the figure.

The clock counts CPU seconds of this process for one thread, which other processes hardly touch, and wall seconds for
more. This module does nothing when it is run.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

Run = Callable[[], Any]
MEMORY = ("memory theirs", "memory ours")  # columns that `megabytes` fills
PACKAGES = ("torch", "torchvision", "open_clip_torch", "pillow", "simplejpeg", "numpy")


class UnequalError(Exception):
    """The two sides did not give the same result, so that a ratio would mean nothing."""


@dataclass(frozen=True)
class Case:
    """One row: two ways to the same result."""

    name: str
    ours: Run
    theirs: Run
    check: Callable[[Any, Any], str]  # results of ours and theirs -> what was found, or UnequalError
    more: dict[str, Callable[[], str]] = field(default_factory=dict)  # further columns, measured after the time


@dataclass(frozen=True)
class Seconds:
    """What the rounds took."""

    ours: list[float]
    theirs: list[float]

    @property
    def faster(self) -> str:
        """Median and range of theirs / ours over the rounds."""
        ratios = [b / a for a, b in zip(self.ours, self.theirs, strict=True)]
        return f"{statistics.median(ratios):.2f}x [{min(ratios):.2f}, {max(ratios):.2f}]"


def arguments(doc: str | None, *, rounds: int = 7) -> argparse.ArgumentParser:
    """The options that all scripts share; a script may add its own."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small, two rounds: whether it runs, not how fast it is")
    parser.add_argument("--rounds", type=int, default=None, help=f"default: {rounds}, or 2 with --quick")
    parser.add_argument("--threads", type=int, default=1, help="of torch; more than 1 is timed by the wall clock")
    parser.set_defaults(usual_rounds=rounds)
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, and torch set to the threads asked for."""
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else options.usual_rounds)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    return options


def main(cases: Iterable[Case], options: argparse.Namespace, *, columns: Sequence[str] = ()) -> None:
    """Prints the conditions and one row a case; leaves with 1 if the results of any case differ.

    Cases are made one after the other, so that what a case holds can go before the next one is made.
    """
    print(conditions(options), flush=True)
    print_row(["case", "theirs", "ours", "faster", *columns, "results"])
    print_row(["---"] * (5 + len(columns)))
    failed = [case.name for case in cases if not measure(case, options, columns)]
    print(f"load average afterwards {load()}")
    if failed:
        sys.exit(f"results differ, so no ratio is given: {', '.join(failed)}")


def measure(case: Case, options: argparse.Namespace, columns: Sequence[str]) -> bool:
    """Prints the row of one case; whether the results were equal."""
    try:
        found = case.check(case.ours(), case.theirs())
    except UnequalError as error:
        print_row([case.name, *["-"] * (3 + len(columns)), f"DIFFER: {error}"])
        return False
    seconds = take_turns(case, rounds=options.rounds, clock=clock(options))
    extra = [case.more[column]() for column in columns]
    times = [duration(statistics.median(side)) for side in (seconds.theirs, seconds.ours)]
    print_row([case.name, *times, seconds.faster, *extra, found])
    return True


def take_turns(case: Case, *, rounds: int, clock: Callable[[], float]) -> Seconds:
    """Seconds of each side in each round; who begins is drawn anew every round."""
    lot = random.Random(0)
    seconds = Seconds([], [])
    sides = [(case.ours, seconds.ours), (case.theirs, seconds.theirs)]
    gc.collect()
    gc.freeze()  # what is there already is not searched again before each turn
    for _ in range(rounds):
        for run, taken in lot.sample(sides, 2):
            gc.collect()
            gc.disable()  # nobody pays for the other's garbage
            start = clock()
            result = run()
            taken.append(clock() - start)
            gc.enable()
            del result
    gc.unfreeze()
    return seconds


def clock(options: argparse.Namespace) -> Callable[[], float]:
    return time.process_time if options.threads == 1 else time.perf_counter


def conditions(options: argparse.Namespace, kind: str | None = None) -> str:
    """Versions, cores, load and clock (or `kind`): what a figure has to be read with."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    kind = kind or ("CPU seconds" if options.threads == 1 else "wall seconds")
    capability = torch.backends.cpu.get_cpu_capability()
    return (
        f"Python {platform.python_version()}, {packages}\n"
        f"{platform.machine()} {capability}, {cores()} cores, load average {load()}\n"
        f"{kind} of {options.threads} thread(s), {options.rounds} rounds{', --quick' if options.quick else ''}\n"
    )


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> str:
    return " ".join(f"{value:.2f}" for value in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"


def megabytes(run: Run) -> Callable[[], str]:
    """Measures, when called, what a run takes beyond what was there before."""
    return lambda: f"{peak_bytes(run) / 2**20:.1f} MB"


def peak_bytes(run: Run) -> int:
    """Most bytes alive at once, beyond what was alive before, from the profiler's allocation events."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler reports each start and stop
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        kept = run()
    del kept
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    return most


def duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


def print_row(cells: Sequence[str]) -> None:
    """One row of a Markdown table, as docs/performance.md takes it."""
    print(f"| {' | '.join(cells)} |", flush=True)


def same(ours: Tensor | Sequence[Tensor], theirs: Tensor | Sequence[Tensor]) -> str:
    """Check that two tensors, or two lists of them, are equal to the last bit."""
    pairs = tensors(ours, theirs)
    wrong = sum(int((a != b).any(dim=-1).sum()) for a, b in pairs)
    if wrong:
        raise UnequalError(f"{wrong} of {sum(a[..., 0].numel() for a, _ in pairs)} rows")
    return "equal"


def close(limit: float, *, relative: bool = True) -> Callable[[Any, Any], str]:
    """Check that no element is further off than `limit`, as a share of the largest element of its tensor."""

    def check(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> str:
        worst = 0.0
        for number, (a, b) in enumerate(tensors(ours, theirs)):
            apart = float((a.detach() - b.detach()).abs().max())
            if relative:
                apart /= max(float(b.detach().abs().max()), torch.finfo(b.dtype).tiny)
            if not apart <= limit:  # also where it is not a number
                raise UnequalError(f"tensor {number} of shape {list(a.shape)} is off by {apart:.1e} > {limit:.0e}")
            worst = max(worst, apart)
        return f"within {worst:.0e}"

    return check


def tensors(ours: Tensor | Sequence[Tensor], theirs: Tensor | Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Both results as pairs of tensors of the same shape; UnequalError if they are not."""
    a, b = ([side] if isinstance(side, Tensor) else list(side) for side in (ours, theirs))
    shapes = [[list(t.shape) for t in side] for side in (a, b)]
    if shapes[0] != shapes[1]:
        raise UnequalError(f"shapes {shapes[0][:3]} and {shapes[1][:3]}")
    return list(zip(a, b, strict=True))
