"""How the cost of a training step grows: with pairs, picture size, caption length and processes; and what options give.

Rows of `pairs`, `size` and `words` are forward and backward of one process, their median and what that is of the first
row; memory is what the step takes beyond the model. `options` sets bf16 autocast, channels_last and compiled blocks
beside the plain step, by turns. `processes` cuts one global batch over W gloo processes of one thread, as DDP does.
There is no peer here: every ratio is to ourselves.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from paired import Case, arguments, clock, conditions, cores, duration, load, parse, peak_bytes, print_row, take_turns
from step import make_batch
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

from vlp import dist
from vlp.losses.infonce import InfoNCE
from vlp.losses.objective import Objective
from vlp.models.dual import Dual
from vlp.models.model import Model
from vlp.prepare import compile_blocks
from vlp.types import Batch

WORD = "a"  # one token
OBJECTIVE = Objective([InfoNCE()])


class Point(NamedTuple):
    """One size of a step."""

    pairs: int
    size: int  # of the pictures, in pixels
    tokens: int  # of the captions, start and end counted


def model_of(arch: str, size: int) -> Dual:
    torch.manual_seed(0)
    return Model(arch=arch, image_size=size).build().train()


def batch_of(dual: Dual, point: Point) -> Batch:
    return make_batch(dual, [" ".join([WORD] * (point.tokens - 2))] * point.pairs)


def step_of(
    dual: Dual, batch: Batch, around: Callable[[], AbstractContextManager[object]] = nullcontext
) -> Callable[[], None]:
    """Forward and backward, inside of what `around` opens."""

    def run() -> None:
        dual.zero_grad()
        with around():
            loss = OBJECTIVE(dual(batch), batch).total
        loss.backward()

    return run


def points(part: str, plain: Point, quick: bool) -> Iterator[tuple[str, Point]]:
    """Name and size of the rows of a part."""
    values = {"pairs": (8, 16, 32, 64, 128), "size": (32, 64, 96, 128), "words": (8, 16, 32, 48, 77)}[part]
    for value in values[:2] if quick else values:
        if part == "pairs":
            yield f"{value} pairs", plain._replace(pairs=value)
        elif part == "size":
            yield f"{value} px", plain._replace(size=value)
        else:
            yield f"{value} tokens", plain._replace(tokens=value)


def grow(part: str, options: Namespace) -> None:
    """The rows of `pairs`, `size` or `words`."""
    print_row([part, "step", "a pair", "of the first", "memory"])
    print_row(["---"] * 5)
    now, first = clock(options), 0.0
    for name, point in points(part, Point(options.pairs, 64, 16), options.quick):
        dual = model_of(options.arch, point.size)
        run = step_of(dual, batch_of(dual, point))
        run()
        taken = []
        for _ in range(options.rounds):
            start = now()
            run()
            taken.append(now() - start)
        seconds = statistics.median(taken)
        first = first or seconds
        memory = f"{peak_bytes(run) / 2**20:.0f} MB"
        print_row([name, duration(seconds), duration(seconds / point.pairs), f"{seconds / first:.2f}x", memory])
    print()


def choices(options: Namespace) -> None:
    """What options of a run give on this device, each beside the plain step."""
    print_row(["option", "plain", "with it", "faster", "loss off by"])
    print_row(["---"] * 5)
    point = Point(options.pairs, 64, 32)
    plain = model_of(options.arch, point.size)
    batch = batch_of(plain, point)
    whole = OBJECTIVE(plain(batch), batch).total.item()
    half = model_of(options.arch, point.size)
    last = model_of(options.arch, point.size).to(memory_format=torch.channels_last)
    compiled = model_of(options.arch, point.size)
    compile_blocks(compiled)

    def bf16() -> AbstractContextManager[object]:
        return torch.autocast("cpu", torch.bfloat16)

    for name, dual, around in (
        ("precision: bf16", half, bf16),
        ("channels_last", last, nullcontext),
        ("compile: true", compiled, nullcontext),
    ):
        if name.startswith("compile") and options.quick:
            continue  # a minute to compile
        ours, theirs = step_of(dual, batch, around), step_of(plain, batch)
        ours(), theirs()
        found = take_turns(Case(name, ours, theirs, lambda a, b: ""), rounds=options.rounds, clock=clock(options))
        with around():
            off = abs(OBJECTIVE(dual(batch), batch).total.item() - whole)
        times = [duration(statistics.median(side)) for side in (found.theirs, found.ours)]
        print_row([name, *times, found.faster, f"{off:.0e}"])
    print()


def processes(options: Namespace) -> None:
    """One global batch over more and more processes: wall seconds, and the share that would be lost to waiting."""
    print_row(["W", "step", "faster than W=1", "of W times as fast"])
    print_row(["---"] * 4)
    worlds = [world for world in (1, 2, 4, 8) if world <= cores()]
    point = Point(2 * options.pairs, 64, 16)
    alone = 0.0
    for world in worlds[:1] if options.quick else worlds:
        with tempfile.TemporaryDirectory() as folder:
            results = Path(folder) / "seconds"
            args = (world, f"file://{folder}/store", options.arch, point, options.rounds, str(results))
            multiprocessing.spawn(one_rank, args, nprocs=world)
            seconds = float(results.read_text())
        alone = alone or seconds
        print_row([str(world), duration(seconds), f"{alone / seconds:.2f}x", f"{100 * alone / seconds / world:.0f} %"])
    print()


def one_rank(rank: int, world: int, rendezvous: str, arch: str, point: Point, rounds: int, results: str) -> None:
    torch.set_num_threads(1)
    dist.start(rank=rank, world=world, rendezvous=rendezvous)
    dual = model_of(arch, point.size)
    batch = batch_of(dual, point._replace(pairs=point.pairs // world))
    model = DistributedDataParallel(dual) if world > 1 else dual
    taken = []
    for _ in range(rounds + 2):
        dist.barrier()
        start = time.perf_counter()
        dual.zero_grad()
        OBJECTIVE(model(batch), batch).total.backward()
        dist.barrier()
        taken.append(time.perf_counter() - start)
    if rank == 0:
        Path(results).write_text(str(statistics.median(taken[2:])))
    dist.stop()


PARTS: dict[str, Callable[[Namespace], None]] = {
    "pairs": lambda options: grow("pairs", options),
    "size": lambda options: grow("size", options),
    "words": lambda options: grow("words", options),
    "options": choices,
    "processes": processes,
}


def main(parts: Sequence[str], options: Namespace) -> None:
    print(conditions(options), flush=True)
    for part in parts:
        PARTS[part](options)
    print(f"load average afterwards {load()}")


if __name__ == "__main__":
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--arch", default="vlp-tiny-64", help="one of vlp/models/configs")
    parser.add_argument("--pairs", type=int, default=None, help="default: 32, or 4 with --quick")
    parser.add_argument("--parts", default=",".join(PARTS), help="rows of which kinds")
    options = parse(parser)
    options.pairs = options.pairs or (4 if options.quick else 32)
    if unknown := [part for part in options.parts.split(",") if part not in PARTS]:
        sys.exit(f"--parts: no {unknown[0]}; there are {', '.join(PARTS)}")
    main(options.parts.split(","), options)
