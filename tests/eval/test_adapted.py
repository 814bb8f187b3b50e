"""Several adapters on one data set: what their records, files, tables and report sections are called."""

from __future__ import annotations

import json

import pytest

from eval import record
from eval.classify import Classification
from eval.differences import differences
from eval.leaderboard import read_board
from eval.suite import Suite, run_suite
from tests.eval.colours import COLOURS, ColourDual, colour_shard
from vlp.config import ConfigError, validate
from vlp.models import pretrained
from vlp.report import write_report
from vlp.report.variant import variant

WRONG = {name: ["green"] for name in COLOURS}  # says of every class that it is green
RIGHT = {name: [name] for name in COLOURS}


@pytest.fixture(autouse=True)
def _hashed(monkeypatch):
    monkeypatch.setattr(pretrained, "weights_hash", lambda dual: "0" * 16)


def parts(tmp_path, *adapters, name="zeroshot", **more):
    shard = tmp_path / "c.tar"
    if not shard.is_file():
        colour_shard(shard, per_colour=3)
    one = {"name": name, "dataset": "d", "data": str(shard), "names": list(COLOURS), "templates": ["{}"], **more}
    return [{**one, **({"adapter": adapter} if adapter else {})} for adapter in adapters]


def described(sentences):
    return {"name": "descriptions", "sentences": sentences}


def test_records_and_files_of_each_adapter_stand_side_by_side(tmp_path):
    asked = parts(tmp_path, None, described(RIGHT), described(WRONG), "waffle")
    rows = run_suite(ColourDual(), Suite(name="s", benchmarks=asked), out=tmp_path / "out")
    plain, right, wrong, waffle = rows
    assert (plain.adapter, plain.adapter_hash, plain.apart) == ("zeroshot", None, ())
    assert (waffle.adapter, waffle.adapter_hash, waffle.apart) == ("waffle", None, ("with waffle",))
    assert right.adapter == wrong.adapter == "descriptions"
    assert len({right.adapter_hash, wrong.adapter_hash}) == 2
    assert (right.metrics["acc1"], wrong.metrics["acc1"]) == (1.0, 0.0)
    folder = tmp_path / "out" / "eval" / "d"
    names = ["", *(f"-{variant(row.adapter, row.adapter_hash)}" for row in rows[1:])]
    for name, row in zip(names, rows, strict=True):
        recall = json.loads((folder / f"confusion{name}.json").read_text())["recall"]
        assert sum(recall) / 5 == pytest.approx(row.metrics["mean_per_class_recall"])
        assert (folder / f"reliability{name}.json").is_file()
        hits = json.loads((folder / f"zeroshot{name}_hits.json").read_text())["columns"]["acc1"]
        assert sum(hits) / 15 == pytest.approx(row.metrics["acc1"])
    assert list(record.read(tmp_path / "out" / "results.jsonl")) == rows
    board = read_board([tmp_path / "out"])
    assert [column.title for column in board.columns] == ["d acc1", *(f"d with {name[1:]} acc1" for name in names[1:])]
    page = write_report(tmp_path / "out").read_text()
    for name in names[1:]:
        assert f"Classes: d, with {name[1:]}" in page
        assert f"zero-shot classification, with {name[1:]}" in page
    found = {one.measure for one in differences(tmp_path / "out", tmp_path / "out", n_boot=10)}
    assert found == {f"zeroshot{name}/acc1" for name in names}


def test_the_hash_is_of_the_settings_and_default_adapters_keep_plain_names():
    assert variant(None, None) == variant("zeroshot", None) == variant("token_zeroshot", None) == ""
    assert variant("token_zeroshot", "abcdefgh") == "token_zeroshot-abcdef"

    def made(adapter):
        return Classification(dataset="d", data="x.tar", adapter=adapter).named_adapter

    assert made({"name": "loki"}) == {"adapter": "loki", "adapter_hash": None}
    loki = {"name": "loki", "adjust": False}
    assert made(loki)["adapter_hash"] == made(loki)["adapter_hash"]
    assert made({"name": "loki", "of": "waffle"})["adapter_hash"] != made(loki)["adapter_hash"]
    assert made({"name": "waffle", "seed": 1})["adapter_hash"] != made({"name": "waffle", "seed": 2})["adapter_hash"]


@pytest.mark.parametrize("name", ["multilabel", "corruptions"])
def test_other_benchmarks_of_adapters_too(tmp_path, name):
    more = {"label": "class"} if name == "multilabel" else {"corruptions": ["fog"], "severities": [1]}
    asked = parts(tmp_path, None, described(WRONG), name=name, n_boot=20, **more)
    rows = run_suite(ColourDual(), Suite(name="s", benchmarks=asked), out=tmp_path / "out")
    tag = variant(rows[1].adapter, rows[1].adapter_hash)
    for file in (f"{name}.json", f"{name}-{tag}.json"):
        assert (tmp_path / "out/eval/d" / file).is_file()
    assert f"d, with {tag}" in write_report(tmp_path / "out").read_text()


@pytest.mark.parametrize("change", [{"templates": ["a {}"]}, {"language": "de"}, {"n_boot": 7}])
def test_what_would_replace_the_files_of_another_is_refused(tmp_path, change):
    first, second = parts(tmp_path, None, None)
    plan = {"name": "s", "benchmarks": [first, {**second, **change}]}
    with pytest.raises(ConfigError, match=r"benchmarks\.1: its files in eval/d would replace those of benchmarks\.0"):
        validate(Suite, plan, where="s.yaml")
    plan["benchmarks"][1]["dataset"] = "e"
    assert len(validate(Suite, plan, where="s.yaml").benchmarks) == 2
    Suite.model_validate({"name": "s", "benchmarks": [first, {**second, "name": "corruptions"}]})
