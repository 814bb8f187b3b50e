"""The logistic probe: its minimum, and C chosen on validation, by folds, or not at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import normalize

from tests.adapters.blobs import ENCODER, accuracy, blobs
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.linear import LinearProbe
from vlp.adapters.seen import seen
from vlp.adapters.selection import folds
from vlp.adapters.task import Examples
from vlp.probe import logistic


def test_a_given_C_is_that_of_scikit_learn():
    task, held = blobs(noise=1.0, dtype=torch.float64)
    classifier = LinearProbe(C=10.0).fit(ENCODER, task)
    peer = LogisticRegression(C=10.0, tol=1e-10, max_iter=2000).fit(task.support.image.numpy(), task.support.known)
    want = torch.from_numpy(peer.predict_proba(held.image.numpy()))
    torch.testing.assert_close(classifier(held.image).softmax(dim=1), want, atol=1e-5, rtol=0)
    assert classifier.about["selection"] == {"split": "none", "C": 10.0, "converged": True}


def test_C_is_the_best_on_validation_as_a_fit_for_each_says():
    task, _ = blobs(noise=1.5, validation=4)
    chosen = LinearProbe().fit(ENCODER, task).about["selection"]
    support, judge = task.support, task.validation
    want = logistic.choose((support.image, support.known), (judge.image, judge.known))
    assert (chosen["split"], chosen["C"], chosen["candidates"]) == ("validation", want.C, len(want.tried))
    assert chosen["acc1"] == want.tried[want.C].accuracy


def test_without_validation_folds_of_the_support_judge_and_a_lonely_class_is_no_gap():
    task, held = blobs(counts=(6, 6, 6, 1), noise=0.8)
    classifier = LinearProbe().fit(ENCODER, task)
    assert classifier.about["selection"]["split"] == "train"
    assert classifier(held.image).shape == (20, 4)
    assert accuracy(classifier, held) > 0.6
    again = LinearProbe().fit(ENCODER, task)
    assert torch.equal(classifier.weight, again.weight)


def test_only_pictures_of_classes_that_can_be_learned_judge():
    image = normalize(torch.randn(7, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    task, _ = blobs()
    support = Examples(image, torch.tensor([0, 0, 1, 1, 3, 3, 2]))
    for part in seen(folds(replace(task, support=support, text=None))):
        assert part.learn.known.unique().tolist() == list(range(len(part.classes)))
        assert set(part.judge.known.tolist()) <= set(range(len(part.classes)))


def test_one_shot_has_nothing_to_choose_on(tmp_path):
    task, held = blobs(shots=1)
    classifier = LinearProbe().fit(ENCODER, task)
    assert classifier.about["selection"] == {"split": "none", "C": 1.0, "converged": True}
    classifier.save(tmp_path)
    assert torch.equal(LinearClassifier.load(tmp_path)(held.image), classifier(held.image))
    with pytest.raises(ValueError, match="linear learns every class"):
        LinearProbe().fit(ENCODER, replace(task, support=task.support.only([0, 1])))
