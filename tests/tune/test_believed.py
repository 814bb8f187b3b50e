"""Pseudolabels in records: counted by loops, and their truth shut away until fitting is over."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.tune.doubles import NAMES, arrays, write
from tests.tune.test_protocols import measure
from vlp.adapters import ADAPTERS
from vlp.adapters.adapter import Adapter, class_weights
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.gda_em import GdaEm
from vlp.adapters.pseudolabels import counted
from vlp.adapters.tfup import Tfup
from vlp.adapters.tfup_t import TfupT
from vlp.adapters.zeroshot import ZeroShot
from vlp.tune.believed import truth_of
from vlp.tune.folder import read_folder
from vlp.tune.guard import GuardError
from vlp.tune.protocols import FewShot, Trial
from vlp.tune.support import choose_rows, give
from vlp.tune.trial import run_trial, say


class Believes(Adapter):
    """Takes every picture for the first class, and the first one also for the second."""

    wants = ("unlabelled",)

    def fit(self, encoder, task):
        pool = self.given(task, "unlabelled")
        assert pool.label is None
        said = {"rows": [*range(len(pool)), 0], "label": [0] * len(pool) + [1]}
        about = {"pseudolabels": {**said, "keys": [*pool.keys, pool.keys[0]]}}
        return LinearClassifier(class_weights(encoder, task), names=task.names, about=about)

    def transfer(self, encoder, classifier, task):
        return LinearClassifier(class_weights(encoder, task), names=task.names)


@pytest.fixture
def stock(tmp_path):
    found = arrays()
    found["train"] |= {"keys": np.arange(60)}
    return read_folder(write(tmp_path / "features", found))


METHODS = [Tfup(least=2, most=3), TfupT(epochs=2, least=2), GdaEm(), Believes()]
OWN = [(protocol, method) for protocol in ("few_shot", "unsupervised", "open_set") for method in METHODS]


@pytest.mark.parametrize(("protocol", "adapter"), [*OWN, ("base_to_new", METHODS[-1])])
def test_every_pair_is_counted_against_train(stock, adapter, protocol):
    found = measure(protocol, adapter, stock, shots=None if protocol == "unsupervised" else 3)
    said, classes = found.classifier.about["pseudolabels"], len(found.classifier.names)
    truth = [int(stock.train.known[int(key)]) for key in said["keys"]]
    own = found.pseudolabels
    for c, one in enumerate(own["by_class"]):
        pairs = [true for true, pseudo in zip(truth, said["label"], strict=True) if pseudo == c]
        pictures = 10 if protocol == "unsupervised" else 7  # three of ten were drawn
        right = sum(true == c for true in pairs)
        assert one == {"name": NAMES[c], "pictures": pictures, "given": len(pairs), "right": right}
    assert len(own["by_class"]) == classes == (6 if protocol in ("few_shot", "unsupervised") else 3)
    right = sum(true == pseudo for true, pseudo in zip(truth, said["label"], strict=True))
    assert own["accuracy"] == pytest.approx(right / len(truth))
    assert (own["pairs"], own["unknown"]) == (len(truth), 0)


def test_the_truth_is_shut_away_until_fitting_is_over(stock):
    given = give(stock, choose_rows(stock, None, shots=0))
    with pytest.raises(GuardError, match="unlabelled pictures were asked for before fitting"):
        truth_of(stock, given)
    with stock.test.fitting(), pytest.raises(GuardError, match="before fitting"):
        truth_of(stock, given)
    assert truth_of(stock, given).tolist() == stock.train.known.tolist()
    assert stock.test.reads.total() == 0  # these are no test labels


def test_a_pool_of_its_own_may_have_labels_for_the_report_or_none(tmp_path):
    found = arrays()
    found["unlabeled"] = {"image": found["train"]["image"][:20]}
    without = read_folder(write(tmp_path / "without", found))
    assert measure("few_shot", GdaEm(), without).pseudolabels is None
    label = found["train"]["label"][:20].copy()
    label[:5] = -1
    found["unlabeled"]["label"] = label
    with_some = read_folder(write(tmp_path / "some", found))
    assert with_some.unlabelled.label is None
    own = measure("few_shot", GdaEm(), with_some).pseudolabels
    assert (own["pairs"], own["unknown"], sum(one["pictures"] for one in own["by_class"])) == (15, 5, 15)
    found["unlabeled"]["label"] = label - 1
    with pytest.raises(ValueError, match=r"unlabeled.npz: label: row 0 has -2 .* labels are -1 to 5"):
        measure("few_shot", GdaEm(), read_folder(write(tmp_path / "bad", found)))


def test_a_method_without_pseudolabels_has_none_and_a_line_says_which_classes_are_worst(stock, capsys, monkeypatch):
    monkeypatch.setitem(ADAPTERS.entries, "believes", f"{Believes.__module__}:{Believes.__qualname__}")
    run = run_trial(Trial(Believes(), stock), FewShot(), code="test")
    assert run.record.pseudolabels["accuracy"] == pytest.approx(10 / 61)
    say(run.record)
    assert "pseudolabels: 16.4 % of 61 right; least bee 0/1, ant 10/60; 4 classes got none" in capsys.readouterr().err
    assert measure("few_shot", ZeroShot(), stock).pseudolabels is None


def test_labels_for_reports_alone_are_not_asked_for_where_nothing_is_reported(stock):
    def broken():
        raise ValueError("asked")

    pool = replace(stock, unlabelled=stock.train.unlabelled(), unlabelled_label=broken)
    assert measure("few_shot", ZeroShot(), pool).pseudolabels is None
    with pytest.raises(ValueError, match="asked"):
        measure("few_shot", GdaEm(), pool)


def test_pairs_beyond_the_classes_are_wrong_and_unknown_ones_left_out():
    found = counted(
        torch.tensor([0, 0, 1, 2, 3]), torch.tensor([0, 1, 1, 0, 0]), torch.tensor([0, 1, -1, 4]), classes=2
    )
    assert [one.tolist() for one in found] == [[1, 1], [2, 2], [1, 1]]
    with pytest.raises(ValueError, match="picture 9, but there are labels of 1"):
        counted(torch.tensor([9]), torch.tensor([0]), torch.tensor([0]), classes=1)
