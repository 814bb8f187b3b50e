"""Disks and checkpoints: the fault, what the user sees, and what stands on the disk afterwards."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.shards import make_shards
from tests.test_trainer import losses, make
from vlp import checkpoint, dist
from vlp.duration import Span
from vlp.lock import Lock
from vlp.log import JsonLines, read_lines, read_steps
from vlp.trainer import Evaluator

ROWS = {48, *range(56, 62), 63, 64, 65}  # of docs/faults.md
Change = Callable[[Path], object]  # of a run's folder


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, urls: str) -> Path:
    """A finished run with checkpoints of steps 4, 8 and 10."""
    out = tmp_path_factory.mktemp("source")
    make(out, urls).train()
    return out


@pytest.fixture
def out(source: Path, tmp_path: Path) -> Path:
    shutil.copytree(source, tmp_path / "out")
    return tmp_path / "out"


def steps(out: Path) -> list[int]:
    return [checkpoint.step_of(path) for path in checkpoint.listed(out / "t" / "checkpoints")]


def at(step: int, name: str) -> Callable[[Path], Path]:
    return lambda run: run / "checkpoints" / checkpoint.name_of(step) / name


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def tear(path: Path) -> None:
    """As a kill in the middle of a line does."""
    path.write_bytes(path.read_bytes().rstrip(b"\n")[:-7])


def damaged(step: int, name: str, how: Callable[[Path], object]) -> Change:
    return lambda run: how(at(step, name)(run))


# ------------------------------------------------------------------------------------------ what is on the disk


class Damage(NamedTuple):
    """What is done to a finished run, words that are then seen when it is started again, the step it goes on from."""

    change: Change
    seen: str
    start: int


def both(*changes: Change) -> Change:
    return lambda run: [change(run) for change in changes]


WEIGHTS, OPTIMIZER = "model/open_clip_model.safetensors", "optimizer.safetensors"
DAMAGE = {
    "a bit of the weights": Damage(damaged(10, WEIGHTS, flip), f"step-00000010: {WEIGHTS} does not have the hash", 8),
    "a bit of the optimizer": Damage(damaged(10, OPTIMIZER, flip), f"{OPTIMIZER} does not have the hash", 8),
    "a bit of the state": Damage(damaged(10, "state.json", flip), "state.json does not have the hash", 8),
    "a bit of the configuration": Damage(damaged(10, "config.yaml", flip), "config.yaml does not have the hash", 8),
    "a file is cut": Damage(damaged(10, WEIGHTS, tear), f"{WEIGHTS} has ", 8),
    "a file is gone": Damage(damaged(10, OPTIMIZER, Path.unlink), f"{OPTIMIZER} is missing", 8),
    "the manifest is gone": Damage(damaged(10, "manifest.json", Path.unlink), "no manifest.json", 8),
    "the manifest is torn": Damage(damaged(10, "manifest.json", tear), "manifest.json is not readable", 8),
    "a file is a folder": Damage(
        both(damaged(10, "manifest.json", Path.unlink), damaged(10, "manifest.json", Path.mkdir)),
        "it cannot be read",
        8,
    ),
    "two checkpoints": Damage(
        both(damaged(10, WEIGHTS, flip), damaged(8, "state.json", flip)), "step-00000008: state.json does not", 4
    ),
    "evaluated.json is torn": Damage(
        lambda run: (run / "evaluated.json").write_text('{"0": 1'), "evaluated.json is not JSON", 10
    ),
    "a save was killed": Damage(
        lambda run: (run / "checkpoints" / ".step-00000012.tmp" / "model").mkdir(parents=True), "is finished", 10
    ),
    "the lock of a dead process": Damage(
        lambda run: hold(run, pid=gone(), started="1"), "is finished", 10
    ),
    "the lock of a number that another program got": Damage(
        lambda run: hold(run, pid=os.getppid(), started="1"), "is finished", 10
    ),
    "the lock is torn": Damage(lambda run: (run / "lock.json").write_text('{"pid": 1'), "is finished", 10),
}  # fmt: skip


def hold(run: Path, **words: Any) -> None:
    (run / "lock.json").write_text(json.dumps({"host": socket.gethostname(), **words}))


def gone() -> int:
    """A number that no process has any more."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


