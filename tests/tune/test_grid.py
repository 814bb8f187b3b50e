"""Grids that go on where they were left, and the tables of what they found."""

from __future__ import annotations

import csv
import json
from statistics import fmean, stdev

import numpy as np
import pytest
from typer.testing import CliRunner

from eval.tuning import load_tuning
from eval.tuning_board import read_boards
from eval.tuning_table import as_text
from tests.tune.doubles import SEEN, arrays, folder, methods, write
from vlp.config import ConfigError
from vlp.tune.record import read
from vlp.tune_cli import app

__all__ = ["folder", "methods"]

FILE = """
name: g
sets: [{dataset: one, features: features}]
methods: [zeroshot, means, {name: means, weight: 0.0, protocol: paper}, breaks, pool]
shots: [1, 4, all]
seeds: [1, 2]
"""


def call(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def grid(tmp_path, text=FILE, *words, code=1):
    (tmp_path / "g.yaml").write_text(text)
    return call("grid", tmp_path / "g.yaml", "--out", tmp_path / "out", *words, code=code)


def test_a_set_that_cannot_be_read_leaves_the_others_and_is_told(folder, methods, tmp_path):
    sets = "sets: [{dataset: gone, features: nowhere}, {dataset: one, features: features}]"
    text = f"name: g\n{sets}\nmethods: [zeroshot, means]\nshots: [1]\nseeds: [1]\n"
    said = grid(tmp_path, text).stderr
    assert "2 trials measured, 0 were there already" in said
    assert "gone was not measured: " in said
    assert "nowhere" in said
    out = tmp_path / "out"
    assert [row.dataset for row in read(out / "results.jsonl")] == ["one", "one"]
    assert "nowhere" in json.loads((out / "refused.json").read_text())["gone"]
    table = call("table", out)
    assert f"{out / 'refused.json'}: gone was not measured: " in table.stderr
    assert "gone" not in table.stdout
    grid(tmp_path, text.replace("{dataset: gone, features: nowhere}, ", ""), code=0)
    assert not (out / "refused.json").exists()


def test_a_set_that_nothing_can_be_drawn_from_leaves_the_others(folder, methods, tmp_path):
    write(tmp_path / "few", {name: part for name, part in arrays().items() if name in ("test", "classes")})
    sets = "sets: [{dataset: few, features: few}, {dataset: one, features: features}]"
    said = grid(tmp_path, f"name: g\n{sets}\nmethods: [means]\nshots: [4]\nseeds: [1]\n").stderr
    assert "few was not measured: ValueError: few: shots are drawn from `train`, and there is none" in said
    assert [row.dataset for row in read(tmp_path / "out" / "results.jsonl")] == ["one"]


def test_a_grid_measures_every_cell_once_and_goes_on(folder, methods, tmp_path):
    said = grid(tmp_path)
    assert "6 of 21 trials failed" in said.stderr
    records = list(read(tmp_path / "out" / "results.jsonl"))
    assert len(records) == 1 + 3 * 6 + 2  # zero-shot once, and what takes no labels once a seed
    assert {(row.labelled, row.shots) for row in records if row.method == "pool"} == {("none", None)}
    assert "one zeroshot no labels seed 1: acc1" in said.stderr
    assert "one means 1 shot seed 2: acc1" in said.stderr
    assert "one means all labels seed 2: acc1" in said.stderr
    broken = [row for row in records if row.error]
    assert {row.error for row in broken} == {"ValueError: it broke"}
    assert {row.method for row in broken} == {"breaks"}
    assert {row.labelled for row in records} == {"none", "1", "4", "all"}
    assert {row.shots for row in records} == {None, 1, 4}
    draws = json.loads((tmp_path / "out" / "draws" / "one.json").read_text())["draws"]
    assert {(one["shots"], one["seed"]) for one in draws} == {(1, 1), (1, 2), (4, 1), (4, 2)}
    SEEN.clear()
    assert "6 trials measured, 15 were there already" in grid(tmp_path).stderr
    assert not SEEN  # only what broke is tried again
    assert len(list(read(tmp_path / "out" / "results.jsonl"))) == 21 + 6
    grid(tmp_path, FILE.replace("breaks, ", "").replace("weight: 0.0", "weight: 0.5"), code=0)
    assert len(SEEN) == 6


def test_other_folders_take_the_place_of_its_sets(folder, methods, tmp_path):
    other = write(tmp_path / "other", arrays(seed=9))
    text = FILE.replace("breaks, ", "").replace("features: features", "features: nowhere")
    grid(tmp_path, text, "--features", folder, "--features", other, code=0)
    assert {row.dataset for row in read(tmp_path / "out" / "results.jsonl")} == {"features", "other"}
    with pytest.raises(ValueError, match="no `methods` to go through"):
        grid(tmp_path, "name: g\nsets: [{dataset: one, features: features}]\n")


def test_a_file_takes_the_sets_of_another_all_or_some(folder, methods, tmp_path):
    write(tmp_path / "else" / "other", arrays(seed=9))
    (tmp_path / "whole.yaml").write_text(
        "name: w\ndata: else\nsets: [{dataset: two, features: other}, {dataset: one, features: ../features}]\n"
    )
    text = "name: g\nsets_of: whole.yaml\nmethods: [zeroshot]\n"
    (tmp_path / "g.yaml").write_text(text)
    whole, taken = load_tuning(tmp_path / "whole.yaml"), load_tuning(tmp_path / "g.yaml")
    assert (taken.sets, taken.data, taken.sets_of) == (whole.sets, "else", None)
    assert load_tuning(tmp_path / "g.yaml", ["data=mine"]).data == "mine"
    assert load_tuning(tmp_path / "whole.yaml", ["only=[one]"]).sets == whole.sets[1:]
    grid(tmp_path, text + "only: [one]\n", code=0)
    assert {row.dataset for row in read(tmp_path / "out" / "results.jsonl")} == {"one"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sets_of: g.yaml", "sets_of: g.yaml has no sets itself"),
        ("sets_of: whol.yaml", 'no configuration file .*whol.yaml.*did you mean "whole.yaml"'),
        ("sets_of: ../whole.yaml", r"(?s)sets_of: .*\.\./whole.yaml"),
        ("sets_of: whole.yaml\nonly: [one, tow]", r'only\.1: there is no set "tow"; did you mean "two"'),
        ("methods: [zeroshot]", "give either `sets`, or `sets_of`"),
        ("sets_of: whole.yaml\nsets: [{dataset: x, features: x}]", "give either `sets`, or `sets_of`"),
    ],
)
def test_sets_that_are_not_there_are_named(text, message, tmp_path):
    (tmp_path / "whole.yaml").write_text("name: w\nsets: [{dataset: one, features: x}, {dataset: two, features: y}]\n")
    (tmp_path / "g.yaml").write_text(f"name: g\n{text}\n")
    with pytest.raises(ConfigError, match=message):
        load_tuning(tmp_path / "g.yaml")


