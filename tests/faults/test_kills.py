"""Training that is killed loses nothing; `runs/kills.sh` is the same at length."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import numpy as np
import pytest

from tests.faults.dry import cover
from tests.faults.ledger import Books, audit
from tests.faults.strike import Aim, metrics_of
from tests.faults.trial import INTERVAL, Paces, Past, Trial, Verdict, draw_aim, make_data
from vlp.log import JsonLines

ROWS = {55, 62}  # of docs/faults.md


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="finds the processes of a start through /proc")
def test_two_processes_killed_three_times_equal_the_straight_run(tmp_path: Path) -> None:
    """Once in the midst of a save, once in a step far from one, once between the launch and the first step."""
    shards = make_data(tmp_path, steps=8)
    straight = Trial(tmp_path / "straight", shards, worlds=[2])
    paces = straight.straight()
    torn = Trial(tmp_path / "torn", shards, worlds=[2])
    torn.go(Aim("bytes", INTERVAL, 0.3, paces.size))
    torn.go(Aim("step", INTERVAL + 2, 0.5, paces.step))
    torn.go(Aim("start", share=0.9, scale=paces.start))
    torn.go()
    verdict = torn.beside(straight)
    assert not verdict.faults
    assert verdict.kills == 3
    assert verdict.saving >= 1
    assert [start.resumed for start in torn.past[:3]] == [0, 0, INTERVAL]
    assert verdict.records > len(metrics_of(straight.folder)), "steps were repeated, and compared as well"


def test_the_books_show_what_was_lost_and_what_came_twice(tmp_path: Path) -> None:
    whole = [["a", "b"], ["c", "d"], ["e", ""]]
    write_books(tmp_path / "straight", [(step, 0, 1, keys) for step, keys in enumerate(whole)])
    kept = [(0, 0, 2, ["a", "b"]), (1, 0, 2, ["c", "d"]), (1, 1, 1, ["c", "d"]), (2, 1, 1, ["e", ""])]
    assert books(tmp_path / "kept", kept, tmp_path / "straight") == Books(4, 5, [], [], [])
    lost = [(0, 0, 1, ["a", "b"]), (1, 0, 1, ["c", "d"]), (1, 1, 1, ["a", "d"]), (2, 1, 1, ["e", ""])]
    found = books(tmp_path / "lost", lost, tmp_path / "straight")
    assert found == Books(4, 5, ["step 1 of start 1"], ["c"], ["a"])


def write_books(folder: Path, batches: list[tuple[int, int, int, list[str]]]) -> None:
    """Global batches (step, start, world, keys) as the ranks write them."""
    for step, start, world, keys in batches:
        share = len(keys) // world
        for rank in range(world):
            part = {"step": step, "start": start, "rank": rank, "world": world, "keys": keys[rank * share :][:share]}
            with contextlib.closing(JsonLines(folder / f"keys.{rank}.jsonl")) as lines:
                lines.write(part)


def books(folder: Path, batches: list[tuple[int, int, int, list[str]]], straight: Path) -> Books:
    write_books(folder, batches)
    return audit(folder, straight, keys=set("abcde"))


def test_what_a_verdict_finds_at_fault() -> None:
    past = [Past(2, 0, 5, "killed"), Past(2, 3, 12, "done")]
    good = Verdict(past, 14, [], 0.0, [], Books(14, 9, [], [], []), [], True)
    assert (good.faults, good.repeated, good.kills, good.ends, good.saving) == ([], 2, 1, 1, 0)
    assert good._replace(past=[past[0]._replace(reached=8), past[1]]).faults == [
        "5 steps repeated, but a save comes every 3"
    ]
    assert good._replace(past=[past[0]._replace(failed="no")], unequal=["step 1: loss"]).faults == [
        "start 0: no", "step 1: loss",
    ]  # fmt: skip
    elastic = good._replace(exact=False, files=["model"], unequal=["step 1: loss"], apart=9e-6)
    assert elastic.faults == []
    assert elastic._replace(apart=float("nan")).faults == ["a loss differs by nan"]


def test_moments_lie_ahead_and_leave_room_for_those_to_come() -> None:
    lot, paces = random.Random(0), Paces(8.0, 0.1, 0.2, 1000)
    for save in (True, False):
        resumed, last = 0, 60
        for left in range(20, 0, -1):
            aim = draw_aim(lot, resumed=resumed, last=last, left=left, save=save, paces=paces)
            assert aim.where == "start" or resumed < aim.step <= last - (not save)
            resumed = max(resumed, aim.step // INTERVAL * INTERVAL - INTERVAL * save)
        assert resumed < last


def test_a_million_keys_once_each_over_five_resumes() -> None:
    found = cover(1_000_003, resumes=5, seed=1)
    assert np.array_equal(np.flatnonzero(found.counts != 1), [])
    assert (found.empty, len(set(found.worlds)), found.repeated > 0) == (61, 4, True)
