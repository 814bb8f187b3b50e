"""Our contrastive losses beside open_clip's, forward and backward: time and peak memory, paired in one run.

    python bench/losses.py --pairs 1024,4096,8192 --rounds 5

Values and gradients are compared first. Time is CPU seconds of the process (wall seconds on CUDA), in turns of shuffled
order; what is printed is the median of the per-round ratios and their range. Memory is the peak of torch's own
allocation events, features not counted.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor
from torch.nn.functional import normalize
from torch.profiler import ProfilerActivity, profile

from vlp.losses.infonce import InfoNCE
from vlp.losses.sigmoid import Sigmoid
from vlp.types import UNLABELLED, Batch, Features

Run = Callable[[], tuple[Tensor, ...]]
CLOCK = time.process_time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default="1024,4096,8192")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--blocks", default="0", help="rows of a tile; 0: chosen by the device")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{'loss':8} {'N':>6} {'block':>6} {'theirs':>20} {'ours':>20} {'faster':>20} {'less memory':>12}")
    for num in (int(n) for n in options.pairs.split(",")):
        for block in (int(b) for b in options.blocks.split(",")):
            for name, ours, theirs in contestants(num, options.width, block):
                compare(name, num, block, ours, theirs, rounds=options.rounds)


def contestants(num: int, width: int, block: int) -> list[tuple[str, Run, Run]]:
    rng = torch.Generator().manual_seed(num)
    image, text = (normalize(torch.randn(num, width, generator=rng), dim=1).requires_grad_() for _ in range(2))
    scale, bias = (torch.tensor([value], requires_grad=True) for value in (30.0, -10.0))
    features = Features(image, text[:, None], scale, bias)
    nothing = torch.zeros(num, 1, 1, dtype=torch.long)
    yes = torch.ones(num, 1, dtype=torch.bool)
    label = UNLABELLED + torch.arange(num)
    batch = Batch(nothing, nothing, nothing.bool(), yes, yes[:, 0], label, nothing[:, 0, 0])

    def run(fn: Callable[[], Tensor], *inputs: Tensor) -> Run:
        def forward_backward() -> tuple[Tensor, ...]:
            value = fn()
            return value.detach(), *torch.autograd.grad(value, inputs, retain_graph=False)

        return forward_backward

    clip, siglip = ClipLoss(), SigLipLoss()
    plain = (image, text, scale)

    def fresh() -> Features:  # the view of the text belongs to the graph that each backward frees
        return features._replace(text=text[:, None])

    infonce, sigmoid = InfoNCE(block=block or None), Sigmoid(block=block or None)
    return [
        (
            "infonce",
            run(lambda: infonce(fresh(), batch)["contrast"], *plain),
            run(lambda: clip(image, text, scale), *plain),
        ),
        (
            "sigmoid",
            run(lambda: sigmoid(fresh(), batch)["contrast"], *plain, bias),
            run(lambda: siglip(image, text, scale, bias), *plain, bias),
        ),
    ]


def compare(name: str, num: int, block: int, ours: Run, theirs: Run, *, rounds: int) -> None:
    for a, b in zip(ours(), theirs(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()), rtol=1e-4)
    seconds: dict[Run, list[float]] = {ours: [], theirs: []}
    for _ in range(rounds):
        for run in random.sample([ours, theirs], 2):
            start = CLOCK()
            run()
            seconds[run].append(CLOCK() - start)
    ratios = [b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True)]
    peaks = {run: peak_bytes(run) for run in (ours, theirs)}
    cells = [f"{statistics.median(seconds[run]):8.3f} s {peaks[run] / 2**20:7.1f} MB" for run in (theirs, ours)]
    spread = f"{statistics.median(ratios):.2f}x [{min(ratios):.2f}, {max(ratios):.2f}]"
    print(f"{name:8} {num:6} {block:6} {cells[0]:>20} {cells[1]:>20} {spread:>20} {peaks[theirs] / peaks[ours]:11.1f}x")


def peak_bytes(run: Run) -> int:
    """Most bytes alive at once, beyond what was alive before, from the profiler's allocation events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        kept = run()
    del kept
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    return most


if __name__ == "__main__":
    main()