def test_the_table_is_of_means_beside_zero_shot(folder, methods, tmp_path):
    grid(tmp_path)
    rows = list(read(tmp_path / "out" / "results.jsonl"))
    text = call("table", tmp_path / "out").stdout
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == "| method | no labels | 1 shot | 4 shots | all labels |"
    assert lines[2].startswith("| zeroshot | ")
    values = [row.metrics["acc1"] for row in rows if row.method == "means" and not row.leaky and row.shots == 4]
    line = next(line for line in lines if line.startswith("| means |"))
    assert f"{100 * fmean(values):.1f} ± {100 * stdev(values):.1f}" in line
    leaky = next(line for line in lines if "†" in line)
    assert leaky.startswith("| means (weight=0.0, protocol=paper)† |")
    assert "**" not in leaky
    assert "| failed | failed | failed |" in text
    assert "† leaky: chose by test labels" in text
    assert "less zero-shot on the same pictures" in text


def test_differences_are_paired_by_picture(folder, methods, tmp_path):
    grid(tmp_path)
    (board,) = read_boards([tmp_path / "out"])
    column = next(column for column in board.columns if column.labelled == "4")
    found = board.difference("means", column)
    zero, few = board.zero_shot("acc1").mean, board.cells["means", column].mean
    assert found.value == pytest.approx(few - zero)
    assert found.interval.low <= found.value <= found.interval.high
    same = board.difference("pool", board.columns[0])  # the same classifier as zero-shot
    assert (same.value, *same.interval, same.verdict) == (0.0, 0.0, 0.0, "no difference shown")
    assert board.difference("zeroshot", column) is None


