"""Nearest class means against a loop over pictures and classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.adapters.blobs import ENCODER, accuracy, blobs
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.ncm import NearestMean


def mean_of(task, place):
    own = [row for row, label in zip(task.support.image, task.support.known.tolist(), strict=True) if label == place]
    return sum(own).double() / len(own)


def test_cosines_to_normalised_means_equal_the_loop(tmp_path):
    task, held = blobs(counts=(2, 5, 3, 1))
    classifier = NearestMean().fit(ENCODER, task)
    for image, logits in zip(held.image, classifier(held.image), strict=True):
        for place in range(4):
            mean = mean_of(task, place)
            want = 20 * float(image.double() @ mean / mean.norm())
            assert float(logits[place]) == pytest.approx(want, abs=1e-4)
    classifier.save(tmp_path)
    assert torch.equal(LinearClassifier.load(tmp_path)(held.image), classifier(held.image))
    assert classifier.about["selection"] == {"split": "none"}
    assert accuracy(classifier, held) > 0.8


def test_distances_to_plain_means_equal_the_loop():
    task, held = blobs(noise=1.0)
    logits = NearestMean(normalised=False).fit(ENCODER, task)(held.image)
    for image, own in zip(held.image, logits, strict=True):
        distance = torch.stack([(image.double() - mean_of(task, place)).square().sum() for place in range(4)])
        assert int(own.argmax()) == int(distance.argmin())
        torch.testing.assert_close(own.double().softmax(dim=0), (-10 * distance).softmax(dim=0), atol=1e-4, rtol=0)


def test_classes_without_pictures_are_named():
    task, _ = blobs()
    half = replace(task, support=task.support.only(torch.where(task.support.known % 2 == 0)[0]))
    with pytest.raises(
        ValueError, match="ncm learns every class from its pictures, and 2 of 4 have none: class 1, cla"
    ):
        NearestMean().fit(ENCODER, half)
    with pytest.raises(ValueError, match="NearestMean needs labelled pictures"):
        NearestMean().fit(ENCODER, replace(task, support=None))
