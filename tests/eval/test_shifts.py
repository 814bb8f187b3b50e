"""Effective robustness over results: models on a line by construction, one above it, tables, what is left out."""

from __future__ import annotations

import csv
import io
import math

import pytest
from typer.testing import CliRunner

from eval.__main__ import app
from eval.leaderboard import read_board
from eval.shifts import Shift, as_text, parse_shift, robustness
from tests.eval.test_leaderboard import row

ON_LINE = {"vit-a": 0.55, "vit-b": 0.65, "vit-c": 0.72, "vit-d": 0.8}


def line(accuracy):
    return 1 / (1 + math.exp(-(0.9 * math.log(accuracy / (1 - accuracy)) - 0.5)))


@pytest.fixture
def results(tmp_path):
    lines = [row(model, "in", {"acc1": x}) for model, x in ON_LINE.items()]
    lines += [row(model, "v2", {"acc1": line(x)}) for model, x in ON_LINE.items()]
    lines += [row("clip", "in", {"acc1": 0.6}), row("clip", "v2", {"acc1": line(0.6) + 0.1})]
    lines += [row("half", "in", {"acc1": 0.5}), row("other", "sketch_1", {"acc1": 0.5})]
    lines += [row(model, "sketch_1", {"acc1": x - 0.3}) for model, x in [*ON_LINE.items(), ("clip", 0.9)]]
    (tmp_path / "results.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_the_line_is_found_and_what_lies_above_it(results):
    (effect,) = robustness(read_board([results]), Shift("in", ("v2",)), ["vit-*"], n_boot=50)
    assert effect.found.line.slope == pytest.approx(0.9)
    assert effect.found.line.intercept == pytest.approx(-0.5)
    values = dict(zip(effect.models, effect.found.values.tolist(), strict=True))
    assert values == pytest.approx({**dict.fromkeys(ON_LINE, 0.0), "clip": 0.1}, abs=1e-9)
    assert effect.baseline == [model for model in effect.models if model.startswith("vit")]
    assert effect.left_out == ["half"]
    assert effect.found.intervals[effect.models.index("clip")] == pytest.approx((0.1, 0.1))
    said, left = effect.notes()
    assert "in acc1 -> v2 acc1: logit(y) = 0.9 logit(x) -0.5 over 4 models" in said
    assert "on one of the two only: half" in left


def test_tables_of_several_shifts(results):
    board = read_board([results])
    found = robustness(board, parse_shift("in:v2, sketch_1"), ["vit-a", "vit-b", "vit-d"], n_boot=50)
    text = as_text(board, found, "md")
    lines = text.splitlines()
    assert lines[0].startswith(
        "| model | in acc1 | v2 acc1 | v2 acc1, by the line | v2 acc1, above it | sketch_1 acc1 "
    )
    assert lines[2].startswith(f"| clip | 60.0 | {100 * line(0.6) + 10:.1f} | {100 * line(0.6):.1f} | +10.0 (+10.0 to ")
    assert any(one.startswith("| vit-a (baseline) | 55.0 |") for one in lines)
    assert any(one.startswith("| vit-c | 72.0 |") for one in lines)
    assert not any(one.startswith("| half") for one in lines)
    rows = list(csv.DictReader(io.StringIO(as_text(board, found, "csv"))))
    clip = next(one for one in rows if one["model"] == "clip")
    assert float(clip["v2 acc1, above it"]) == pytest.approx(0.1)
    assert float(clip["sketch_1 acc1, above it, low"]) <= float(clip["sketch_1 acc1, above it"])
    assert "sketch\\_1 acc1, above it" in as_text(board, found, "latex", intervals=False)


def test_the_command_prints_table_and_line(results):
    words = ["table", str(results), "--shift", "in:v2", "--baseline", "vit-a", "--baseline", "vit-[bcd]"]
    found = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "| clip | 60.0 |" in found.output
    assert "logit(y) = 0.9 logit(x)" in found.output
    with pytest.raises(ValueError, match="--baseline: models of the line"):
        CliRunner().invoke(app, ["table", str(results), "--baseline", "clip"], catch_exceptions=False)


def test_what_is_missing_says_so(results):
    board = read_board([results])
    with pytest.raises(ValueError, match='--shift "in": give ORIGINAL:SHIFTED'):
        parse_shift("in")
    with pytest.raises(ValueError, match='no result on "v22"; did you mean "v2"'):
        robustness(board, Shift("in", ("v22",)), ["clip"])
    with pytest.raises(ValueError, match='--baseline "vit-x" names no model of these results; did you mean "vit-'):
        robustness(board, Shift("in", ("v2",)), ["vit-x"])
    with pytest.raises(ValueError, match=r"name the baseline with --baseline \(models: clip, "):
        robustness(board, Shift("in", ("v2",)), [])
    with pytest.raises(ValueError, match="in acc1 -> v2 acc1: a line needs a baseline of models with at least 2"):
        robustness(board, Shift("in", ("v2",)), ["clip", "half"])
    more = row("clip", "text", {"image_retrieval_recall@5": 0.5}, "zeroshot_retrieval")
    (results / "results.jsonl").write_text((results / "results.jsonl").read_text() + more + "\n")
    with pytest.raises(ValueError, match="in was measured by zeroshot_classification acc1, text by zeroshot_retrieval"):
        robustness(read_board([results]), Shift("in", ("text",)), ["vit-*"])