def test_csv_has_a_line_a_number_and_latex_is_escaped(folder, methods, tmp_path):
    grid(tmp_path)
    lines = list(csv.DictReader(call("table", tmp_path / "out", "--format", "csv").stdout.splitlines()))
    one = next(line for line in lines if line["method"] == "means" and line["labelled"] == "all")
    assert (one["metric"], one["seeds"], one["at_chance"], one["leaky"]) == ("acc1", "2", "0", "0")
    assert "\\begin{tabular}" in call("table", tmp_path / "out", "--format", "latex").stdout


def test_classes_with_fewer_pictures_than_shots_are_marked_in_tables(methods, tmp_path):
    write(tmp_path / "features", arrays(train=5))
    text = (
        "name: g\nsets: [{dataset: one, features: features}]\nmethods: [zeroshot, means]\nshots: [4, 8]\nseeds: [1]\n"
    )
    said = grid(tmp_path, text, code=0).stderr
    assert said.count("one: 6 of 6 classes have fewer than 8 pictures (fewest: 5)") == 1
    table = call("table", tmp_path / "out").stdout
    row = next(line for line in table.splitlines() if line.startswith("| means "))
    assert [cell.count("§") for cell in row.split("|")[2:5]] == [0, 0, 1]
    assert "§ some classes have fewer labelled pictures than the column says" in table
    lines = csv.DictReader(call("table", tmp_path / "out", "--format", "csv").stdout.splitlines())
    assert {(line["method"], line["labelled"]): line["classes_short"] for line in lines} == {
        ("zeroshot", "none"): "0", ("means", "4"): "0", ("means", "8"): "6",
    }  # fmt: skip


def test_base_to_new_shows_both_halves_and_h_of_the_means(folder, methods, tmp_path):
    write(tmp_path / "other", arrays(seed=9))
    text = FILE.replace("breaks, pool", "zeroshot").replace(
        "[{dataset: one, features: features}]", "[{dataset: one, features: features}, {dataset: two, features: other}]"
    )
    grid(tmp_path, text.replace("[1, 4, all]", "[4]"), "--protocol", "base_to_new", code=0)
    boards = read_boards([tmp_path / "out"])
    cells = {column.metric: boards[0].cells["means", column] for column in boards[0].columns if column.labelled == "4"}
    base, new = cells["acc1_base"].mean, cells["acc1_new"].mean
    assert cells["h"].mean == pytest.approx(2 * base * new / (base + new))
    text = as_text(boards, "md")
    assert "4 shots acc1_base | 4 shots acc1_new | 4 shots h |" in text
    assert "mean of 2 data sets, base_to_new" in text
    assert "4 shots h, mean of sets" in text


