"""A run in processes of its own, watched from outside and killed with all of them at a chosen moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from tests.faults.ledger import FOLDER, START
from vlp import checkpoint
from vlp.log import read_lines

ROOT = Path(__file__).parents[2]
MARK = "VLP_STRIKE"  # in the environment of a start and of all that it starts, so that none can be missed
POLL = 0.0005
KEEP = 2  # checkpoints that stay: more of them show a save that had not finished
PATIENCE = 600.0  # seconds that a start may take before it counts as hanging

Where = Literal["start", "step", "bytes", "moment", "stop"]


class Aim(NamedTuple):
    """When to strike a start: in its `count`-th step or save, and how far into it.

    start: at a share of `scale` seconds after the launch; step: that long after the record of a step; bytes: once the
    partial checkpoint has that share of `scale` bytes; moment: that long after it appeared; stop: SIGTERM in a step.
    """

    where: Where
    step: int = 0
    share: float = 0.0
    scale: float = 0.0


class End(NamedTuple):
    """How a start ended: the exit code if it was by itself, and whether it was in the middle of a save."""

    code: int | None
    saving: str  # what the disk shows of an unfinished save; "" if there was none


class Start:
    """One start of the run of `config` on `world` processes."""

    def __init__(self, config: Path, folder: Path, *, world: int, number: int) -> None:
        self.folder, self.root = folder, folder / "checkpoints"
        self.token = uuid.uuid4().hex
        self.log = config.parent / f"start-{number:03d}.log"
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(world), "-m"]
        command = [sys.executable, "-m", *(torchrun if world > 1 else ()), "tests.faults.ledger", str(config)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", MARK: self.token, START: str(number), FOLDER: str(config.parent)}
        self.before = metrics_of(folder)
        self.at = time.time()
        with self.log.open("wb") as log:
            self.launcher = subprocess.Popen(
                [*command, f"expect_world={world}"], cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True
            )

    def strike(self, aim: Aim) -> End:
        """Wait for the moment and kill everything; End with a code if the run ended before."""
        if aim.where == "stop":
            return self._stop(aim)
        code = self._until(aim)
        self.kill()
        return End(code, self._saving())

    def finish(self) -> End:
        """Let it run to its end."""
        while self.launcher.poll() is None and time.time() < self.at + PATIENCE:
            time.sleep(0.02)
        code = self.launcher.poll()
        self.kill()
        return End(code, self._saving())

    def kill(self) -> None:
        """SIGKILL to every process of this start; returns when none is left."""
        while pids := list(self._marked()):
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self.launcher.poll()
            time.sleep(0.002)
        self.launcher.wait()

    def recorded(self) -> list[int]:
        """Steps that this start wrote records of."""
        return [int(record["step"]) for record in metrics_of(self.folder)[len(self.before) :]]

    def tail(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-1500:]

    def _stop(self, aim: Aim) -> End:
        """SIGTERM to the launcher, as a scheduler sends it; the run saves and leaves by itself."""
        code = self._until(aim._replace(where="step"))
        if code is not None:
            return End(code, "")
        self.launcher.send_signal(signal.SIGTERM)
        self.finish()
        return End(None, self._saving())

    def _until(self, aim: Aim) -> int | None:
        """None at the moment aimed at, the exit code if the start ended before; TimeoutError if nothing comes."""
        wait = aim.share * aim.scale
        while (code := self.launcher.poll()) is None:
            if aim.where == "start":
                if time.time() >= self.at + wait:
                    return None
            elif aim.where == "step":
                if aim.step in self.recorded():
                    time.sleep(wait)
                    return None
            elif (self.root / checkpoint.name_of(aim.step)).exists():
                return None  # it was quicker than the watcher
            elif partial := self._partial(aim.step):
                if aim.where == "bytes":
                    self._until_bytes(partial, int(wait))
                else:
                    time.sleep(wait)
                return None
            if time.time() > self.at + PATIENCE:
                self.kill()
                raise TimeoutError(f"nothing came of {aim} in {PATIENCE:.0f} s:\n{self.tail()}")
            time.sleep(POLL if aim.where in ("bytes", "moment") else 0.01)
        return code

    def _until_bytes(self, partial: Path, wanted: int) -> None:
        """Until the partial checkpoint has so many bytes, or is gone."""
        while partial.exists() and size_of(partial) < wanted:
            time.sleep(POLL / 5)

    def _partial(self, step: int | None = None) -> Path | None:
        """A partial checkpoint that this start is writing or was; those of earlier starts are older."""
        pattern = f".{checkpoint.name_of(step)}.tmp" if step is not None else ".step-*.tmp"
        for path in self.root.glob(pattern):
            try:
                if path.stat().st_mtime > self.at:
                    return path
            except FileNotFoundError:  # renamed a moment ago
                continue
        return None

    def _saving(self) -> str:
        if partial := self._partial():
            return f"{partial.name} with {size_of(partial)} bytes"
        whole = checkpoint.listed(self.root)
        if len(whole) > KEEP and whole[-1].stat().st_mtime > self.at:
            return f"{whole[-1].name} renamed, {whole[0].name} not gone yet"
        return ""

    def _marked(self) -> Iterator[int]:
        """Processes with this start's mark: torchrun puts each rank into a session of its own."""
        mark = f"{MARK}={self.token}".encode()
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in path.read_bytes():
                    yield int(path.parent.name)
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue


def metrics_of(folder: Path) -> list[dict[str, object]]:
    """Every record of a run's metrics.jsonl, repeated steps too."""
    return [record for record in read_lines(folder / "metrics.jsonl") if "step" in record]


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder, 0 once it is gone; it may be renamed while this looks."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(where, name)).st_size
    return total
