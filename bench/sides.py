"""Two commands by turns, each in a process of its own: for peers that need another environment, and for whole runs.

What a command measures it prints as one line of JSON; what it takes as a whole (wall and CPU seconds with its workers,
memory) is measured here. Like `paired.py` a module to import: it does nothing when it is run.
"""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paired import duration, print_row

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE / "peers"))

from tree import memory_bytes  # noqa: E402  (beside the scripts of the other environments, which use it too)

PEER = HERE / "peers" / ".venv-open_clip_train" / "bin" / "python"
DATA = HERE.parent / "runs" / "out" / "bench-train"
Found = dict[str, Any]  # what one turn of one side gave


def peer_options(parser: ArgumentParser) -> None:
    """The options of scripts that run beside open_clip_train."""
    parser.add_argument("--peer", type=Path, default=PEER, help="python that has open_clip_train and webdataset 0.2.86")
    parser.add_argument("--folder", type=Path, default=DATA, help="where shards are made and runs are kept")
    parser.add_argument("--shards", default=None, help="shards of one's own, e.g. 'data/openstax_figures/train-*.tar'")


def need_peer(parser: ArgumentParser, peer: Path) -> None:
    if not peer.is_file():
        parser.error(f"{peer}: no such python; `make peers-train` makes it (about 6 GB), or name one with --peer")


def ours(script: str) -> list[str]:
    """The command of a script of bench/peers in this environment."""
    return [sys.executable, str(HERE / "peers" / script)]


def theirs(peer: Path, script: str) -> list[str]:
    """The command of a script of bench/peers in the peer's environment."""
    return [str(peer), "-W", "ignore", str(HERE / "peers" / script)]


def run(command: Sequence[str], settings: Mapping[str, Any], *, threads: int) -> Found:
    """What the command prints last, as JSON, and `run_wall`, `run_cpu` in seconds and `memory`, its peak in bytes.

    Memory is looked at five times a second; a page that processes share counts once.
    """
    own = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    own |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    own |= {"PYTHONPATH": str(HERE.parent) if command[0] == sys.executable else ""}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file, tempfile.TemporaryFile("w+") as log:
        json.dump(dict(settings), file)
        file.flush()
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        process = subprocess.Popen([*command, file.name], env=os.environ | own, stdout=subprocess.PIPE, stderr=log)
        memory = _watch(process)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        printed = process.stdout.read().decode().strip() if process.stdout else ""
        if process.returncode:
            log.seek(0)
            sys.exit(f"{' '.join(command)} failed with {process.returncode}:\n{log.read()[-3000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**json.loads(printed.splitlines()[-1]), "run_wall": wall, "run_cpu": cpu, "memory": memory}


def _watch(process: subprocess.Popen[bytes]) -> int:
    """Most bytes that the process and its workers held; returns when it has ended."""
    most = 0
    while True:
        try:
            process.wait(timeout=0.2)
            return most
        except subprocess.TimeoutExpired:
            most = max(most, memory_bytes(process.pid))


def by_turns(sides: Mapping[str, Callable[[], Found]], rounds: int) -> dict[str, list[Found]]:
    """What each side gave in each round; who begins is drawn anew every round."""
    lot, found = random.Random(0), {name: list[Found]() for name in sides}
    for number in range(rounds):
        for name in lot.sample(list(sides), len(sides)):
            found[name].append(sides[name]())
            if sys.stderr.isatty():
                print(f"  round {number + 1} of {rounds}: {name:20s}", end="\r", file=sys.stderr, flush=True)
    return found


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> str:
    """Median and range of theirs / ours, round by round."""
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    return f"{statistics.median(ratios):.2f}x [{min(ratios):.2f}, {max(ratios):.2f}]"


def seconds_row(name: str, theirs: Sequence[float], ours: Sequence[float], *more: str) -> None:
    """A row of medians of seconds and their ratio."""
    print_row([name, *(duration(statistics.median(side)) for side in (theirs, ours)), ratio(theirs, ours), *more])
