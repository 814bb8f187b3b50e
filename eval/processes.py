"""`torchrun --nproc-per-node N -m eval MODEL SUITE`: every process encodes its share, the first one writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from vlp import dist


@contextmanager
def processes() -> Iterator[None]:
    """While open, the processes that torchrun started know each other; one process, or ones that do, stay as they are.

    Features are gathered from the CPU, so gloo serves on every machine.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or dist.active():
        yield
        return
    dist.start(rank=int(os.environ["RANK"]), world=world, rendezvous="env://")
    try:
        yield
    finally:
        dist.stop()


def device_of(asked: str) -> str:
    """The device asked for; "auto" is a GPU if there is one, of several processes each its own."""
    import torch

    found = asked
    if asked == "auto":
        found = "cuda" if torch.cuda.is_available() else "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if found == "cuda" and dist.world() > 1 else found
