"""Fixtures that everyone may use: processes, and made-up batches and features."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import install_import_hook
from torch import Tensor
from torch.nn.functional import normalize

from vlp import dist
from vlp.types import UNLABELLED, Batch, Features

install_import_hook(["vlp.kernels", "vlp.losses"], "beartype.beartype")  # shapes in signatures are checked in tests

# A server that has torch loaded (and _dynamo, which DDP imports) and forks from there: a process starts in a tenth of a
# second, and never inherits the threads of the test process.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["torch._dynamo", "vlp.gradcache", "vlp.losses.infonce", "vlp.losses.sigmoid"])
SECONDS = 120.0


def run_processes(fn: Callable[..., Any], world: int, *args: Any, seconds: float = SECONDS) -> list[Any]:
    """Results of fn(rank, world, *args) of `world` gloo processes; the first error is raised here, with its traceback.

    `fn`, arguments and results are pickled: `fn` stands at the top of its module.
    """
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = f"file://{Path(folder) / 'store'}"
        pipes = [_PROCESSES.Pipe(duplex=False) for _ in range(world)]
        children = [
            _PROCESSES.Process(target=_child, args=(send, fn, rank, world, rendezvous, args, seconds), daemon=True)
            for rank, (_, send) in enumerate(pipes)
        ]
        try:
            for child, (_, send) in zip(children, pipes, strict=True):
                child.start()
                send.close()
            return _collect([receive for receive, _ in pipes], deadline=time.monotonic() + seconds)
        finally:
            for child in children:
                if child.pid is not None:
                    child.terminate()
                    child.join()


def _collect(receivers: list[Connection], *, deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(receivers):
        open_ones = {pipe: rank for rank, pipe in enumerate(receivers) if rank not in results}
        ready = wait(list(open_ones), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError(f"ranks {sorted(open_ones.values())} gave no answer in time")
        for pipe in ready:
            rank = open_ones[pipe]  # type: ignore[index]
            try:
                error, results[rank] = pickle.loads(pipe.recv_bytes())  # type: ignore[union-attr]
            except EOFError:
                raise RuntimeError(f"rank {rank} died without a word") from None
            if error:
                raise AssertionError(f"rank {rank} of {len(receivers)} failed:\n{error}")
    return [results[rank] for rank in range(len(receivers))]


def _child(
    send: Connection, fn: Callable[..., Any], rank: int, world: int, where: str, args: Sequence[Any], seconds: float
) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    try:
        dist.start(rank=rank, world=world, rendezvous=where, seconds=seconds)
        assert (dist.rank(), dist.world()) == (rank, world)
        answer = (None, fn(rank, world, *args))
        dist.barrier()  # nobody leaves while another still needs it
        send.send_bytes(pickle.dumps(answer))
        dist.stop()
    except BaseException:
        send.send_bytes(pickle.dumps((traceback.format_exc(), None)))


@pytest.fixture
def spawn() -> Callable[..., list[Any]]:
    """`spawn(fn, world, *args)`: fn(rank, world, *args) in `world` gloo processes; the results in order of rank."""
    return run_processes


def random_batch(
    num: int = 4,
    *,
    captions: int = 1,
    tokens: int = 8,
    size: int = 32,
    vocab: int = 100,
    seed: int = 0,
    label: Sequence[int] | None = None,
    valid: Sequence[bool] | None = None,
    caption_mask: Sequence[Sequence[bool]] | None = None,
) -> Batch:
    """`num` pairs of noise with captions of random length; distinct labels, all valid unless given."""
    rng = torch.Generator().manual_seed(seed)
    length = torch.randint(2, tokens + 1, (num, captions), generator=rng)
    real = torch.ones(num, captions, dtype=torch.bool) if caption_mask is None else torch.tensor(caption_mask)
    mask = (torch.arange(tokens) < length[..., None]) & real[..., None]
    return Batch(
        image=torch.randint(0, 256, (num, 3, size, size), generator=rng, dtype=torch.uint8),
        text=torch.randint(1, vocab, (num, captions, tokens), generator=rng) * mask,
        token_mask=mask,
        caption_mask=real,
        valid=torch.ones(num, dtype=torch.bool) if valid is None else torch.tensor(valid),
        label=UNLABELLED + torch.arange(num) if label is None else torch.tensor(label),
        source=torch.zeros(num, dtype=torch.long),
        keys=tuple(f"made-up.tar:{i:04d}" for i in range(num)),
    )


def random_features(
    num: int = 4,
    *,
    captions: int = 1,
    width: int = 6,
    seed: int = 0,
    scale: float = 10.0,
    bias: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> Features:
    """Unit rows of noise; every tensor is a leaf that wants its gradient."""
    rng = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=rng, dtype=torch.float64)
        return normalize(drawn, dim=-1).to(dtype).requires_grad_()

    def number(value: float) -> Tensor:
        return torch.tensor([value], dtype=dtype, requires_grad=True)

    return Features(
        image=unit(num, width),
        text=unit(num, captions, width),
        scale=number(scale),
        bias=None if bias is None else number(bias),
    )


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """`make_batch(num, captions=, tokens=, label=, valid=, caption_mask=, ...)`: see `random_batch`."""
    return random_batch


@pytest.fixture
def make_features() -> Callable[..., Features]:
    """`make_features(num, captions=, width=, scale=, bias=, dtype=)`: see `random_features`."""
    return random_features
