"""Files that survive a kill, and numbers that survive JSON."""

from __future__ import annotations

import json
from pathlib import Path

from vlp.log import JsonLines, Meter, SkipLedger, read_lines, read_steps
from vlp.types import Skip


def test_a_torn_line_is_passed_over_and_not_glued_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    lines = JsonLines(path)
    lines.write({"step": 1, "loss": 2.0})
    lines.close()
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    lines = JsonLines(path)
    lines.write({"step": 2, "loss": float("nan"), "terms": {"a": float("inf")}})
    lines.write({"step": 1, "loss": 3.0})
    lines.close()
    assert [record["step"] for record in read_lines(path)] == [1, 2, 1]
    steps = read_steps(path)
    assert steps[0]["loss"] == 3.0
    assert steps[1] == {"step": 2, "loss": "nan", "terms": {"a": "inf"}}


def test_skips_are_counted_by_reason_and_written_one_by_one(tmp_path: Path) -> None:
    ledger = SkipLedger(tmp_path / "skips.jsonl")
    ledger.add([Skip("not_image", "a", "0.tar", "k1"), Skip("not_image", "a", "0.tar", "k2")], step=3, samples=10)
    ledger.add([Skip("empty_caption", "a", "1.tar", "k3", "blank")], step=4, samples=10)
    ledger.close()
    assert (ledger.total, ledger.seen) == (3, 20)
    assert ledger.summary() == "not_image 2, empty_caption 1"
    written = [json.loads(line) for line in (tmp_path / "skips.jsonl").read_text().splitlines()]
    assert written[2] == {
        "step": 4, "reason": "empty_caption", "source": "a", "shard": "1.tar", "key": "k3", "detail": "blank",
        "epoch": -1, "position": -1,
    }  # fmt: skip


def test_meter_laps() -> None:
    meter = Meter()
    with meter.time("a"):
        pass
    wall, stages = meter.lap()
    assert wall >= stages["a"] >= 0
    assert meter.lap()[1] == {}
    assert "a" in meter.seconds


def test_numbers_that_are_not_finite_are_words_also_in_lists(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "spikes.jsonl")
    lines.write({"step": 1, "batches": [{"loss": float("nan"), "keys": [["a"]]}, {"loss": float("inf")}]})
    lines.close()
    (line,) = read_lines(tmp_path / "spikes.jsonl")
    assert [batch["loss"] for batch in line["batches"]] == ["nan", "inf"]
