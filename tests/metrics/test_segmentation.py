"""Segmentation against scikit-learn's confusion matrix and by hand; ignored pixels, ties, merging, resamples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix

from vlp.metrics.multilabel import resamples
from vlp.metrics.segmentation import Segmentation, predicted_classes


def random_case(pictures=12, classes=5, seed=0, *, ignored=0.1):
    rng = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, classes, (pictures, 6, 7), generator=rng)
    keep = torch.rand(truth.shape, generator=rng) < 0.6
    guess = torch.where(keep, truth, torch.randint(0, classes, truth.shape, generator=rng))
    return guess, torch.where(torch.rand(truth.shape, generator=rng) < ignored, 255, truth)


def state(predicted, truth, classes=5, **options):
    found = Segmentation(classes, **options)
    found.update(predicted, truth)
    return found


def from_confusion(counts):
    """The measures by their usual formulas."""
    hit, truth, guess = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    there, union = truth > 0, truth + guess - hit
    iou = hit[union > 0] / union[union > 0]
    return {
        "mean_iou": iou.mean(),
        "pixel_accuracy": hit.sum() / counts.sum(),
        "mean_class_accuracy": (hit[there] / truth[there]).mean(),
    }


def test_equals_scikit_learn():
    predicted, truth = random_case()
    valid = truth != 255
    counts = confusion_matrix(truth[valid], predicted[valid], labels=range(5))
    found = state(predicted, truth)
    assert np.array_equal(found.confusion().numpy(), counts)
    assert found.compute() == pytest.approx(from_confusion(counts))


def test_by_hand_with_background_and_an_absent_class():
    truth = torch.tensor([[[0, 0, 0, 1], [1, 1, 255, 255]]])
    predicted = torch.tensor([[[0, 0, 1, 1], [1, 2, 2, 0]]])
    found = state(predicted, truth, classes=4, background=0)
    assert found.class_iou() == [pytest.approx(2 / 3), 0.5, 0.0, None]
    assert found.compute() == {
        "mean_iou": pytest.approx((2 / 3 + 1 / 2 + 0) / 3),
        "mean_iou_foreground": pytest.approx(1 / 4),
        "pixel_accuracy": pytest.approx(4 / 6),
        "mean_class_accuracy": pytest.approx((2 / 3 + 2 / 3) / 2),
    }
    assert "mean_iou_foreground" not in state(predicted, truth, classes=4).compute()


def test_without_foreground_its_mean_is_left_out():
    nothing = torch.zeros(2, 3, 3, dtype=torch.long)
    found = state(nothing, nothing, classes=3, background=0)
    assert found.compute() == {"mean_iou": 1.0, "pixel_accuracy": 1.0, "mean_class_accuracy": 1.0}
    assert found.intervals(n_boot=10).keys() == found.compute().keys()


def test_pictures_of_any_size_in_any_parts_merge_to_the_whole():
    predicted, truth = random_case()
    whole, left, right = state(predicted, truth), state(predicted[:5], truth[:5]), Segmentation(5)
    for row in range(5, 12):
        right.update(predicted[row : row + 1], truth[row : row + 1])
    left.merge(right)
    assert left.compute() == whole.compute()
    assert left.class_iou() == whole.class_iou()
    assert left.intervals(n_boot=20) == whole.intervals(n_boot=20)
    assert torch.equal(left.confusion(), whole.confusion())
    left.update(torch.zeros(1, 2, 9, dtype=torch.uint8), torch.zeros(1, 2, 9, dtype=torch.uint8))
    with pytest.raises(ValueError, match="cannot merge"):
        left.merge(Segmentation(5, background=0))


def test_intervals_draw_pictures():
    predicted, truth = random_case()
    values = []
    for times in torch.cat(list(resamples(torch.zeros(12, dtype=torch.long), n_boot=40, seed=0))):
        rows = torch.arange(12).repeat_interleave(times)
        values.append(state(predicted[rows], truth[rows], background=1).compute())
    found = state(predicted, truth, background=1).intervals(n_boot=40)
    assert found.keys() == values[0].keys()
    for name, ends in found.items():
        assert ends == pytest.approx(tuple(np.quantile([v[name] for v in values], [0.025, 0.975]))), name


def test_guessing_reaches_chance():
    rng = torch.Generator().manual_seed(0)
    truth = (torch.rand(8, 150, 150, generator=rng) * 2.2).long()  # unequal classes, and two that are never true
    found = state(torch.randint(0, 5, truth.shape, generator=rng), truth, background=0)
    chance = found.chance()
    assert (chance["pixel_accuracy"], chance["mean_class_accuracy"]) == pytest.approx((0.2, 0.2))
    for name, value in found.compute().items():
        assert value == pytest.approx(chance[name], rel=0.03), name


def test_ties_and_missing_scores_count_against_the_model():
    truth = torch.tensor([[[0, 1, 2, 255]]])
    assert (predicted_classes(torch.zeros(1, 3, 1, 4), truth) != truth).all()
    assert (predicted_classes(torch.full((1, 3, 1, 4), torch.nan), truth) != truth).all()
    assert (predicted_classes(torch.full((1, 3, 1, 4), torch.inf), truth) != truth).all()
    scores = torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    _, truth = random_case(pictures=2)
    assert torch.equal(predicted_classes(scores, truth), scores.argmax(dim=1))
    found = state(predicted_classes(torch.zeros(2, 5, 6, 7), truth), truth)
    assert found.compute()["mean_iou"] == 0


def test_wrong_input_is_refused_and_nothing_gives_nothing():
    empty, zeros = Segmentation(3), torch.zeros(1, 2, 2, dtype=torch.long)
    assert (empty.compute(), empty.intervals(), empty.chance()) == ({}, {}, {})
    with pytest.raises(ValueError, match="resize"):
        empty.update(zeros, torch.zeros(1, 3, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"truth has values 7\.\.7"):
        empty.update(zeros, zeros + 7)
    with pytest.raises(ValueError, match=r"prediction has values 3\.\.3"):
        empty.update(zeros + 3, zeros)
    with pytest.raises(ValueError, match="background is 3"):
        Segmentation(3, background=3)
    empty.update(zeros, zeros + 255)
    assert (empty.compute(), empty.intervals(), empty.chance()) == ({}, {}, {})