@pytest.mark.parametrize("name", DAMAGE)
def test_it_goes_on_from_the_newest_whole_one(name: str, source: Path, out: Path, urls: str, capfd: Any) -> None:
    case = DAMAGE[name]
    case.change(out / "t")
    progress = make(out, urls, "save.keep=1").train()
    seen = capfd.readouterr().err
    assert case.seen in seen
    assert ("is finished (10 of 10 steps)" if case.start == 10 else f"resumed at step {case.start}") in seen
    assert progress.step == 10
    assert losses(out) == losses(source)
    assert checkpoint.newest(out / "t" / "checkpoints").rejected == []
    assert steps(out) == ([10] if case.start < 10 else [4, 8, 10])  # retention comes with a save
    assert not (out / "t" / "lock.json").exists()


def test_damaged_later_ones_do_not_push_out_what_is_saved(out: Path, urls: str) -> None:
    for step in (8, 10):
        flip(at(step, WEIGHTS)(out / "t"))
    with pytest.raises(KeyboardInterrupt):
        make(out, urls, "save.every=1steps", "save.keep=1", evaluators=[stop_after(6)]).train()
    assert steps(out) == [6, 8, 10]
    assert make(out, urls, "save.keep=1").found.path == out / "t" / "checkpoints" / "step-00000006"


def stop_after(step: int) -> Evaluator:
    def measure(dual: Any, done: int) -> dict[str, float]:
        if done == step:
            raise KeyboardInterrupt
        return {}

    return Evaluator(Span(1, "steps"), measure)


def test_without_a_whole_one_it_does_not_start_anew(out: Path, urls: str) -> None:
    for step in (4, 8, 10):
        flip(at(step, WEIGHTS)(out / "t"))
    with pytest.raises(checkpoint.CheckpointError, match=r"no checkpoint .* is whole:\n.*step-00000010: model.*hash"):
        make(out, urls)
    assert steps(out) == [4, 8, 10]


# ------------------------------------------------------------------------------------------ what may not start


class Refused(NamedTuple):
    """What is done to a finished run or to its settings, and the error of the next start."""

    change: Change
    overrides: tuple[str, ...]
    seen: str


def instead(path: str) -> Change:
    """A file where the run has a folder: what a folder that cannot be written to is, also for root."""

    def change(run: Path) -> None:
        shutil.rmtree(run / path)
        (run / path).write_bytes(b"")

    return change


def nothing(run: Path) -> None:
    pass


