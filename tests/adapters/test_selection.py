"""What is chosen, when nothing is, and how a wrapper says what was chosen inside of it."""

from __future__ import annotations

import pytest

from vlp.adapters.selection import NOTHING, Score, choices_of, choose


def test_of_equal_accuracies_the_likeliest_and_of_equals_the_first():
    scores = {"a": Score(0.5, -2.0), "b": Score(0.75, -3.0), "c": Score(0.75, -1.0), "d": Score(0.75, -1.0)}
    found = choose(scores, scores.__getitem__, split="train", unchosen="a")
    assert found.value == "c"
    assert found.selection == {"split": "train", "candidates": 4, "criterion": "acc1, then likelihood", "acc1": 0.75}


@pytest.mark.parametrize("likelihoods", [(-1.5, -1.5, -1.5), (-1.5, -1.5 + 1e-15, -1.5 - 1e-15), (-float("inf"),) * 3])
def test_where_all_are_equal_up_to_rounding_nothing_is_chosen(likelihoods):
    scores = {value: Score(0.25, one) for value, one in zip((0.1, 1.0, 10.0), likelihoods, strict=True)}
    found = choose(scores, scores.__getitem__, split="validation", unchosen=5.0)
    assert found.value == 5.0
    assert found.selection == {"split": "none", "candidates": 3, "equal_on": "validation"}
    scores[10.0] = Score(0.25, -1.4)
    assert choose(scores, scores.__getitem__, split="validation", unchosen=5.0).value == 10.0


def test_a_wrapper_says_what_was_chosen_inside():
    tip = {"split": "validation", "candidates": 4000, "alpha": 1.0}
    grid = {"split": "train", "candidates": 21}
    assert choices_of(NOTHING, [tip]) == {"split": "validation", "of": [tip]}
    assert choices_of(grid, [{"split": "none", "C": 1}]) == grid
    assert choices_of(grid, [NOTHING, tip]) == {"split": "validation", "candidates": 21, "of": [NOTHING, tip]}
    assert choices_of(tip, [grid])["split"] == "validation"
    leaky = choices_of(NOTHING, [choices_of(grid, [{"split": "test", "epoch": 3}])])
    assert (leaky["split"], leaky["of"][0]["split"]) == ("test", "test")
