"""Chance levels against counting every order."""

from __future__ import annotations

from itertools import permutations
from statistics import mean

import pytest
import torch

from vlp.metrics import chance


def every_rank(candidates, positives):
    """Rank of the best of the first `positives` items in every order, other right ones aside."""
    return [min(order.index(p) for p in range(positives)) + 1 for order in permutations(range(candidates))]


@pytest.mark.parametrize("positives", [1, 2, 3])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_equal_to_counting_all_orders(positives, k):
    ranks = every_rank(5, positives)
    some = torch.tensor([positives])
    assert chance.recall_at(k, candidates=5, positives=some) == pytest.approx(mean(rank <= k for rank in ranks))
    assert chance.mean_rank(candidates=5, positives=some) == pytest.approx(mean(ranks))


def test_mixed_numbers_of_captions_average():
    both = chance.recall_at(2, candidates=9, positives=torch.tensor([1, 3]))
    each = [chance.recall_at(2, candidates=9, positives=torch.tensor([c])) for c in (1, 3)]
    assert both == pytest.approx(mean(each))


def test_median_rank_of_one_answer_is_the_middle():
    assert chance.median_rank(candidates=1002, positives=torch.tensor([1])) == 501
    assert chance.recall_at(10, candidates=4, positives=torch.tensor([1])) == 1.0


def test_contains_marks_what_is_not_shown_to_be_better():
    assert chance.contains(0.1, (0.05, 0.2))
    assert not chance.contains(0.1, (0.11, 0.2))
    assert chance.contains(0.1, (0.0, 0.0))  # no hit at all says nothing for the model
    assert not chance.contains(500.0, (100.0, 400.0), lower_is_better=True)
    assert chance.contains(500.0, (100.0, 600.0), lower_is_better=True)
