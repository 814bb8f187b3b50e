"""Ranks as a launcher without an agent starts them: real processes that say their error and end for good."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import torch

_PROCESSES = multiprocessing.get_context("forkserver")  # with what tests/conftest.py has it load before


class Ended(NamedTuple):
    """How a rank ended."""

    code: int
    said: str  # all that it wrote to stderr
    at: float  # time.time()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def run_ranks(fn: Callable[..., None], world: int, out: Path, *args: Any, seconds: float = 120) -> list[Ended]:
    """`fn(rank, world, out, *args)` in `world` processes with the environment of torchrun; how each of them ended."""
    return run_some(fn, range(world), world, out, *args, seconds=seconds)


def run_some(
    fn: Callable[..., None], ranks: range, world: int, out: Path, *args: Any, port: int = 0, seconds: float = 120
) -> list[Ended]:
    """Like `run_ranks`, but only some of the ranks come."""
    out.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    processes = [_PROCESSES.Process(target=_rank, args=(fn, rank, world, port, out, args)) for rank in ranks]
    ended: dict[int, float] = {}
    deadline = time.monotonic() + seconds
    try:
        for process in processes:
            process.start()
        while len(ended) < len(processes):
            running = {process.sentinel: n for n, process in enumerate(processes) if n not in ended}
            ready = wait(list(running), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"{len(running)} ranks hang; they said: {[_said(out, rank) for rank in ranks]}")
            ended |= {running[sentinel]: time.time() for sentinel in ready}  # type: ignore[index]
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()
    codes = [process.exitcode for process in processes]
    return [
        Ended(-1 if code is None else code, _said(out, rank), ended[n])
        for n, (rank, code) in enumerate(zip(ranks, codes, strict=True))
    ]


def _said(out: Path, rank: int) -> str:
    return (out / f"rank{rank}.txt").read_text(encoding="utf-8", errors="replace")


def _rank(fn: Callable[..., None], rank: int, world: int, port: int, out: Path, args: tuple[Any, ...]) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    file = (out / f"rank{rank}.txt").open("w", encoding="utf-8", buffering=1)
    os.dup2(file.fileno(), 2)
    sys.stderr = file
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # as in a process that no fork server started
    try:
        fn(rank, world, out, *args)
    except (ValueError, FileNotFoundError, RuntimeError, OSError) as error:  # as vlp.cli.main does
        file.write(f"{type(error).__name__}: {error}\n")
        raise SystemExit(1) from None
