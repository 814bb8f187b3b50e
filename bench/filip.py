"""Token-wise similarities and a loss on them, forward and backward: ours beside the plain form, which keeps products.

    python bench/filip.py --pairs 64,128,256,512,1024 --rounds 1
    OMP_WAIT_POLICY=PASSIVE python bench/filip.py --threads 2

With more than one thread on cores that others use too, threads that wait must sleep (PASSIVE, which `make` sets): ours
meets a thousand times where the plain form meets ten, and a thread that spins keeps off the one it waits for.

Loss and both gradients are equal to 1e-4 of the largest element. Memory is the peak of a fresh process beyond what it
held with the inputs made. Where the plain form does not fit into memory, theirs is the plain form in blocks of images,
with checkpoints, and the row says so. On a GPU, ours is the Triton form, in bf16, and theirs runs eager and compiled.
"""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from paired import Case, Run, UnequalError, arguments, close, main, parse
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from torch.utils.checkpoint import checkpoint

from vlp.kernels.late import late_similarity

MEMORY = ("memory theirs", "memory ours")
PLAIN_COPIES = 3.3  # of the products that the plain form holds at its peak, measured
ROWS = 16  # images of a block of the checkpointed form

Sides = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Size(NamedTuple):
    pairs: int
    patches: int
    tokens: int
    width: int
    full: bool  # every caption fills all tokens

    @property
    def title(self) -> str:
        length = "all full" if self.full else f"5 to {self.tokens} real"
        return f"N={self.pairs}, P={self.patches}, T={self.tokens}, {length}"

    @property
    def plain_bytes(self) -> int:
        element = 2 if torch.cuda.is_available() else 4
        return int(PLAIN_COPIES * self.pairs**2 * self.patches * self.tokens * element)


