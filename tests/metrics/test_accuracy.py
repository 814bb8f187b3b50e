"""Accuracy against counting by hand, ties, merging, tables."""

from __future__ import annotations

import pytest
import torch

from vlp.metrics.accuracy import Accuracy
from vlp.metrics.chance import contains


def random_case(n=200, classes=7, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, classes, generator=rng), torch.randint(0, classes, (n,), generator=rng)


def test_equals_counting_by_hand():
    logits, label = random_case()
    accuracy = Accuracy(7)
    accuracy.update(logits, label)
    values = accuracy.compute()
    order = logits.argsort(dim=1, descending=True)
    assert values["acc1"] == pytest.approx(float((order[:, 0] == label).double().mean()))
    assert values["acc5"] == pytest.approx(float((order[:, :5] == label[:, None]).any(1).double().mean()))
    recalls = [float((order[label == c, 0] == c).double().mean()) for c in range(7)]
    assert values["mean_per_class_recall"] == pytest.approx(sum(recalls) / 7)
    assert torch.equal(accuracy.confusion(), loop_confusion(order[:, 0], label))


def loop_confusion(predicted, label):
    counts = torch.zeros(7, 7, dtype=torch.long)
    for true, guess in zip(label, predicted):
        counts[true, guess] += 1
    return counts


def test_equals_scikit_free_balanced_accuracy_with_a_missing_class():
    accuracy = Accuracy(3)
    accuracy.update(torch.tensor([[2.0, 1, 0], [0.0, 1, 2], [2.0, 1, 0]]), torch.tensor([0, 0, 1]))
    assert accuracy.compute()["mean_per_class_recall"] == 0.25  # class 0: 1 of 2, class 1: 0 of 1, class 2 left out


def test_constant_logits_are_misses_not_class_0():
    accuracy = Accuracy(4)
    accuracy.update(torch.zeros(6, 4), torch.zeros(6, dtype=torch.long))
    assert accuracy.compute() == {"acc1": 0.0, "mean_per_class_recall": 0.0}
    assert accuracy.confusion().diagonal().sum() == 0


def test_logits_that_are_not_numbers_are_misses():
    accuracy = Accuracy(3)
    accuracy.update(torch.full((2, 3), torch.nan), torch.tensor([0, 2]))
    assert accuracy.compute()["acc1"] == 0.0


def test_parts_merge_to_the_whole():
    logits, label = random_case()
    whole, left, right = Accuracy(7), Accuracy(7), Accuracy(7)
    whole.update(logits, label)
    left.update(logits[:13], label[:13])
    right.update(logits[13:], label[13:])
    left.merge(right)
    assert left.compute() == whole.compute()
    assert left.intervals() == whole.intervals()
    with pytest.raises(ValueError, match="7 and 3"):
        left.merge(Accuracy(3))


def test_labels_that_are_no_class_are_refused():
    with pytest.raises(ValueError, match=r"0\.\.2"):
        Accuracy(3).update(torch.zeros(1, 3), torch.tensor([3]))


def test_random_logits_reach_chance_and_their_interval_holds_it():
    logits, label = random_case(n=5000, classes=20)
    accuracy = Accuracy(20)
    accuracy.update(logits, label)
    chance, intervals = accuracy.chance(), accuracy.intervals()
    assert chance == {"acc1": 0.05, "acc5": 0.25, "mean_per_class_recall": 0.05}
    for name, value in accuracy.compute().items():
        assert intervals[name].low <= value <= intervals[name].high
        assert intervals[name].low <= chance[name] <= intervals[name].high


def test_no_samples_no_numbers():
    assert Accuracy(3).compute() == {}
    assert Accuracy(3).intervals() == {}


def test_one_answer_for_all_pictures_is_not_better_than_chance():
    accuracy = Accuracy(25)
    label = torch.arange(21).repeat(3)  # four of the names have no picture
    logits = torch.zeros(63, 25)
    logits[:, 0] = 1.0
    accuracy.update(logits, label)
    name = "mean_per_class_recall"
    assert accuracy.compute()[name] == pytest.approx(1 / 21)
    assert accuracy.chance()[name] == pytest.approx(1 / 21)
    assert Accuracy(25).chance()[name] == pytest.approx(1 / 25)
    assert contains(accuracy.chance()[name], accuracy.intervals()[name])