def test_means_are_of_one_protocol_with_the_same_settings(folder, methods, tmp_path):
    write(tmp_path / "second", arrays(seed=3))
    sets = "sets: [{dataset: one, features: features}, {dataset: two, features: second}]"
    for ratio in (2, 5):
        more = f"protocol: {{name: imbalanced, ratio: {ratio}}}"
        text = f"name: g\n{sets}\nmethods: [zeroshot, means]\nshots: [4]\nseeds: [1]\n{more}\n"
        grid(tmp_path, text, code=0)
    said = as_text(read_boards([tmp_path / "out"]), "md")
    for ratio in (2, 5):
        assert f"mean of 2 data sets, imbalanced (ratio={ratio}.0), " in said
        assert f"one, imbalanced (ratio={ratio}.0), " in said
    assert "mean of 4" not in said


def test_records_that_later_ones_replace_are_counted(folder, methods, tmp_path):
    text = "name: g\nsets: [{dataset: one, features: features}]\nmethods: [means]\nshots: [4]\nseeds: [1]\n"
    grid(tmp_path, text, code=0)
    assert "left out" not in call("table", tmp_path / "out").stderr
    write(tmp_path / "features", {"train": arrays(seed=5)["train"]})
    grid(tmp_path, text, code=0)
    assert "1 records are left out: later ones of the same method" in call("table", tmp_path / "out").stderr


def test_what_is_at_chance_is_marked_and_nothing_beats_it(methods, tmp_path):
    found = arrays(noise=50.0)
    found["classes"]["text"] = found["classes"]["text"][::-1].copy()
    write(tmp_path / "features", found)
    grid(tmp_path, FILE.replace("breaks, ", ""), code=0)
    text = as_text(read_boards([tmp_path / "out"]), "md")
    assert "* not shown to be better than chance with some of its draws" in text
    assert "zero-shot is at chance here" in text
    assert "less zero-shot" not in text


def test_hits_of_other_pictures_are_not_compared(folder, methods, tmp_path):
    grid(tmp_path)
    out = tmp_path / "out"
    row = next(row for row in read(out / "results.jsonl") if row.method == "means")
    held = dict(np.load(out / row.hits))
    np.savez(out / row.hits, **{**held, "acc1.keys": np.char.add("other ", held["acc1.keys"])})
    with pytest.raises(ValueError, match="were measured on other pictures"):
        as_text(read_boards([out]), "md")


def test_data_sets_of_one_name_are_two_boards(methods, tmp_path):
    for place, seed in (("x", 0), ("y", 3)):
        write(tmp_path / place / "feat", arrays(seed=seed))
        call("run", "zeroshot", "--features", tmp_path / place / "feat", "--out", tmp_path / "out" / place)
    boards = read_boards([tmp_path / "out"])
    assert len({board.dataset for board in boards}) == 2
    assert all(board.dataset.startswith("feat [") for board in boards)
    measured = {row.metrics["acc1"] for place in "xy" for row in read(tmp_path / "out" / place / "results.jsonl")}
    assert {board.zero_shot("acc1").mean for board in boards} == measured


def test_folders_of_one_name_are_called_by_what_stands_before_it(methods, tmp_path):
    places = [write(tmp_path / place / "feat", arrays(seed=seed)) for place, seed in (("x", 0), ("y", 3))]
    text = FILE.replace("breaks, ", "")
    grid(tmp_path, text, "--features", places[0], "--features", places[1], code=0)
    assert {row.dataset for row in read(tmp_path / "out" / "results.jsonl")} == {"x-feat", "y-feat"}
    assert {path.name for path in (tmp_path / "out" / "draws").iterdir()} == {"x-feat.json", "y-feat.json"}
    with pytest.raises(ValueError, match="is given twice"):
        grid(tmp_path, text, "--features", places[0], "--features", places[0])
    with pytest.raises(ValueError, match='two sets are called "one"'):
        grid(tmp_path, text.replace("}]\n", "}, {dataset: one, features: x/feat}]\n", 1))


def test_places_without_records_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no results.jsonl there or below"):
        read_boards([tmp_path])
    (tmp_path / "results.jsonl").write_text('{"method": "x"}\n')
    with pytest.raises(ValueError, match="not a record of vlp tune: dataset"):
        read_boards([tmp_path])
