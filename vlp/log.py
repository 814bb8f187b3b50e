"""What a run says: metrics.jsonl always, a progress bar on a terminal and plain lines elsewhere, trackers if asked."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from vlp.room import is_full
from vlp.types import Skip

console = Console(stderr=True)


class Tracker(Protocol):
    """What Accelerate's trackers offer; `log` takes flat numbers."""

    def log(self, values: Mapping[str, float], *, step: int) -> None: ...


class JsonLines:
    """An append-only file of one JSON object a line, each line flushed whole; a torn last line is ended, not lost.

    What a full disk refuses stays in memory and is written before the next line; the console says so once.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._waiting, self._told = path, b"", False
        self._file = path.open("a+b", buffering=0)
        size = self._file.seek(0, os.SEEK_END)
        if size and os.pread(self._file.fileno(), 1, size - 1) != b"\n":
            self._waiting = b"\n"

    def write(self, record: Mapping[str, Any]) -> None:
        line = json.dumps({key: _plain(value) for key, value in record.items()}, ensure_ascii=False, allow_nan=False)
        self._waiting += line.encode("utf-8", "backslashreplace") + b"\n"  # a key may be no UTF-8
        self._drain("they wait in memory for room")

    def close(self) -> None:
        if self._waiting.strip():
            self._told = False
            self._drain("they are lost")
        self._file.close()

    def _drain(self, fate: str) -> None:
        """Write what waits, as far as there is room: a full disk may take a part of it."""
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            if not is_full(error):
                raise
            if not self._told:
                text = f"{self._path}: {error.strerror}; {len(self._waiting)} bytes are not written, {fate}"
                console.print(text, highlight=False, soft_wrap=True)
            self._told = True


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSON-lines file; lines torn by a kill are passed over."""
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record


def read_steps(path: Path) -> list[dict[str, Any]]:
    """Records by step, in order; after a resume the later record of a step stands for the earlier."""
    by_step = {int(record["step"]): record for record in read_lines(path) if "step" in record}
    return [by_step[step] for step in sorted(by_step)]


class SkipLedger:
    """Counts skipped samples by reason and writes one line each to skips.jsonl (main process of each rank's file)."""

    def __init__(self, path: Path | None) -> None:
        self.counts: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()  # what was done to samples that stayed, in this process's part of the run
        self.seen = 0
        self._lines = JsonLines(path) if path else None

    def add(self, skips: Iterable[Skip], *, step: int, samples: int) -> None:
        self.seen += samples
        for skip in skips:
            self.counts[skip.reason] += 1
            if self._lines:
                self._lines.write({"step": step, **skip._asdict()})

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def summary(self) -> str:
        return ", ".join(f"{reason} {count}" for reason, count in self.counts.most_common()) or "none"

    def close(self) -> None:
        if self._lines:
            self._lines.close()


class Meter:
    """Wall seconds by stage, and the share of them between two reports."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._since: defaultdict[str, float] = defaultdict(float)
        self._mark = time.perf_counter()

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[stage] += spent
            self._since[stage] += spent

    def lap(self) -> tuple[float, dict[str, float]]:
        """Seconds since the last lap, and seconds by stage in it."""
        now = time.perf_counter()
        wall, stages = now - self._mark, dict(self._since)
        self._mark, self._since = now, defaultdict(float)
        return wall, stages


class Reporter:
    """Progress to people and numbers to files; silent on ranks other than the first."""

    def __init__(self, folder: Path, *, total: int, start: int, main: bool, trackers: Iterable[Tracker] = ()) -> None:
        self._main = main
        self._total = total
        self._began, self._start = time.perf_counter(), start
        self._trackers = list(trackers) if main else []
        self._lines = JsonLines(folder / "metrics.jsonl") if main else None
        self._bar = _bar() if main and console.is_terminal else None
        self._task: TaskID | None = None
        if self._bar:
            self._task = self._bar.add_task("train", total=total, completed=start, note="")
            self._bar.start()

    def step(self, record: dict[str, Any]) -> None:
        """Write one record and show its headline."""
        if not self._main:
            return
        assert self._lines is not None
        self._lines.write(record)
        flat = {key: value for key, value in flatten(record) if isinstance(value, int | float)}
        for tracker in self._trackers:
            tracker.log(flat, step=int(record["step"]))
        note = self._headline(record)
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=record["step"], note=note)
        else:
            console.print(f"step {record['step']}/{self._total}  {note}", highlight=False, soft_wrap=True)

    def amend(self, record: Mapping[str, Any]) -> None:
        """Write a record of the last step again, with what came to be known after it."""
        if self._lines:
            self._lines.write(record)

    def say(self, text: str) -> None:
        """One line for people, above the bar."""
        if self._main:
            (self._bar.console if self._bar else console).print(text, highlight=False, markup=False, soft_wrap=True)

    def _headline(self, record: Mapping[str, Any]) -> str:
        done = int(record["step"]) - self._start
        left = (time.perf_counter() - self._began) / max(1, done) * (self._total - int(record["step"]))
        loss = f"loss {record['loss']:.4f}" if "loss" in record else "no pair, no loss"
        return (
            f"{loss}  {record['samples_per_s']:.0f} samples/s  "
            f"data wait {100 * record['data_wait']:.0f}%  lr {record['lr']:.2e}  scale {record['scale']:.1f}  "
            f"ETA {_clock(left)}"
        )

    def close(self) -> None:
        if self._bar:
            self._bar.stop()
        if self._lines:
            self._lines.close()


def flatten(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaf values of nested mappings under names joined by "/"."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def host_facts() -> dict[str, Any]:
    """Versions, cores and threads of this process: provenance without the name of the machine."""
    import importlib.metadata as metadata
    import platform

    import torch

    packages = (
        "torch",
        "torchvision",
        "open_clip_torch",
        "transformers",
        "webdataset",
        "accelerate",
        "datasets",
        "simplejpeg",
        "vlp",
    )
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": versions,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": _commit(),
    }


def _commit() -> str:
    """The commit of the source tree this code runs from, with "+" if it has changes; "unknown" outside git."""
    import subprocess

    here = Path(__file__).resolve().parent
    try:
        run = lambda *words: subprocess.run(  # noqa: E731
            ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        return run("rev-parse", "HEAD") + ("+" if run("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _bar() -> Progress:
    note = TextColumn("{task.fields[note]}")
    what = TextColumn("{task.description}")
    return Progress(what, BarColumn(bar_width=24), MofNCompleteColumn(), note, TimeRemainingColumn(), console=console)


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _plain(value: Any) -> Any:
    """Numbers that JSON knows: a value that is not finite becomes its name, so that no line is unreadable."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
