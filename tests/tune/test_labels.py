"""Labels of tables: only what tells rows apart, and no two alike."""

from __future__ import annotations

from pathlib import Path

from eval.tuning_board import Board, Cell, Column
from eval.tuning_labels import LONGEST, labels
from vlp.tune.record import TuneRecord


def record(method, **changed):
    return TuneRecord(
        method=method,
        dataset="d",
        model="m",
        protocol="few_shot",
        n=1,
        shots=4,
        labelled="4",
        seed=1,
        metrics={"acc1": 0.5},
        changed=changed,
        seconds=0.0,
        classes_hash="c",
        settings_hash="s",
        code_version="v",
    )


def board(*records):
    column = Column("4", "acc1")
    cells = {(row.label, column): Cell([(Path(), row)], "acc1") for row in records}
    return Board("d", "few_shot", "m", [row.label for row in records], [column], cells)


def test_rows_of_one_method_show_what_they_do_not_share():
    of = [{"name": "finetune", "lr": rate, "epochs": 15} for rate in (0.1, 0.2)]
    other = [{"name": "finetune", "lr": rate, "epochs": 15} for rate in (0.1, 0.3)]
    rows = [
        record("soup", of=of, seeds=1),
        record("soup", of=of, seeds=1, how="uniform"),
        record("soup", of=other, seeds=1),
    ]
    assert list(labels([board(*rows)]).values()) == [
        "soup (of.1.lr=0.2)",
        "soup (of.1.lr=0.2, how=uniform)",
        "soup (of.1.lr=0.3)",
    ]
    assert list(labels([board(*rows[:2])]).values()) == ["soup", "soup (how=uniform)"]


def test_a_part_inside_is_called_by_its_name():
    em, tips = {"name": "gda_em", "alpha": 1.0}, [{"name": "tip", "alpha": alpha} for alpha in (1.0, 2.0)]
    rows = [record("promptkd"), *(record("promptkd", teacher=teacher) for teacher in (em, *tips))]
    assert list(labels([board(*rows)]).values()) == [
        "promptkd",
        "promptkd (teacher=gda_em)",
        "promptkd (teacher=tip, teacher.alpha=1.0)",
        "promptkd (teacher=tip, teacher.alpha=2.0)",
    ]
    assert list(labels([board(*rows[:2])]).values()) == ["promptkd", "promptkd (teacher=gda_em)"]


def test_a_single_row_shows_single_values_and_files_by_their_name():
    rows = [record("wise_ft", of={"name": "finetune", "lr": 0.1}), record("loki", file="a/very/long/path/tree.json")]
    assert list(labels([board(*rows)]).values()) == ["wise_ft (of=finetune)", "loki (file=tree.json)"]
    assert rows[0].brief == "wise_ft (of=finetune)"
    assert record("loki", file="t.json", inner={"name": "tip"}).brief == "loki (file=t.json, inner=tip)"
    assert record("tip").brief == "tip"


def test_long_ones_are_cut_and_still_differ():
    rows = [record("coop", words=f"{'word ' * 30}{number}") for number in range(2)]
    first, second = labels([board(*rows)]).values()
    assert len(first) == LONGEST
    assert second == f"{first} #2"
