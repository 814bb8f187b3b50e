"""`vlp train --profile`: what it counts, what it writes, and that it leaves everything as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.shards import make_shards
from tests.test_trainer import settings
from vlp import config, profiling
from vlp.profiling import Clock, Place, clocks, profile_run
from vlp.run import Run
from vlp.types import Batch


def test_a_stage_within_another_is_not_counted_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("vlp.profiling.time.perf_counter", lambda: now[0])

    def spend(seconds: float) -> None:
        now[0] += seconds

    clock = Clock()
    inner = clock.clocked("inner", spend)

    def both() -> None:
        spend(1.0)
        inner(10.0)

    spend(7.0)
    clock.start()
    spend(100.0)
    clock.clocked("outer", both)()
    assert clock.stop() == {"other": 100.0, "outer": 1.0, "inner": 10.0}


def test_clocks_are_taken_off_after_a_failure() -> None:
    class Owner:
        def work(self) -> None:
            raise OSError("broken")

    one = Owner()
    before = Owner.work
    places = [Place(Owner, "work", "class"), Place(one, "work", "instance")]

    def fail() -> None:
        with clocks(Clock(), places):
            assert Owner.work is not before
            one.work()

    with pytest.raises(OSError, match="broken"):
        fail()
    assert Owner.work is before
    assert not vars(one)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    values = settings(tmp_path / "out", make_shards(tmp_path / "shards"), name="t")
    return config.validate(Run, values, where="test")


def test_a_profile_has_every_stage_and_touches_nothing_else(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "STEPS", 2)
    monkeypatch.setattr(profiling, "COLD", 1)
    before = Batch.to
    folder = profile_run(run)
    assert Batch.to is before
    assert sorted(path.name for path in folder.iterdir()) == ["profile.md", "trace.json"]
    assert [path.name for path in run.folder.iterdir()] == ["profile"]
    text = (folder / "profile.md").read_text()
    rows = {cells[1].strip(): float(cells[2]) for line in text.splitlines() if len(cells := line.split("|")) == 5
            and cells[2].strip()[:1].isdigit()}  # fmt: skip
    step = {"data wait", "image tower", "text tower", "loss", "backward", "clip", "optimizer", "rest of forward"}
    made = {"read shards", "decode", "crop and resize", "tokenise", "collate"}
    assert step | made <= rows.keys()
    assert all(rows[stage] > 0 for stage in (step | made) - {"collate"})
    said = float(text.split(" ms a step")[0].split()[-1])
    assert sum(rows[stage] for stage in rows.keys() & profiling.ADVICE.keys()) == pytest.approx(said, rel=0.1)
    traced = {event.get("name") for event in json.loads((folder / "trace.json").read_text())["traceEvents"]}
    assert {"vlp: image tower", "vlp: backward", "vlp: optimizer"} <= traced
