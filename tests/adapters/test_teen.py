"""Prototype calibration against a loop, which classes are base classes, and nothing where it is off."""

from __future__ import annotations

import math

import pytest
import torch

from tests.adapters.blobs import ENCODER, accuracy, blobs
from vlp.adapters.ncm import NearestMean
from vlp.adapters.teen import Teen


@pytest.mark.parametrize("base", [3, ("class 0", "class 1", "class 2"), None])
def test_new_prototypes_equal_the_loop(base):
    task, _ = blobs(classes=5, counts=(20, 18, 19, 2, 3), dtype=torch.float64)
    classifier = Teen(base=base, shift=0.3, temperature=7.0).fit(ENCODER, task)
    assert classifier.about["base"] == ["class 0", "class 1", "class 2"]
    mean = [task.support.image[task.support.known == c].mean(dim=0) for c in range(5)]
    mean = [one / one.norm() for one in mean]
    for new in (3, 4):
        share = [math.exp(7.0 * float(mean[new] @ mean[c])) for c in range(3)]
        pull = sum(own / sum(share) * mean[c] for c, own in enumerate(share))
        want = 0.7 * mean[new] + 0.3 * pull / pull.norm()
        torch.testing.assert_close(classifier.weight[new], want / want.norm())
    torch.testing.assert_close(classifier.weight[:3], torch.stack(mean[:3]))


def test_without_shift_it_is_the_nearest_mean_bit_for_bit():
    task, held = blobs(counts=(20, 20, 2, 2))
    plain = NearestMean().fit(ENCODER, task)
    assert torch.equal(Teen(shift=0).fit(ENCODER, task)(held.image), plain(held.image))
    assert accuracy(Teen(shift=0.1).fit(ENCODER, task), held) > 0.8


def test_base_classes_must_be_some_of_the_classes():
    task, _ = blobs()
    with pytest.raises(ValueError, match="every class has 6 pictures.*set `base`"):
        Teen().fit(ENCODER, task)
    for base in (0, 4, 9):
        with pytest.raises(ValueError, match="it needs some, and some new"):
            Teen(base=base).fit(ENCODER, task)
    with pytest.raises(ValueError, match='base: no class for 1 of 1 classes: "clas 1"; did you mean "class 1"'):
        Teen(base=("clas 1",)).fit(ENCODER, task)