def inputs(size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """Unit tokens of images and texts that want their gradient, and the mask of the texts."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    rng = torch.Generator().manual_seed(size.pairs)
    x, y = (
        normalize(torch.randn(size.pairs, length, size.width, generator=rng), dim=-1).to(device, dtype).requires_grad_()
        for length in (size.patches, size.tokens)
    )
    shortest = size.tokens if size.full else min(5, size.tokens)
    length = torch.randint(shortest, size.tokens + 1, (size.pairs, 1), generator=rng)
    return x, y, (torch.arange(size.tokens) < length).to(device)


def ours(x: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = late_similarity(x, y, x_mask=None, y_mask=mask)
    assert rows is not None
    assert columns is not None
    return rows, columns


def plain(x: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    products = torch.einsum("apd,mtd->apmt", x, y)
    rows = products.masked_fill(~mask, -torch.inf).max(3).values.mean(1)
    columns = (products.max(1).values * mask).sum(2) / mask.sum(1)
    return rows, columns


def in_blocks(x: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    parts = [checkpoint(plain, part, y, mask, use_reentrant=False) for part in x.split(ROWS)]
    rows, columns = zip(*parts, strict=True)
    return torch.cat(rows), torch.cat(columns)


FORMS: dict[str, Sides] = {"ours": ours, "plain": plain, "blocks": in_blocks}


def step(form: Sides, x: Tensor, y: Tensor, mask: Tensor) -> Run:
    """Cross-entropies over rows and columns: the loss, and the gradients of both sides."""
    target = torch.arange(len(x), device=x.device)

    def run() -> tuple[Tensor, Tensor, Tensor]:
        rows, columns = form(x, y, mask)
        loss = (cross_entropy(30 * rows.float(), target) + cross_entropy(30 * columns.float().T, target)) / 2
        grads = torch.autograd.grad(loss, (x, y))
        if x.is_cuda:
            torch.cuda.synchronize()
        return loss.detach(), *grads

    return run


def cases(sizes: list[Size], options: Namespace) -> Iterator[Case]:
    for size in sizes:
        fits = size.plain_bytes < 0.8 * free_bytes()
        name, note = ("plain", "") if fits else ("blocks", f"; plain needs {size.plain_bytes >> 30} GB: in blocks")
        data = inputs(size)
        theirs = {"": FORMS[name]}
        if data[0].is_cuda:
            theirs["; compiled"] = torch.compile(FORMS[name])
        for how, form in theirs.items():
            check = near(0.05) if data[0].is_cuda else close(1e-4)
            more = {MEMORY[0]: megabytes(size, name, options), MEMORY[1]: megabytes(size, "ours", options)}
            yield Case(size.title + note + how, step(ours, *data), step(form, *data), check, more)


def near(limit: float) -> Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], str]:
    """Check of bf16: the plain form rounds its products, so that some tie that do not, and others win."""

    def check(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> str:
        worst = max(float((a.float() - b.float()).norm() / b.float().norm()) for a, b in zip(ours, theirs, strict=True))
        if not worst <= limit:
            raise UnequalError(f"a norm is off by {worst:.1e} > {limit:.0e}")
        return f"norms within {worst:.0e}"

    return check


def free_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def megabytes(size: Size, form: str, options: Namespace) -> Callable[[], str]:
    """Peak of a form in a process of its own."""
    given = [form, *(str(int(number)) for number in size), str(options.threads)]

    def measure() -> str:
        command = [sys.executable, __file__, "--alone", ",".join(given)]
        return f"{float(subprocess.run(command, check=True, capture_output=True, text=True).stdout):.0f} MB"

    return measure


def alone(form: str, *numbers: str) -> None:
    """Prints the MB that one step of a form takes beyond the inputs; nothing else has run in this process."""
    torch.set_num_threads(int(numbers[-1]))
    pairs, patches, tokens, width, full = (int(number) for number in numbers[:-1])
    data = inputs(Size(pairs, patches, tokens, width, bool(full)))
    before = held()
    step(FORMS[form], *data)()
    peak = torch.cuda.max_memory_allocated() if data[0].is_cuda else 1024 * _kilobytes("VmHWM")
    print((peak - before) / 2**20)


def held() -> int:
    """Bytes held now."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 1024 * _kilobytes("VmRSS")


def _kilobytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def largest(size: Size, form: str) -> int:
    """Most pairs that a form can take on this GPU, by doubling."""
    pairs = 512
    while True:
        try:
            step(FORMS[form], *inputs(size._replace(pairs=2 * pairs)))()
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return pairs
        pairs *= 2


def sizes_of(options: Namespace) -> list[Size]:
    gpu = torch.cuda.is_available()
    usual = "64" if options.quick else "1024,2048,4096,8192,16384" if gpu else "64,256"
    patches, tokens = options.patches or (196 if gpu else 49), options.tokens or (77 if gpu else 32)
    counts = [int(number) for number in (options.pairs or usual).split(",")]
    kinds = [False] if options.quick else [False, True]
    return [Size(pairs, patches, tokens, options.width, full) for pairs in counts for full in kinds]


if __name__ == "__main__":
    parser = arguments(__doc__, rounds=5)
    parser.add_argument("--pairs", default=None, help="default: 64,256; on a GPU 1024 to 16384; 64 with --quick")
    parser.add_argument("--patches", type=int, default=None, help="default: 49, on a GPU 196")
    parser.add_argument("--tokens", type=int, default=None, help="default: 32, on a GPU 77")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--alone", default=None, help="form and numbers: prints its memory; the script calls itself so")
    options = parse(parser)
    if options.alone:
        alone(*options.alone.split(","))
        sys.exit()
    if torch.cuda.is_available():
        options.threads = max(2, options.threads)  # the wall clock, which also counts the GPU
    sizes = sizes_of(options)
    main(cases(sizes, options), options, columns=MEMORY)
    if torch.cuda.is_available() and not options.quick:
        print("largest batch:", {form: largest(sizes[-1], form) for form in FORMS})
