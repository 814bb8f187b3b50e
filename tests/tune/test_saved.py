"""Fitted adapters on disk: they come back the same, and to no other model."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from eval.suite import load_suite, run_suite
from tests.eval.colours import COLOURS, ColourDual, colour_shard
from tests.tune.doubles import folder, methods
from tests.tune.test_command import call
from vlp.adapters import CLASSIFIERS
from vlp.adapters import saved as saved_adapter
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.restricted import Restricted
from vlp.adapters.saved import Saved
from vlp.adapters.stored import Stored
from vlp.adapters.task import Task
from vlp.adapters.zeroshot import ZeroShot
from vlp.embed import Encoder
from vlp.models import pretrained
from vlp.tune.folder import read_folder
from vlp.tune_cli import app

__all__ = ["folder", "methods"]

NAMES = tuple(COLOURS)


class Colours(Encoder):
    """An Encoder of the model that knows colours, with weights of a known hash."""

    weights_hash = "colours"


@pytest.fixture
def encoder():
    return Colours(ColourDual(), quiet=True)


@pytest.fixture
def kept(tmp_path, encoder):
    """A zero-shot classifier of colours, and its folder."""
    adapter = ZeroShot()
    classifier = adapter.fit(encoder, Task(NAMES))
    saved_adapter.save(classifier, tmp_path / "kept", adapter=adapter, encoder=encoder)
    return classifier, tmp_path / "kept"


def test_a_fitted_adapter_comes_back_as_it_was(kept, encoder):
    classifier, place = kept
    about = json.loads((place / "adapter.json").read_text())
    assert (about["kind"], about["weights_hash"], about["classes"]) == ("linear_classifier", "colours", list(NAMES))
    assert about["adapter"] == {"name": "zeroshot"}
    assert about["selection"] == {"split": "none"}
    for found in (saved_adapter.load(place), saved_adapter.load(place, encoder)):
        assert torch.equal(found(torch.eye(3)), classifier(torch.eye(3)))
    assert CLASSIFIERS.resolve("linear_classifier") is LinearClassifier


def test_another_model_is_refused(kept, encoder, monkeypatch):
    _, place = kept
    monkeypatch.setattr(Colours, "weights_hash", "others")
    with pytest.raises(ValueError, match="weights have the hash colours, and this one's have others"):
        saved_adapter.load(place, encoder)
    with pytest.raises(ValueError, match="stored features here that do not say which weights"):
        saved_adapter.load(place, Stored())
    assert saved_adapter.load(place, Stored(), any_backbone=True).names == NAMES
    assert saved_adapter.load(place, Stored(weights_hash="colours")).names == NAMES


def test_folders_that_hold_none_are_refused(tmp_path, kept):
    with pytest.raises(ValueError, match="holds kept: give one, such as .*kept"):
        saved_adapter.load(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no fitted adapter"):
        saved_adapter.load(tmp_path / "empty")
    file = kept[1] / "adapter.json"
    file.write_text(file.read_text().replace('"schema": 1', '"schema": 7'))
    with pytest.raises(ValueError, match="schema 7; this version reads 1"):
        saved_adapter.load(kept[1])


def test_it_serves_its_names_and_some_of_them(kept, encoder):
    classifier, place = kept
    part = Saved(folder=str(place))
    assert part.fit(encoder, Task(NAMES)).names == NAMES
    few = part.fit(encoder, Task(("blue", "red")))
    assert isinstance(few, Restricted)
    assert torch.equal(few(torch.eye(3)), classifier(torch.eye(3))[:, [2, 0]])
    with pytest.raises(ValueError, match='not fitted to class "bleu"; did you mean "blue"'):
        part.fit(encoder, Task(("bleu", "red")))
    with pytest.raises(ValueError, match="a Restricted cannot be saved"):
        saved_adapter.save(few, place, adapter=part, encoder=encoder)


class InMemory(LinearClassifier):
    """Knows more than what is saved of it."""


class SavesMore(LinearClassifier):
    def save(self, folder):
        raise AssertionError


def test_a_class_that_saves_as_another_is_of_its_kind(kept):
    classifier, _ = kept
    given = {"names": classifier.names, "scale": classifier.scale}
    assert saved_adapter.kind_of(InMemory(classifier.weight, **given)) == "linear_classifier"
    with pytest.raises(ValueError, match="a SavesMore cannot be saved"):
        saved_adapter.kind_of(SavesMore(classifier.weight, **given))


class NeedsTowers(LinearClassifier):
    @classmethod
    def load(cls, folder, encoder):
        found = super().load(folder)
        found.encoder = encoder
        return found


def test_classifiers_that_run_towers_get_them(kept, encoder, monkeypatch):
    monkeypatch.setitem(CLASSIFIERS.entries, "linear_classifier", f"{__name__}:NeedsTowers")
    with pytest.raises(ValueError, match="runs the model's towers; give the encoder"):
        saved_adapter.load(kept[1])
    assert saved_adapter.load(kept[1], encoder).encoder is encoder


def test_a_suite_measures_a_saved_adapter(kept, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "weights_hash", lambda dual: "colours")
    colour_shard(tmp_path / "data" / "one.tar")
    (tmp_path / "s.yaml").write_text(
        f"name: s\ndata: data\nbenchmarks: [{{name: zeroshot, dataset: d, data: one.tar, names: [{', '.join(NAMES)}], "
        f"adapter: {{name: saved, folder: {kept[1]}}}}}]\n"
    )
    (record,) = run_suite(encoder, load_suite(tmp_path / "s.yaml"), out=tmp_path / "out")
    assert (record.metrics["acc1"], record.warnings) == (1.0, ())
    file = kept[1] / "adapter.json"
    file.write_text(file.read_text().replace('"transductive": false', '"transductive": true'))
    (record,) = run_suite(encoder, load_suite(tmp_path / "s.yaml"), out=tmp_path / "again")
    assert "without labels (transductive)" in " ".join(record.warnings)


def test_the_command_writes_and_measures_it_again(folder, methods, tmp_path):
    (first,) = call("means", "--features", folder, "--shots", 4, "--out", tmp_path / "means")
    about = json.loads((tmp_path / "means" / "adapter.json").read_text())
    assert (about["adapter"]["name"], about["selection"]["split"]) == ("means", "validation")
    (again,) = call("saved", "--features", folder, f"folder={tmp_path / 'means'}")
    assert again["metrics"] == first["metrics"]
    stock = read_folder(folder)
    assert saved_adapter.load(tmp_path / "means", stock.encoder).names == stock.names


def test_what_cannot_be_saved_is_said_after_the_record_and_is_no_failure(folder, methods, tmp_path):
    result = CliRunner().invoke(app, ["loki", "--features", str(folder), "--out", str(tmp_path / "loki")])
    assert json.loads(result.stdout)["method"] == "loki"
    assert (result.exit_code, result.exception) == (0, None)
    assert "holds records, and no classifier: a LokiClassifier cannot be saved" in result.stderr
    assert sorted(path.name for path in (tmp_path / "loki").iterdir()) == ["hits", "results.jsonl"]
