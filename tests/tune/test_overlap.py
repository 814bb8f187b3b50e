"""Pictures that stand in two splits are found in any order and beside others."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from eval.tuning import load_tuning, open_stock
from tests.eval.colours import COLOURS, ColourDual, jpeg, write_shard
from tests.tune.doubles import Means, Pool, arrays, folder, methods, write
from tests.tune.test_command import call
from vlp.adapters.task import Examples
from vlp.embed import Encoder
from vlp.models import pretrained
from vlp.tune.folder import read_folder
from vlp.tune.overlap import shared_rows
from vlp.tune.protocols import FewShot, Trial
from vlp.tune.transfers import DomainShift
from vlp.tune.trial import run_trial

__all__ = ["folder", "methods"]

ORDER = np.random.default_rng(0).permutation(30)


def shuffled(test, own):
    return {name: test[name][ORDER] for name in ("image", "label")}


def beside(test, own):
    return {name: np.concatenate([own[name], test[name]]) for name in ("image", "label")}


def one(test, own):
    return {name: np.concatenate([own[name], test[name][17:18]]) for name in ("image", "label")}


def scaled(test, own):
    return {"image": test["image"][ORDER].astype("f8") * 0.3, "label": test["label"][ORDER]}


MIXED = [(shuffled, 30), (beside, 30), (one, 1), (scaled, 30)]


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(("mix", "count"), MIXED)
def test_test_pictures_to_learn_from_are_refused_with_their_number(tmp_path, split, mix, count):
    found = arrays()
    found[split] = mix(found["test"], found[split])
    of = len(found[split]["label"])
    name = {"val": "validation"}.get(split, split)
    with pytest.raises(ValueError, match=f"{name} and test are the same pictures in {count} of {of} of {name} "):
        read_folder(write(tmp_path, found))


@pytest.mark.parametrize(("split", "name"), [("train", "train"), ("val", "validation")])
def test_one_in_a_hundred_is_left_out_and_counted(tmp_path, capsys, split, name):
    found = arrays()
    width, rng = found["test"]["image"].shape[1], np.random.default_rng(0)
    own = {"image": rng.normal(size=(99, width)).astype("f4"), "label": np.arange(99) % 2}
    found[split] = {key: np.concatenate([own[key], found["test"][key][:1]]) for key in own}
    stock = read_folder(write(tmp_path, found))
    assert len(getattr(stock, name)) == 99
    assert stock.skips == {f"{name}_is_test": 1}
    assert f"1 of 100 pictures of {name} are test pictures: left out" in capsys.readouterr().err


@pytest.mark.parametrize(("mix", "count"), MIXED)
def test_test_pictures_without_labels_make_a_fit_transductive(tmp_path, methods, capsys, mix, count):
    found = arrays()
    found["unlabeled"] = {"image": mix(found["test"], arrays(seed=7)["train"])["image"]}
    (record,) = call("pool", "--features", write(tmp_path, found))
    assert record["transductive"]
    assert not call("means", "--features", tmp_path)[0]["transductive"]  # which does not look at them
    read_folder(tmp_path)
    assert f"{count} of {len(found['unlabeled']['image'])} unlabelled pictures are test" in capsys.readouterr().err


def test_others_without_labels_do_not(tmp_path, methods):
    found = arrays()
    found["unlabeled"] = {"image": arrays(seed=7)["test"]["image"]}
    assert not call("pool", "--features", write(tmp_path, found))[0]["transductive"]


def test_validation_that_is_in_train_is_said(tmp_path, capsys):
    found = arrays()
    found["val"] = {
        name: np.concatenate([found["train"][name][5:8], found["val"][name]]) for name in ("image", "label")
    }
    read_folder(write(tmp_path, found))
    assert "3 of 27 validation pictures are in train" in capsys.readouterr().err


def test_pictures_of_a_target_are_not_learned_either(tmp_path, folder, methods):
    found = arrays()
    other = {"test": {name: found["train"][name][ORDER] for name in ("image", "label")}, "classes": found["classes"]}
    target = read_folder(write(tmp_path / "other", other))
    stock = read_folder(folder)
    with pytest.raises(ValueError, match="train and test of other are the same pictures in 30 of 60 of train"):
        DomainShift().measure(Trial(Means(), stock, targets=[target]))
    pool = read_folder(write(tmp_path / "pool", {**arrays(seed=2), "unlabeled": {"image": found["test"]["image"][:2]}}))
    for targets, saw in (([stock], True), ([read_folder(write(tmp_path / "third", arrays(seed=3)))], False)):
        assert run_trial(Trial(Pool(), pool, targets=targets), DomainShift(), code="x").record.transductive == saw


@pytest.mark.parametrize("width", [2, 3, 64])
def test_rows_are_those_that_a_loop_finds(width):
    rng = torch.Generator().manual_seed(width)
    own, other = (normalize(torch.randn(count, width, generator=rng), dim=1) for count in (90, 70))
    other[:20] = own[30:50]
    other[20:30] = normalize(own[50:60] + 1e-3, dim=1)  # near, and another picture
    own[80:] = own[35]
    want = [row for row, image in enumerate(own) if any(torch.equal(image, one) for one in other)]
    assert shared_rows(Examples(own), Examples(other)) == want == [*range(30, 50), *range(80, 90)]
    assert shared_rows(Examples(own), Examples(other[:0])) == []


@pytest.mark.parametrize(("sizes", "count"), [((16, 17, 18), 0), ((16, 17, 12), 5)])
def test_pictures_are_the_same_where_their_bytes_are(tmp_path, monkeypatch, sizes, count):
    """Every picture of a colour has the same feature here."""
    monkeypatch.setattr(pretrained, "weights_hash", lambda dual: "colours")
    names = list(COLOURS)
    for split, own in (("train", sizes), ("test", (12, 13))):
        samples = [
            {"jpg": jpeg(name, size=size), "cls": str(names.index(name)).encode()} for name in names for size in own
        ]
        write_shard(tmp_path / f"{split}.tar", samples)
    file = tmp_path / "t.yaml"
    file.write_text(f"name: t\nsets: [{{dataset: d, train: train.tar, test: test.tar, names: {json.dumps(names)}}}]\n")
    tuning = load_tuning(file)
    encoder = Encoder(ColourDual(), quiet=True)
    if not count:
        assert FewShot().measure(Trial(Means(), open_stock(tuning.sets[0], tuning, encoder))).n == 10
        return
    with pytest.raises(ValueError, match=r"the same pictures in 5 of 15 of train \(train.tar:s0000002, "):
        open_stock(tuning.sets[0], tuning, encoder)
