"""Tables of results, two models side by side, words of the command line, and going on with a suite."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from eval.__main__ import app
from eval.differences import differences
from eval.hits import hits_file
from eval.leaderboard import as_text, read_board
from eval.suite import Suite, run_suite
from eval.tuning_board import read_boards
from eval.words import own_names, sort_words
from tests.eval.colours import colour_shard
from vlp.embed import Encoder
from vlp.models.model import Model


def row(model, dataset, metrics, task="zeroshot_classification", **more):
    made = {"dataset": dataset, "model": model, "pretrained": "", "task": task, "metrics": metrics, "n": 10}
    return json.dumps(
        {
            **made,
            "data_hash": "d",
            "weights_hash": "w",
            "test_label_reads": 1,
            "seconds": 1.0,
            "code_version": "c",
            **more,
        }
    )


@pytest.fixture
def results(tmp_path):
    lines = [
        row("a", "x", {"acc1": 0.1, "acc5": 0.9}),
        row("a", "x", {"acc1": 0.5, "acc5": 0.8}, ci95={"acc1": (0.4, 0.6)}),  # the last one counts
        row("a", "y", {"image_retrieval_recall@5": 0.25}, "zeroshot_retrieval"),
        row("b", "x", {"acc1": 0.75, "acc5": 0.7}, contains_chance={"acc1": True}),
        row("b", "y", {"image_retrieval_recall@5": 0.75}, "zeroshot_retrieval"),
        row("c_1", "x", {"acc1": 0.2, "acc5": 0.3}),
        row("a", "y", {"image_retrieval_recall@5": 0.5}, "zeroshot_retrieval", head="tokens"),
    ]
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "results.jsonl").write_text("\n".join(lines[:3]) + "\n")
    (tmp_path / "results.jsonl").write_text("\n".join(lines[3:]) + "\n")
    return tmp_path


def test_a_board_by_hand(results):
    board = read_board([results])
    assert [column.title for column in board.columns] == [
        "x acc1", "y image_retrieval_recall@5", "y by tokens image_retrieval_recall@5",
    ]  # fmt: skip
    x, _, tokens = board.columns
    assert board.value("a", x) == 0.5
    assert board.value("b", tokens) is None
    assert board.alike == {}  # an accuracy and recalls of two heads: no mean of them says anything
    assert board.models == ["b", "a", "c_1"]
    text = as_text(board, "md")
    assert "| a | 50.0 (40.0 to 60.0) | 25.0 | **50.0** |" in text
    assert "**75.0**\\*" in text
    assert as_text(board, "csv").splitlines()[2] == "a,0.5,0.25,0.5"
    latex = as_text(board, "latex", intervals=False)
    assert "c\\_1 & 20.0 & - & -" in latex
    assert latex.count("\\midrule") == 1
    assert latex.count(" \\\\") == 4


def test_means_are_of_one_measure(tmp_path):
    lines = [
        row("a", "x", {"acc1": 0.5}),
        row("a", "z", {"acc1": 0.25}),
        row("a", "y", {"image_retrieval_recall@5": 0.75}, "zeroshot_retrieval"),
        row("b", "x", {"acc1": 0.75}),
    ]
    (tmp_path / "results.jsonl").write_text("\n".join(lines) + "\n")
    board = read_board([tmp_path])
    ((title, columns),) = board.alike.items()
    assert (title, [column.dataset for column in columns]) == ("mean acc1", ["x", "z"])
    assert board.average("a", columns) == pytest.approx(0.375)
    assert board.average("b", columns) is None  # a mean over fewer columns would not be comparable
    assert board.models == ["a", "b"]
    assert "| model | x acc1 | z acc1 | y image_retrieval_recall@5 | mean acc1 |" in as_text(board, "md")
    assert as_text(board, "csv").splitlines()[2] == "b,0.75,-,-,-"


def test_a_mean_is_over_the_data_sets_that_are_shown(tmp_path):
    found = {"x-test": 0.5, "z-test": 0.25, "x-validation": 0.9}
    (tmp_path / "results.jsonl").write_text("\n".join(row("a", name, {"acc1": acc1}) for name, acc1 in found.items()))
    args = ["table", str(tmp_path), "--format", "csv"]
    whole = CliRunner().invoke(app, args, catch_exceptions=False)
    assert whole.output.splitlines() == [
        "model,x-test acc1,z-test acc1,x-validation acc1,mean acc1",
        "a,0.5,0.25,0.9,0.55",
    ]
    tests = CliRunner().invoke(app, [*args, "--dataset", "*-test"], catch_exceptions=False)
    assert tests.output.splitlines() == ["model,x-test acc1,z-test acc1,mean acc1", "a,0.5,0.25,0.375"]
    with pytest.raises(ValueError, match='--dataset "x-tst" names no data set of these results; did you mean "x-test"'):
        read_board([tmp_path], datasets=["x-tst"])


def test_results_of_tune_are_left_out_and_counted(results, capsys):
    (results / "tuned").mkdir()
    tuned = results / "tuned" / "results.jsonl"
    tuned.write_text('{"method": "gda", "dataset": "x"}\n')
    assert len(read_board([results]).columns) == 3
    assert "left out: 1 results files of `vlp tune`" in capsys.readouterr().err
    with pytest.raises(ValueError, match="these are results of `vlp tune`: `vlp tune table .*` shows them"):
        read_board([tuned])
    with pytest.raises(ValueError, match="these are results of `vlp eval`"):
        read_boards([results / "one"])
    tuned.write_text("no JSON\n")
    with pytest.raises(ValueError, match=r"results.jsonl:1: not a result record"):
        read_board([results])


def test_another_metric_and_what_is_not_there(results):
    board = read_board([results / "one" / "results.jsonl", results / "results.jsonl"], metric="acc5")
    assert [column.metric for column in board.columns] == ["acc5"]
    with pytest.raises(ValueError, match='no record has the metric "ac5"; did you mean "acc5"'):
        read_board([results], metric="ac5")
    (results / "empty").mkdir()
    with pytest.raises(ValueError, match="no results.jsonl there or below"):
        read_board([results / "empty"])
    found = CliRunner().invoke(app, ["table", str(results), "--format", "csv"], catch_exceptions=False)
    assert found.output.startswith("model,x acc1")


def test_a_model_that_is_not_as_its_weights_were_trained_is_told_of(tmp_path):
    said = "x.pt: was trained with QuickGELU, but this architecture uses GELU"
    rows = [row("a", name, {"acc1": 0.5}, warnings=[said]) for name in ("x", "y")]
    (tmp_path / "results.jsonl").write_text("\n".join([*rows, row("b", "x", {"acc1": 0.5})]) + "\n")
    found = CliRunner().invoke(app, ["table", str(tmp_path)], catch_exceptions=False)
    assert found.stderr == f"a: {said}\n"
    assert said not in found.stdout


def test_words_by_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = sort_words(["runs/a", "ViT-B-32", "s.yaml", "data=x/y.yaml", "t.yml"])
    assert asked.models == ["runs/a", "ViT-B-32"]
    assert [str(path) for path in asked.suites] == ["s.yaml", "t.yml"]
    assert asked.overrides == ["data=x/y.yaml"]
    with pytest.raises(ValueError, match="no model"):
        sort_words(["s.yaml"])
    with pytest.raises(ValueError, match="no suite was given for a"):
        sort_words(["a", "x=1"])
    for folder in ("p/one", "q/one", "q/two"):
        (tmp_path / folder).mkdir(parents=True)
    assert own_names(["p/one", "q/one", "q/two", "RN50/x"]) == ["p_one", "q_one", "two", "RN50_x"]


def test_two_models_side_by_side(tmp_path):
    n = 40
    keys, items = [f"s:{i}" for i in range(n)], ["cat", "dog", "owl", "ant"] * (n // 4)
    right = {"a": [True, True, False, False] * (n // 4), "b": [True, False, True, True] * (n // 4)}
    for name, hits in right.items():
        folder = tmp_path / name / "eval" / "d"
        folder.mkdir(parents=True)
        for file, content in hits_file("zeroshot", keys, items, {"acc1": hits}).items():
            (folder / file).write_text(json.dumps(content))
        (tmp_path / name / "results.jsonl").write_text(row(name, "d", {"acc1": 0.5}, artefacts="eval/d") + "\n")
    (found,) = differences(tmp_path / "a", tmp_path / "b", n_boot=200)
    assert (found.first.mean, found.second.mean, found.second.difference) == (0.5, 0.75, 0.25)
    assert [(c.name, c.support, c.first, c.second) for c in found.classes] == [
        ("owl", 10, 0.0, 1.0),
        ("ant", 10, 0.0, 1.0),
        ("dog", 10, 1.0, 0.0),
    ]
    told = CliRunner().invoke(app, ["compare", str(tmp_path / "a"), str(tmp_path / "b")], catch_exceptions=False)
    assert "| d | acc1 | 50.0 | 75.0 | +25.0" in told.output
    (tmp_path / "b" / "results.jsonl").write_text(row("b", "e", {"acc1": 0.5}, artefacts="eval/e") + "\n")
    with pytest.raises(ValueError, match="no data set in common"):
        list(differences(tmp_path / "a", tmp_path / "b"))


def test_a_suite_goes_on_with_what_is_not_measured(tmp_path, capsys):
    for name in ("one", "two"):
        colour_shard(tmp_path / f"{name}.tar", per_colour=2)
    names = tmp_path / "names.txt"
    names.write_text("red\ngreen\nblue\nyellow\nwhite\n")
    parts = [
        {
            "name": "retrieval",
            "dataset": name,
            "data": str(tmp_path / f"{name}.tar"),
            "captions": {"fields": ["captions"]},
        }
        for name in ("one", "two")
    ]
    torch.manual_seed(0)
    encoder = Encoder(Model(arch="vlp-nano").build().eval(), quiet=True)

    def measure(*parts, **more):
        before = len(lines())
        found = run_suite(encoder, Suite(name="s", benchmarks=parts), out=tmp_path / "out", **{"again": False, **more})
        return found, len(lines()) - before

    def lines():
        file = tmp_path / "out" / "results.jsonl"
        return file.read_text().splitlines() if file.is_file() else []

    first, made = measure(parts[0])
    assert made == 1
    both, made = measure(*parts)
    assert made == 1
    assert both[0] == first[0]
    assert "one: measured before" in capsys.readouterr().err
    assert measure(*parts)[1] == 0
    assert measure(*parts, again=True)[1] == 2
    assert measure({**parts[0], "k": [1, 2]}, parts[1])[1] == 1  # another setting
    colour_shard(tmp_path / "two.tar", per_colour=3)
    assert measure(*parts)[1] == 1  # other data
    with torch.no_grad():
        encoder.dual.logit_scale += 0.5
    assert measure(*parts)[1] == 2  # other weights
