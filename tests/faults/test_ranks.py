"""A worker, a rank or a number goes wrong: every rank ends in time and says which one it was, or goes on as before."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.conftest import random_batch
from tests.faults.ranks import Ended, run_ranks, run_some
from tests.shards import make_shards
from tests.test_runs import processes_of
from tests.test_trainer import ROOT, final_weights, losses, make, run_file
from vlp import checkpoint, ranks, verdict
from vlp.config import ConfigError
from vlp.data import Data, shared_memory
from vlp.data.plan import Plan
from vlp.data.schema import DataError
from vlp.duration import parse
from vlp.log import read_lines, read_steps
from vlp.spikes import ScaleLimit, Spikes, Step
from vlp.trainer import Evaluator, Trainer
from vlp.types import Batch, Features, Skip

ROWS = {*range(35, 40), *range(43, 48), 49, 50, 52, 53, 54}  # of docs/faults.md
KEY = "00001.tar:000020"  # what the faults of reading and of features wait for


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_shards(tmp_path_factory.mktemp("shards"))


def train(rank: int, world: int, out: Path, urls: str, overrides: tuple[str, ...], fault: str) -> None:
    """One rank of a run with a fault put in."""
    overrides = (*overrides, *ONE_RANK_ONLY[fault]) if fault in ONE_RANK_ONLY and rank == 1 else overrides
    if fault == "other version" and rank == 1:
        ranks.code_facts = lambda: {"torch": "2.0.0", "sources of vlp": "abc"}  # type: ignore[assignment]
        import vlp.trainer

        vlp.trainer.code_facts = ranks.code_facts  # type: ignore[attr-defined]
    at_step = Evaluator(parse("2steps"), lambda dual, done: AT_STEP_2.get(fault, _nothing)(rank, out))
    trainer = make(out, urls, *overrides, evaluators=[at_step])
    IN_THE_RUN.get(fault, _nothing)(trainer, out)
    trainer.train()


def _nothing(*_: Any) -> dict[str, float]:
    return {}


def _mark(out: Path) -> None:
    """When the fault came."""
    (out / "fault").write_text(str(time.time()))


# -- faults of reading, in whichever worker comes to the sample first --------------------------------------------------


def _reading(trainer: Trainer, out: Path, fault: Callable[[], None]) -> None:
    records, main = trainer.feed.plan.records[0], os.getpid()
    read = records.read

    def faulty(i: int, only: Any = None) -> Any:
        if os.getpid() != main and ":".join(records.name(i)) == KEY:
            _mark(out)
            fault()
        return read(i, only)

    records.read = faulty  # type: ignore[method-assign]


def _worker_killed(trainer: Trainer, out: Path) -> None:
    _reading(trainer, out, lambda: os.kill(os.getpid(), signal.SIGKILL))


def _worker_hangs(trainer: Trainer, out: Path) -> None:
    _reading(trainer, out, lambda: time.sleep(200))


def _data_error(trainer: Trainer, out: Path) -> None:
    def fail() -> None:
        raise OSError("[Errno 116] Stale file handle")

    _reading(trainer, out, fail)


# -- faults of one rank, after its second step -------------------------------------------------------------------------


def _killed(rank: int, out: Path) -> dict[str, float]:
    if rank == 1:
        _mark(out)
        os.kill(os.getpid(), signal.SIGKILL)
    return {}


def _evaluation_fails(rank: int, out: Path) -> dict[str, float]:
    """Rank 0 waits meanwhile where no error and no signal reaches it, as in a collective of NCCL."""
    if rank == 0:
        time.sleep(200)
    _mark(out)
    raise ValueError("a benchmark without pictures")


def _first_killed(rank: int, out: Path) -> dict[str, float]:
    """Without a launcher rank 0 keeps the store where the ranks met."""
    if rank == 0:
        _mark(out)
        os.kill(os.getpid(), signal.SIGKILL)
    return {}


def _told(rank: int, out: Path) -> dict[str, float]:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGUSR1)
    return {}


def _told_in_save(trainer: Trainer, out: Path) -> None:
    save = trainer.state.save

    def told(progress: Any) -> Path:
        if progress.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return save(progress)

    trainer.state.save = told  # type: ignore[method-assign]


# -- faults of numbers -------------------------------------------------------------------------------------------------


def _poison(trainer: Trainer, value: float) -> None:
    """Image features of one sample are `value`, on the rank that has it."""

    def hook(module: Any, given: tuple[Batch], features: Features) -> Features:
        if KEY not in given[0].keys:
            return features
        factor = torch.ones(len(given[0]), 1)
        factor[given[0].keys.index(KEY)] = value
        return features._replace(image=features.image * factor)

    trainer.dual.register_forward_hook(hook)


def _nan(trainer: Trainer, out: Path) -> None:
    _poison(trainer, float("nan"))


ONE_RANK_ONLY = {"other settings": ("optim.lr=2e-3",)}
AT_STEP_2 = {
    "rank killed": _killed,
    "first rank killed": _first_killed,
    "evaluation fails": _evaluation_fails,
    "told": _told,
}
IN_THE_RUN = {
    "worker killed": _worker_killed,
    "worker hangs": _worker_hangs,
    "data error": _data_error,
    "told in save": _told_in_save,
    "nan": _nan,
}


@dataclass(frozen=True)
class Row:
    """A fault, and what must be seen: what one rank says, and what all the others do."""

    name: str
    one: str
    others: str
    overrides: tuple[str, ...] = ()
    codes: tuple[int, ...] = (1,)
    within: float = 30.0  # seconds from the fault to the end of the last rank


WORKER = ("data.workers=1",)
SAMPLE = rf"reading {re.escape(KEY)} of \S+, for step \d+"
FAILED = r"^RankError: rank (\d) failed, so rank \d ends too: "
POISONED = rf"{re.escape(KEY)} \(image not finite\)"
FAULTS = (
    Row(
        "worker killed",
        rf"^LoaderError: loader, batch of step \d.*worker 0 \(process \d+\) died, {SAMPLE}.*(killed by|exited unexp)",
        rf"{FAILED}LoaderError: .*{SAMPLE}",
        WORKER,
    ),
    Row(
        "worker hangs",
        rf"^LoaderError: .*worker 0 \(process \d+\) hangs, {SAMPLE}, since [45]\..* s\..*timed out after 5",
        rf"{FAILED}LoaderError: .*{SAMPLE}",
        (*WORKER, "data.timeout=5", "data.prefetch=1"),
        within=25.0,
    ),
    Row("data error", r"^OSError: (.|\n)*Stale file handle", rf"{FAILED}OSError: ", WORKER),
    Row(
        "evaluation fails",
        r"^ValueError: a benchmark without pictures",
        r"^rank 1 failed, so rank 0 ends too: ValueError: a benchmark without pictures",
    ),
    Row(
        "rank killed",
        r"",
        r"^RankError: rank 1 of 2 is gone without a word.*killed.*goes on from its last checkpoint",
        codes=(1, -9),
    ),
    Row(
        "first rank killed",
        r"",
        r"^RankError: rank (0 of 2 is gone without a word|1 ends, since the process that keeps the rendezvous)",
        codes=(1, -9),
    ),
    Row(
        "other settings",
        r"^ValueError: the settings differ.*\n +optim.lr: 0.001 on rank 0, 0.002 on rank 1\nStart every rank",
        r"^ValueError: the settings differ.*\n +optim.lr: 0.001 on rank 0, 0.002 on rank 1\nStart every rank",
    ),
    Row(
        "other version",
        r"^ValueError: the versions differ(.|\n)*torch: \S+ on rank 0, 2.0.0 on rank 1",
        r"^ValueError: the versions differ(.|\n)*torch: \S+ on rank 0, 2.0.0 on rank 1",
    ),
    Row(
        "nan",
        rf"^NonFiniteError: step \d+: not finite .*: {POISONED}; update left out, 1 in a row",
        rf"^NonFiniteError: step \d+: not finite .*: {POISONED}; update left out, 1 in a row",
        ("max_nonfinite=0",),
    ),
)


def check(row: Row, ended: list[Ended], out: Path) -> None:
    """All ranks ended in time, one of them with its own error, the others with its cause."""
    said = "\n---\n".join(rank.said for rank in ended)
    assert {rank.code for rank in ended} == set(row.codes), said
    began = float((out / "fault").read_text()) if (out / "fault").is_file() else min(rank.at for rank in ended)
    assert max(rank.at for rank in ended) - began < row.within
    failed = [n for n, rank in enumerate(ended) if rank.code < 0 or (re.search(row.one, rank.said, re.M) and row.one)]
    assert failed, said
    for number, rank in enumerate(ended):
        assert number in failed[:1] or re.search(row.others, rank.said, re.M), said


@pytest.mark.slow
@pytest.mark.parametrize("row", FAULTS, ids=[row.name for row in FAULTS])
def test_every_rank_ends_in_time_and_names_the_cause(tmp_path: Path, urls: str, row: Row) -> None:
    check(row, run_ranks(train, 2, tmp_path, urls, row.overrides, row.name), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "saved"), [("told", 3), ("told in save", 5)])
def test_a_signal_to_one_rank_saves_and_ends_all_with_code_75(
    tmp_path: Path, urls: str, fault: str, saved: int
) -> None:
    """In an evaluation and in a save: the step after it is the last."""
    ended = run_ranks(train, 2, tmp_path, urls, WORKER, fault)
    assert [rank.code for rank in ended] == [75, 75], ended
    assert re.search(r"told to leave by (another rank|SIGTERM): saved step \d; requeue me", ended[0].said)
    done = checkpoint.newest(tmp_path / "t" / "checkpoints").path
    assert done is not None
    assert checkpoint.step_of(done) == saved == len(losses(tmp_path))


@pytest.mark.slow
def test_nan_on_one_rank_is_left_out_by_both_and_the_run_goes_on(tmp_path: Path, urls: str) -> None:
    ended = run_ranks(train, 2, tmp_path, urls, ("duration=1epochs",), "nan")
    assert [rank.code for rank in ended] == [0, 0], ended
    assert ended[0].said.count(f"{KEY} (image not finite); update left out") == 1, "once an epoch"
    last = read_steps(tmp_path / "t" / "metrics.jsonl")[-1]
    assert (last["step"], last["left_out"]) == (6, {"not_finite": 1, "overflow": 0, "no_pair": 0})
    assert all(bool(value.isfinite().all()) for value in final_weights(tmp_path).values())


@pytest.mark.slow
def test_ranks_with_unequal_data_end_at_the_same_step(tmp_path: Path) -> None:
    """41 samples of 44 places, the first shard without a usable one."""
    broken = {i: {"jpg": b"no"} for i in range(13)}
    uneven = make_shards(tmp_path / "data", samples=41, broken=broken)
    ended = run_ranks(train, 2, tmp_path, uneven, ("duration=2epochs", "data.max_bad_fraction=1"), "")
    assert [rank.code for rank in ended] == [0, 0], ended
    assert len(losses(tmp_path)) == 11
    assert read_steps(tmp_path / "t" / "metrics.jsonl")[-1]["skipped"] == 26


@pytest.mark.parametrize(("taken", "words"), [(True, r"holds this port.*--standalone"), (False, "not every rank came")])
def test_ranks_that_cannot_meet_say_what_to_do(tmp_path: Path, urls: str, taken: bool, words: str) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1] if taken else 0
        overrides = ("collective_timeout=1",)
        (alone,) = run_some(train, range(1), 2, tmp_path, urls, overrides, "", port=port)
    assert alone.code == 1
    assert re.search(
        rf"^RuntimeError: rank 0 of 2 could not meet the others at 127.0.0.1:\d+: .*{words}", alone.said, re.M
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the ranks through /proc")
def test_a_rank_killed_under_torchrun_ends_the_others_with_the_cause(tmp_path: Path, urls: str) -> None:
    path = run_file(tmp_path, urls, duration="400steps", save={"every": "2steps", "keep": 2})
    head = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    child = subprocess.Popen(
        [*head, str(path)], cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        deadline = time.monotonic() + 120
        while len(losses(tmp_path)) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        (second,) = (
            pid for pid in processes_of(child.pid) if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()
        )
        os.kill(second, signal.SIGKILL)
        killed = time.monotonic()
        _, stderr = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 1
    assert time.monotonic() - killed < 30
    assert re.search(r"rank 1 of 2 is gone without a word, so rank 0 ends too", stderr), stderr[-3000:]


# -- in one process ----------------------------------------------------------------------------------------------------


def test_shared_memory_that_is_too_small_is_refused_before_a_worker_dies_of_it(
    tmp_path: Path, urls: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "SHM", tmp_path)
    free = SimpleNamespace(f_bavail=10, f_frsize=4096)
    known = os.statvfs
    monkeypatch.setattr(os, "statvfs", lambda path: free if path == tmp_path else known(path))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    trainer = make(tmp_path, urls, "data.workers=2", "data.prefetch=3")
    held = trainer.feed.batch(0)
    tensors = (held.image, held.text, held.token_mask, held.caption_mask, held.valid, held.label, held.source)
    assert trainer.feed.batch_bytes >= sum(x.numel() * x.element_size() for x in (*tensors, *held.extra.values()))
    with pytest.raises(
        DataError, match=r"4 rank\(s\) x data.workers=2 x data.prefetch=3 .* has 0.0 MiB free; lower .*--shm-size"
    ):
        trainer.train()
    free.f_bavail = 1 << 20
    trainer.feed.batches(0, 2).close()


def test_batches_without_a_contrast_or_smaller_than_the_world_are_refused(urls: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 2 pairs a batch"):
        make(tmp_path, urls, "data.batch_size=1", "data.streams=1")
    data = Data.model_validate({"sources": [{"name": "shards", "urls": urls}], "batch_size": 4})
    with pytest.raises(DataError, match="8 processes cannot share 4 streams.*run on 1, 2, 4 processes"):
        Plan(data, seed=0, rank=0, world=8)


def test_a_loss_spike_is_written_with_the_samples_before_it(tmp_path: Path, urls: str) -> None:
    """The pictures of one step are noise of another scale: what the loss does is what shuffled labels do to it."""
    settings = ("duration=16steps", "spike.window=8", "spike.factor=4", "spike.keep=3", "save.every=100%")
    make(tmp_path / "plain", urls, *settings).train()
    trainer = make(tmp_path / "spiked", urls, *settings)

    def shuffled(module: Any, given: tuple[Batch], features: Features) -> Features:
        calls.append(given[0].keys)
        if len(calls) != 12:
            return features
        return features._replace(text=-features.image[:, None])

    calls: list[tuple[str, ...]] = []
    trainer.dual.register_forward_hook(shuffled)
    trainer.train()
    (line,) = read_lines(tmp_path / "spiked" / "t" / "spikes.jsonl")
    assert line["step"] == 12
    assert line["above"]["loss"]["value"] > line["above"]["loss"]["limit"] > line["above"]["loss"]["median"]
    assert [batch["step"] for batch in line["batches"]] == [10, 11, 12]
    assert [tuple(batch["keys"][0]) for batch in line["batches"]] == calls[9:12]
    assert line["batches"][-1]["loss"] == pytest.approx(losses(tmp_path / "spiked")[11])
    assert losses(tmp_path / "spiked")[:11] == losses(tmp_path / "plain")[:11]
    assert not (tmp_path / "plain" / "t" / "spikes.jsonl").exists()


def test_a_spike_is_judged_by_the_median_and_said_once_while_its_steps_are_kept() -> None:
    spikes = Spikes(window=20, factor=5, keep=4)
    found = [spikes.add(Step(n, 1 + 0.01 * (n % 3), 2.0, (str(n),))) for n in range(30)]
    assert found == [None] * 30
    jumps = [spikes.add(Step(30 + n, 3.0, 2.0, ())) for n in range(5)]
    assert [jump is not None for jump in jumps] == [True, False, False, False, True]
    assert jumps[0] is not None
    assert list(jumps[0].above) == ["loss"]
    assert jumps[0].above["loss"][1] == pytest.approx(1.01)
    assert [step.step for step in jumps[0].last] == [27, 28, 29, 30]
    assert spikes.add(Step(40, 1.0, float("nan"), ())) is None
    assert spikes.add(Step(41, float("inf"), 2.0, ())) is not None


def test_a_scale_that_runs_away_is_held_and_logged(tmp_path: Path, urls: str) -> None:
    trainer = make(tmp_path, urls, "duration=4steps")
    with torch.no_grad():
        trainer.dual.logit_scale.fill_(20.0)
    trainer.train()
    records = read_steps(tmp_path / "t" / "metrics.jsonl")
    assert records[0]["scale"] == pytest.approx(100, rel=1e-5)
    assert all(record["scale"] < 100.01 for record in records)
    assert records[0]["scale_clamped"] == 1


def test_a_scale_at_its_limit_for_long_is_said_once() -> None:
    limit = ScaleLimit()
    said = []
    for _ in range(30):
        for _ in range(10):
            limit.note(torch.tensor([5.0]))
        said.append(limit.read())
    assert [number for number, text in enumerate(said) if text] == [9]
    assert "held at its limit of 100 for the last 100 updates" in said[9]
    limit.note(torch.tensor([4.0]))
    assert not limit.read()
    assert limit.count == 300


def test_a_zero_row_and_a_column_that_is_not_finite_are_named(make_batch: Any, make_features: Any) -> None:
    batch = make_batch(4, valid=[True, True, True, False]).plus(
        {
            "teacher": torch.tensor([[1.0], [1.0], [torch.inf], [torch.nan]]),
            "score": torch.tensor([torch.nan, 1.0, 1.0, 1.0]),  # a column without a dimension of its own
        }
    )
    features = make_features(4)
    image = features.image.detach().clone()
    image[1] = 0
    assert verdict.culprits(features._replace(image=image), batch) == [
        "made-up.tar:0000 (column score not finite)",
        "made-up.tar:0001 (image of norm 0)",
        "made-up.tar:0002 (column teacher not finite)",
    ]


def test_overflows_in_a_row_end_the_run_and_others_do_not() -> None:
    """fp16 on a CPU has no gradient scaler, so its counting is asked by itself."""
    left_out = verdict.LeftOut(limit=3)
    for step in range(4 * 30):
        left_out.made(step, overflow=step % 30 != 0)
    with pytest.raises(verdict.NonFiniteError, match="31 fp16 overflows in a row; use precision=bf16"):
        _overflow(left_out)
    assert left_out.counts["overflow"] == 4 * 29 + 2  # 29 of the last 31 were the end of the loop before


def _pairs_of(rank: int, world: int) -> tuple[list[bool], str]:
    skip = Skip("not_image", "scenes", "0.tar", f"k{rank}")
    batch = replace(random_batch(2, valid=[False, False]), skips=(skip, skip))
    loss, norm = torch.zeros(()), torch.zeros(())
    seen = [torch.tensor(slots) & (rank == 1) for slots in ([False, False], [True, False])]
    found = [verdict.agree(loss, norm, valid=valid, scaled=False, stop=False).empty for valid in seen]
    return found, verdict.without_pair(batch, step=3, sources=["scenes"])


def test_a_step_is_empty_where_no_rank_has_a_pair(spawn: Callable[..., list[Any]]) -> None:
    text = (
        "step 3: none of its 4 slots has a pair, on any rank: scenes (not_image 4); the first is 0.tar:k0; "
        "no loss is logged, and the update is left out"
    )
    assert spawn(_pairs_of, 2) == [([True, False], text)] * 2


def _overflow(left_out: verdict.LeftOut) -> None:
    for step in range(verdict.MAX_OVERFLOWS + 1):
        left_out.made(step, overflow=True)


def test_tokenizers_start_no_threads_that_a_fork_would_lose(
    tmp_path: Path, urls: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    make(tmp_path, urls)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    make(tmp_path, urls)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
