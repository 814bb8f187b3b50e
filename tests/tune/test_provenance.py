"""What a saved adapter was fitted to stands in the record of whoever measures it again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.tuning_board import read_boards
from eval.tuning_table import as_text
from tests.tune.doubles import Looks, Means, Pool, arrays, folder, methods, write
from tests.tune.test_command import call
from vlp.adapters import ADAPTERS
from vlp.adapters.loki import Loki
from vlp.adapters.provenance import Provenance
from vlp.adapters.saved import Saved, read_provenance, save
from vlp.adapters.soup import Soup
from vlp.adapters.stored import Stored
from vlp.adapters.task import Task
from vlp.adapters.task_arithmetic import TaskArithmetic
from vlp.adapters.wise_ft import WiseFT
from vlp.adapters.zeroshot import ZeroShot
from vlp.tune.fitting import provenance
from vlp.tune.folder import read_folder
from vlp.tune.protocols import FewShot, Trial
from vlp.tune.support import make_draws
from vlp.tune.trial import run_trial

__all__ = ["folder", "methods"]

KEYS = ("transductive", "leaky", "labelled", "shots")
FITTED = [
    (["transclip", "--shots", 0], (True, False, "none", None)),
    (["em_dirichlet", "--shots", 2], (True, False, "2", 2)),
    (["means", "--shots", 4], (False, False, "4", 4)),
    (["ncm"], (False, False, "all", None)),
    (["gda", "--shots", 4, "--protocol", "paper", "alpha=1"], (False, True, "4", 4)),  # of which nothing was chosen
]


@pytest.mark.parametrize(("words", "want"), FITTED, ids=lambda words: str(words[0]))
def test_stamps_and_labels_travel_with_the_folder(folder, methods, tmp_path, words, want):
    (first,) = call(*words, "--features", folder, "--out", tmp_path / "one")
    about = json.loads((tmp_path / "one" / "adapter.json").read_text())
    assert tuple(about[key] for key in KEYS) == tuple(first[key] for key in KEYS) == want
    (again,) = call("saved", "--features", folder, f"folder={tmp_path / 'one'}", "--out", tmp_path / "two")
    assert tuple(again[key] for key in KEYS) == want
    assert again["test_label_reads"] == 1
    assert again["metrics"] == first["metrics"]
    assert read_provenance(tmp_path / "two") == Provenance(*want, classes=tuple(about["classes"]))


def test_a_pool_of_test_pictures_is_remembered(methods, tmp_path):
    found = arrays()
    found["unlabeled"] = {"image": found["test"]["image"][::-1]}
    place = write(tmp_path / "features", found)
    call("pool", "--features", place, "--out", tmp_path / "pool")
    assert call("saved", "--features", place, f"folder={tmp_path / 'pool'}")[0]["transductive"]


def test_pseudolabels_of_another_pool_are_not_counted_here(folder, methods, tmp_path):
    (first,) = call("tfup", "--features", folder, "least=2", "most=3", "--out", tmp_path / "tfup")
    (again,) = call("saved", "--features", folder, f"folder={tmp_path / 'tfup'}")
    assert first["pseudolabels"]["pairs"] > 0
    assert (again["pseudolabels"], "unlabelled" in again["counts"]) == (None, False)


def test_what_was_saved_inside_of_another_counts(folder, methods, tmp_path):
    call("looks", "--features", folder, "--shots", 0, "--out", tmp_path / "looks")
    (found,) = provenance(Loki(of=Saved(folder=str(tmp_path / "looks"))))
    assert found.transductive
    place = str(tmp_path / "looks")
    assert Soup(files=(place, "a-model")).provenance() == (found,)
    assert WiseFT(file=place).provenance() == TaskArithmetic(negate=(place,)).provenance() == (found,)
    assert WiseFT().provenance() == ()


class Both(Means):
    """Learns from labelled pictures beside a classifier that did so before."""

    other: Saved


def test_labels_of_a_saved_one_and_of_the_support_are_more_than_either(folder, methods, tmp_path, monkeypatch):
    monkeypatch.setitem(ADAPTERS.entries, "both", f"{Both.__module__}:Both")
    call("means", "--features", folder, "--shots", 4, "--out", tmp_path / "four")
    both = Both(other=Saved(folder=str(tmp_path / "four")))
    stock = read_folder(folder)
    drawn = make_draws(stock, shots=[1, 4], seeds=[1]).draws
    labelled = [run_trial(Trial(both, stock, one.shots, 1, one), FewShot(), code="x").record.labelled for one in drawn]
    assert labelled == ["unknown", "4"]


@pytest.mark.parametrize("protocol", ["base_to_new", "open_set"])
def test_classes_that_were_learned_are_not_new(folder, methods, tmp_path, protocol):
    call("gda", "--features", folder, "--out", tmp_path / "gda")
    with pytest.raises(ValueError, match='fitted to 3 of the 3 classes that have to be new here, "dog" for one'):
        call("saved", "--features", folder, f"folder={tmp_path / 'gda'}", "--protocol", protocol)


def test_one_of_the_base_classes_goes_on_to_new_ones(folder, methods, tmp_path):
    words = ["--features", folder, "--protocol", "base_to_new"]
    (first,) = call("means", *words, "--shots", 4, "--out", tmp_path / "means")
    (again,) = call("saved", *words, f"folder={tmp_path / 'means'}")
    assert again["metrics"] == first["metrics"]
    call("gda", *words, "--shots", 4, "--out", tmp_path / "gda")
    with pytest.raises(ValueError, match="gda keeps the features it learned from in memory only"):
        call("saved", *words, f"folder={tmp_path / 'gda'}")


def old(place: Path, *, adapter: str) -> Path:
    """A folder as it was written before the keys."""
    encoder = Stored()
    task = read_folder(write(place / "features", arrays()))
    save(ZeroShot().fit(encoder, task.task(seed=0)), place, adapter=ADAPTERS.build(adapter), encoder=encoder)
    about = json.loads((place / "adapter.json").read_text())
    about = {name: value for name, value in about.items() if name not in KEYS}
    (place / "adapter.json").write_text(json.dumps({**about, "adapter": ADAPTERS.dump(ADAPTERS.build(adapter))}))
    return place


@pytest.mark.parametrize(
    ("adapter", "transductive", "leaky"),
    [
        ({"name": "looks"}, True, False),
        ({"name": "pool"}, True, False),  # nobody knows of which pictures the pool was
        ({"name": "means"}, False, False),
        ({"name": "means", "protocol": "paper"}, False, True),
    ],
    ids=str,
)
def test_older_folders_are_the_worst_they_may_have_been(methods, tmp_path, adapter, transductive, leaky):
    place = old(tmp_path, adapter=adapter)
    (found,) = call(
        "saved", "--features", place / "features", f"folder={place}", "any_backbone=true", "--out", place / "o"
    )
    assert tuple(found[key] for key in KEYS) == (transductive, leaky, "unknown", None)
    assert "| unknown labels |" in as_text(read_boards([place / "o"]), "md")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"transductive": 1}, "transductive is 1, which `vlp tune --out` does not write"),
        ({"shots": True}, "shots is True"),
        ({"leaky": None}, "leaky is None"),
        ({"classes": 3}, "has no classes"),
    ],
)
def test_keys_that_are_none_are_refused(folder, methods, tmp_path, change, said):
    call("means", "--features", folder, "--out", tmp_path)
    file = tmp_path / "adapter.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=f"adapter.json: {said}"):
        read_provenance(tmp_path)


@pytest.mark.parametrize(("adapter", "transductive"), [(Looks(), True), (Pool(), True), (Means(), False)])
def test_saved_by_hand_without_a_word_it_is_the_worst_too(methods, tmp_path, adapter, transductive):
    classifier = ZeroShot().fit(Stored(), Task(("a", "b"), text=read_folder(write(tmp_path, arrays(classes=2))).text))
    save(classifier, tmp_path / "x", adapter=adapter, encoder=Stored())
    assert read_provenance(tmp_path / "x") == Provenance(transductive, False, "unknown", None, ("a", "b"))