REFUSED = {
    "another seed, batch and rate": Refused(
        nothing,
        ("seed=1", "data.batch_size=16", "data.streams=8", "optim.lr=2e-3"),
        r"data\.batch_size: 8 in the checkpoint, 16 now\n(.*\n)*.*optim\.lr: 0\.001 in.*\n(.*\n)*.*seed: 0 in",
    ),
    "another model": Refused(
        nothing, ("model.init_bias=-1.0",), r"model\.init_bias: None in the checkpoint, -1\.0 now"
    ),
    "a file for the run's folder": Refused(instead(""), (), r"cannot write into .*t: .*choose another out="),
    "a file for the checkpoints": Refused(
        instead("checkpoints"), (), r"cannot write into .*checkpoints: .*another out="
    ),
    "another host": Refused(
        lambda run: hold(run, pid=5, host="node-7"), (), r"in use by process 5 on node-7 \(remove .*lock\.json if that"
    ),
    "a live process": Refused(lambda run: hold(run, pid=os.getppid()), (), f"in use by process {os.getppid()};"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_not_start(name: str, out: Path, urls: str) -> None:
    case = REFUSED[name]
    case.change(out / "t")
    before = sorted(path for path in out.rglob("*"))
    with pytest.raises(checkpoint.CheckpointError, match=case.seen):
        make(out, urls, *case.overrides).train()
    assert sorted(path for path in out.rglob("*")) == before  # nothing was touched


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into a read-only folder")
def test_a_read_only_folder_is_seen_before_training(tmp_path: Path, urls: str) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(checkpoint.CheckpointError, match=r"cannot write into .*Permission denied.*another out="):
        make(tmp_path, urls)


def take(rank: int, world: int, folder: Path) -> str:
    """Run by `spawn`: who gets the lock when all ask for it at the same moment; it is held until the process ends."""
    dist.barrier()
    try:
        lock = Lock(folder)
    except checkpoint.CheckpointError as error:
        words = str(error)
    else:
        words = f"{os.getpid()} has {lock.path}"
    dist.barrier()
    return words


def test_of_starts_at_the_same_moment_one_is_let_in(tmp_path: Path, spawn: Any) -> None:
    hold(tmp_path, pid=gone())  # stale: all of them want to take it over
    words = spawn(take, 4, tmp_path)
    assert sum(" has " in word for word in words) == 1, words
    assert sum("in use by process" in word for word in words) == 3, words
    holder = json.loads((tmp_path / "lock.json").read_text())["pid"]
    assert f"{holder} has {tmp_path / 'lock.json'}" in words
    lock = Lock(tmp_path)  # whatever ends a process ends its lock
    assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()
    lock.release()


# ------------------------------------------------------------------------------------------ a full disk


@contextmanager
def full(limit: int = 1 << 14) -> Iterator[None]:
    """A disk that takes files of 16 KiB: what a full one says when a write is cut."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def while_full(trainer: Any, *saves: int) -> None:
    """The disk is full at these saves of the run."""
    save = trainer.state.save

    def one(progress: Any) -> None:
        if progress.step in saves:
            with full():
                save(progress)
        else:
            save(progress)

    trainer.state.save = one


NO_ROOM = r"could not save \S*step-\d+: .*; it needs \d+ bytes \(.* MiB\), \d+ bytes \(.* MiB\) are free"


def test_a_full_disk_stops_the_run_and_the_last_checkpoint_stays(tmp_path: Path, source: Path, urls: str) -> None:
    trainer = make(tmp_path, urls, "save.keep=1")
    while_full(trainer, 8)
    with pytest.raises(checkpoint.NoRoomError, match=NO_ROOM):
        trainer.train()
    assert [path.name for path in (tmp_path / "t" / "checkpoints").iterdir()] == ["step-00000004"]
    assert make(tmp_path, urls, "save.keep=1").train().step == 10  # room was made
    assert losses(tmp_path) == losses(source)


def test_a_full_disk_can_be_waited_out(tmp_path: Path, source: Path, urls: str, capfd: Any) -> None:
    trainer = make(tmp_path, urls, "save.keep=1", "save.every=2steps", "save.on_full=go_on", "log.every=1steps")
    while_full(trainer, 4, 6)
    trainer.train()
    seen = capfd.readouterr().err
    assert "step 4 is not saved, training goes on (save.on_full): could not save" in seen
    assert [record["unsaved"] for record in read_steps(tmp_path / "t" / "metrics.jsonl")][3:8] == [0, 1, 1, 2, 2]
    assert steps(tmp_path) == [10]
    assert losses(tmp_path) == losses(source)


def test_the_last_save_is_not_waited_out(tmp_path: Path, urls: str) -> None:
    trainer = make(tmp_path, urls, "save.on_full=go_on")
    while_full(trainer, 10)
    with pytest.raises(checkpoint.NoRoomError, match=NO_ROOM):
        trainer.train()
    assert steps(tmp_path) == [4, 8]


def test_too_little_room_is_seen_before_training(tmp_path: Path, urls: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make(tmp_path, urls)
    need = trainer.state.bytes_needed
    monkeypatch.setattr(checkpoint, "free", lambda path: need - 1)
    with pytest.raises(checkpoint.NoRoomError, match=rf"checkpoints: the disk is too full; it needs {need} bytes"):
        trainer.train()
    assert not (tmp_path / "t" / "metrics.jsonl").exists()


def test_what_a_checkpoint_needs_is_known_before(source: Path, urls: str) -> None:
    trainer = make(source, urls)
    folder = at(10, "")(source / "t")
    took = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert took <= trainer.state.bytes_needed <= took + (2 << 20)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_small_disk_that_fills_up(tmp_path: Path, urls: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("no mounts here")
    try:
        trainer = make(disk, urls, "save.keep=0", "save.every=1steps")
        with pytest.raises(checkpoint.NoRoomError, match=NO_ROOM.replace(": .*;", ": the disk is too full;")):
            trainer.train()
        assert checkpoint.newest(disk / "t" / "checkpoints").rejected == []
        done = steps(disk)
        assert len(done) == int((100 << 20) // trainer.state.bytes_needed)
        shutil.rmtree(at(done[0], "")(disk / "t"))
        assert make(disk, urls, "save.keep=1", "save.every=9steps").train().step == 10
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


# ------------------------------------------------------------------------------------------ files of lines


def test_lines_wait_in_memory_while_the_disk_is_full(tmp_path: Path, capfd: Any) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)
    lines.write({"step": -1, "note": "x" * ((1 << 14) - 130)})
    with full():
        for step in range(8):
            lines.write({"step": step, "loss": 0.25})  # 26 bytes each: the fifth is cut
    assert [record["step"] for record in read_lines(path)] == [-1, 0, 1, 2, 3]
    lines.write({"step": 8})
    assert [record["step"] for record in read_lines(path)] == list(range(-1, 9))
    with full():
        lines.write({"step": 9})
        lines.close()
    seen = capfd.readouterr().err
    assert f"{path}: File too large; " in seen
    assert "they wait in memory" in seen
    assert "12 bytes are not written, they are lost" in seen


@pytest.mark.parametrize("name", ["metrics.jsonl", "skips.jsonl"])
def test_a_torn_last_line_is_made_up_for(name: str, tmp_path: Path, source: Path) -> None:
    urls = make_shards(tmp_path / "data", broken={3: {"jpg": b"no"}, 20: {"jpg": b"no"}})
    limits = ("data.max_bad_fraction=0.2",)
    make(tmp_path / "a", urls, *limits).train()
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "b", urls, *limits, evaluators=[stop_after(7)]).train()
    tear(tmp_path / "b" / "t" / name)
    progress = make(tmp_path / "b", urls, *limits).train()
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    keys = {
        run: {(line["key"], line["epoch"]) for line in read_lines(tmp_path / run / "t" / "skips.jsonl")} for run in "ab"
    }
    assert keys["a"] == keys["b"]
    assert sum(progress.skips.values()) == len(keys["a"])


# ------------------------------------------------------------------------------------------ resumed in other ways


def test_a_number_of_processes_that_does_not_divide_the_streams_is_refused(urls: str) -> None:
    from vlp.data import Data
    from vlp.data.plan import Plan

    data = Data(batch_size=8, streams=4, sources=[{"name": "shards", "urls": urls}])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"3 processes cannot share 4 streams.*run on 1, 2, 4 processes"):
        Plan(data, seed=0, rank=0, world=3)


def test_a_save_never_cuts_an_accumulation(tmp_path: Path, urls: str) -> None:
    odd = ("micro_batch=3", "save.every=3steps")
    make(tmp_path / "a", urls, *odd).train()
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "b", urls, *odd, evaluators=[stop_after(5)]).train()
    make(tmp_path / "b", urls, *odd).train()
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
