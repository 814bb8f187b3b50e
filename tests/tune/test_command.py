"""`vlp tune` on stored features: lines of JSON, draws, faults as messages."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch

import numpy as np
import pytest
from typer.testing import CliRunner

from eval.tuning_run import folder_names, sort_words
from tests.tune.doubles import SEEN, arrays, folder, methods, write
from vlp.adapters import ADAPTERS
from vlp.tune.protocols import Hits
from vlp.tune.record import TuneRecord, summary
from vlp.tune_cli import Reading, app

__all__ = ["folder", "methods"]


def shown(*words):
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "300"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def call(*words):
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_the_last_line_is_the_record(folder):
    (found,) = call("zeroshot", "--features", folder)
    assert (found["method"], found["dataset"], found["n"], found["shots"], found["seed"]) == (
        "zeroshot", "features", 30, None, 1,
    )  # fmt: skip
    assert found["ci95"]["acc1"][0] <= found["metrics"]["acc1"] <= found["ci95"]["acc1"][1]
    assert found["chance"]["acc1"] == pytest.approx(1 / 6)
    assert (found["leaky"], found["transductive"], found["selection"]) == (False, False, {"split": "none"})
    assert set(found["data_hashes"]) == {"train", "validation", "test", "classes"}
    assert (found["labelled"], call("linear", "--features", folder)[0]["labelled"]) == ("none", "all")
    assert found["seconds"] >= 0
    assert TuneRecord.model_validate(found).label == "zeroshot"


def test_several_seeds_end_in_their_mean(folder, methods):
    *runs, last = call("means", "--features", folder, "--shots", 1, "--seeds", "1,2,3", "--set", "weight=0.5")
    values = [run["metrics"]["acc1"] for run in runs]
    assert [run["seed"] for run in runs] == last["seeds"] == [1, 2, 3]
    assert last["seed"] is None
    assert last["metrics"]["acc1"] == pytest.approx(np.mean(values))
    assert last["std"]["acc1"] == pytest.approx(np.std(values, ddof=1))
    assert [run["metrics"]["acc1"] for run in last["runs"]] == values
    assert (last["settings"]["weight"], last["changed"]) == (0.5, {"weight": 0.5})
    low, high = last["ci95"]["acc1"]
    assert low < last["metrics"]["acc1"] < high
    assert len(SEEN) == 3


def test_draws_are_written_and_taken_again(folder, methods, tmp_path):
    out = tmp_path / "out"
    first, _ = call("means", "--features", folder, "--shots", 2, "--seeds", "4,5", "--out", out)[:2]
    drawn = json.loads((out / "draws.json").read_text())
    assert [(one["seed"], one["shots"]) for one in drawn["draws"]] == [(4, 2), (5, 2)]
    drawn["draws"][0]["train"]["ant"] = ["0", "1"]
    (tmp_path / "mine.json").write_text(json.dumps(drawn))
    call("means", "--features", folder, "--shots", 2, "--seed", 4, "--draws", tmp_path / "mine.json")
    assert SEEN[-1].support.image[:2].equal(SEEN[-1].support.image[SEEN[-1].support.known == 0])
    assert (out / "seed-4" / "adapter.json").is_file()
    assert (out / first["hits"]).is_file()
    with pytest.raises(ValueError, match="say which with --shots"):
        call("means", "--features", folder, "--draws", tmp_path / "mine.json")


def test_words_behind_the_method_are_its_settings(folder, methods):
    (found,) = call("means", "--features", folder, "weight=2.0")
    assert found["settings"]["weight"] == 2.0


def test_protocols_by_name_with_settings_or_as_published(folder, methods):
    (found,) = call("means", "--features", folder, "--protocol", "{name: imbalanced, ratio: 5}", "--shots", 8)
    assert (found["protocol"], found["protocol_settings"]) == ("imbalanced", {"ratio": 5.0})
    (found,) = call("means", "--features", folder, "--protocol", "paper")
    assert (found["protocol"], found["leaky"], found["settings"]["protocol"]) == ("few_shot", True, "paper")
    (found,) = call("means", "--features", folder, "--protocol", "base_to_new", "--shots", 4)
    assert set(found["metrics"]) == {"acc1", "acc1_base", "acc1_new", "h"}


def test_other_folders_are_measured_with_test(folder, methods, tmp_path):
    other = write(tmp_path / "other", {name: arrays(seed=5)[name] for name in ("test", "classes")})
    *_, last = call(
        "means", "--features", folder, "--protocol", "domain_shift", "--test", other, "--shots", 4, "--seeds", "1,2"
    )
    assert {"acc1", "acc1_other", "acc1_targets"} <= set(last["metrics"])
    assert "acc1_other" in last["ci95"]
    assert "other/test" in last["data_hashes"]


def test_folders_of_one_name_are_measured_apart(folder, methods, tmp_path):
    places = [write(tmp_path / place / "feat", arrays(seed=seed)) for place, seed in (("x", 5), ("y", 6))]
    words = ["means", "--features", folder, "--protocol", "domain_shift"]
    alone = [call(*words, "--test", place)[-1]["metrics"]["acc1_feat"] for place in places]
    (both,) = call(*words, "--test", places[0], "--test", places[1])
    assert [both["metrics"][f"acc1_{name}"] for name in ("x-feat", "y-feat")] == alone
    assert both["metrics"]["acc1_targets"] == pytest.approx(sum(alone) / 2)
    assert {"x-feat/test", "y-feat/test"} <= set(both["data_hashes"])


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["x/feat"], ["feat"]),
        (["x/feat", "y/feat"], ["x-feat", "y-feat"]),
        (["p/x/feat", "q/x/feat", "other"], ["p-x-feat", "q-x-feat", "*-other"]),
        (["x/a-b/c", "x-a/b/c", "y/a-b/c"], ["c-1", "c-2", "c-3"]),
    ],
)
def test_folders_are_called_by_as_much_as_tells_them_apart(tmp_path, folders, names):
    found = folder_names([tmp_path / folder for folder in folders])
    assert all(fnmatch(name, want) for name, want in zip(found, names, strict=True))


def test_several_sets_of_a_file_have_folders_of_their_own(methods, tmp_path, monkeypatch):
    for seed, name in enumerate(("one", "two")):
        write(tmp_path / name, arrays(seed=seed))
    (tmp_path / "f.yaml").write_text(
        "name: f\nsets: [{dataset: first, features: one}, {dataset: second, features: two}]\n"
    )
    monkeypatch.setattr(Reading, "encoder", lambda self, model: None)
    found = call("means", "model", tmp_path / "f.yaml", "--shots", 2, "--out", tmp_path / "out")
    assert [row["dataset"] for row in found] == ["first", "second"]
    for row in found:
        place = tmp_path / "out" / row["dataset"]
        assert (place / row["hits"]).is_file()
        (again,) = call(
            "saved", "--features", tmp_path / {"first": "one", "second": "two"}[row["dataset"]], f"folder={place}"
        )
        assert again["metrics"] == row["metrics"]
    drawn = [(tmp_path / "out" / name / "draws.json").read_text() for name in ("first", "second")]
    assert all(json.loads(text)["draws"][0]["shots"] == 2 for text in drawn)


def test_means_over_seeds_are_of_64_bits():
    row = {"method": "m", "dataset": "d", "model": "x", "protocol": "few_shot", "n": 1, "shots": 1, "labelled": "1"}
    row |= {"seed": 1, "metrics": {"acc1": 0.95}, "seconds": 0.0, "classes_hash": "", "settings_hash": ""}
    rows = [TuneRecord.model_validate({**row, "code_version": "x", "seed": seed}) for seed in (1, 2)]
    found = summary(rows, [Hits(), Hits()])
    assert (found.metrics["acc1"], found.std["acc1"]) == (0.95, 0.0)


def test_the_list_says_what_each_method_is(methods):
    said = shown("--list")
    assert said == shown("list")
    groups = dict(re.findall(r"^([a-z-]+):\n(.*?)\n\n", said, re.MULTILINE | re.DOTALL))
    assert list(groups) == ["zero-shot", "few-shot", "unsupervised", "transductive"]
    assert sorted(line.split()[0] for text in groups.values() for line in text.splitlines()) == ADAPTERS.names()
    assert re.search(r"^tower  .* Runs both towers\.$", groups["few-shot"], re.MULTILINE)
    assert re.search(r"^looks  .* Runs no tower\.$", groups["transductive"], re.MULTILINE)
    assert " = " not in groups["few-shot"].partition("means ")[2].splitlines()[0]
    assert "vlp tune list" in shown("--help")


def test_a_named_method_is_shown_with_its_settings(methods):
    said = shown("list", "means")
    assert said.splitlines()[0] == "means  [few-shot, runs no tower]"
    assert {"    weight = 1.0", "    protocol = honest  (honest | paper)"} <= set(said.splitlines())
    assert said == shown("--list", "means")
    assert said.strip() in shown("means", "--help")
    assert "few-shot, runs" not in shown("run", "--help")
    assert [f"\n{name}  [" in "\n" + shown("list", "all") for name in ADAPTERS.names()] == [True] * len(
        ADAPTERS.names()
    )
    with pytest.raises(ValueError, match='no method "meens"; did you mean "means"'):
        shown("list", "meens")


def test_shots_may_be_all(folder, methods):
    (found,) = call("means", "--features", folder, "--shots", "all")
    assert (found["shots"], found["labelled"]) == (None, "all")
    refused = CliRunner().invoke(app, ["means", "--features", str(folder), "--shots", "many"])
    assert refused.exit_code == 2
    assert "neither a number" in refused.stderr
    assert CliRunner().invoke(app, ["means", "--features", str(folder), "--shots", "-1"]).exit_code == 2


def test_classes_with_fewer_pictures_than_shots_are_said_and_counted(methods, tmp_path):
    found = arrays()
    keep = np.concatenate([np.flatnonzero(found["train"]["label"] == label)[: 3 + (label > 0)] for label in range(6)])
    found["train"] = {name: values[keep] for name, values in found["train"].items()}
    own = {name: part for name, part in found.items() if name != "val"}
    place = write(tmp_path / "few", own)
    for shots, classes, said in (
        (3, None, None),
        (4, 1, "few: 1 of 6 classes have fewer than 4 pictures (fewest: 3); none is left to choose on"),
        (8, 6, "few: 6 of 6 classes have fewer than 8 pictures (fewest: 3); none is left to choose on"),
    ):
        result = CliRunner().invoke(app, ["means", "--features", str(place), "--shots", str(shots), "--seeds", "1,2"])
        assert result.exit_code == 0, result.output
        assert (said is None and "fewer" not in result.stderr) or result.stderr.count(f"{said}\n") == 1
        records = [json.loads(line) for line in result.stdout.splitlines()]
        assert [record["counts"].get("classes_short") for record in records] == [classes] * 3
    half = ["--shots", "4", "--protocol", "base_to_new"]
    assert call("means", "--features", place, *half)[0]["counts"]["classes_short"] == 1
    assert "classes_short" not in call("zeroshot", "--features", place, "--shots", 8)[0]["counts"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["zeroshit"], 'no method "zeroshit"; did you mean "zeroshot"'),
        (["means", "--set", "wait=1"], 'wait: unknown field; did you mean "weight"'),
        (["zeroshot", "--protocol", "paper"], "zeroshot has no `protocol: paper`"),
        (["zeroshot", "--protocol", "base_to_knew"], 'unknown protocol "base_to_knew"; did you mean "base_to_new"'),
        (["tower"], "tower runs both towers, and stored features have none"),
        (["zeroshot", "model"], "there is also model"),
        (["zeroshot", "--seeds", "1,1"], "none twice"),
        (["means", "--protocol", "cross_dataset"], "name some with --test"),
    ],
)
def test_faults_are_messages(folder, methods, words, said):
    with pytest.raises(ValueError, match=said):
        call(*words, "--features", folder)


def test_a_model_without_a_file_is_refused():
    with pytest.raises(ValueError, match="wanted vlp tune zeroshot CHECKPOINT FILE.yaml, or --features DIR; got model"):
        call("zeroshot", "model")
    with pytest.raises(ValueError, match="x.yaml is about pictures: vlp tune zeroshot CHECKPOINT x.yaml"):
        call("zeroshot", "x.yaml")


def test_words_are_settings_of_the_file_where_it_knows_them(tmp_path, methods):
    file = tmp_path / "t.yaml"
    file.write_text("name: t\nsets: [{dataset: d, train: a.tar, test: b.tar}]\n")
    words = ["saved", "model", str(file), "folder=x", "data=elsewhere", "seeds=[7]"]
    given = sort_words(words, features=[])
    assert (given.model, given.settings, given.tuning.data, given.tuning.seeds) == (
        "model", ["folder=x"], "elsewhere", (7,),
    )  # fmt: skip
    for method, word, said in (
        ("saved", "dota=x", f'dota: unknown field; did you mean "data" of {file}'),
        ("means", "wait=2", 'wait: unknown field; did you mean "weight" of means'),
        ("means", "zzz.a=2", f"zzz: unknown field; means has .*weight.*; {file} has name, data, sets"),
    ):
        with pytest.raises(ValueError, match=said):
            sort_words([method, "model", str(file), word], features=[])
