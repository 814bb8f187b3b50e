"""Mean average precision against scikit-learn, CLIP_benchmark's definition and loops; ties, merging, resamples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from vlp.metrics import multilabel
from vlp.metrics.multilabel import MeanAveragePrecision, percentiles, percentiles_of, resamples


def random_case(n=150, classes=6, seed=0, *, levels=None):
    rng = torch.Generator().manual_seed(seed)
    scores, labels = torch.randn(n, classes, generator=rng), torch.rand(n, classes, generator=rng) < 0.2
    return (scores if levels is None else (scores * levels).round()), labels


def state(scores, labels):
    found = MeanAveragePrecision(scores.shape[1])
    found.update(scores, labels)
    return found


def loop(scores, labels):
    """From the definition: each right one's precision, wrong ones that score as much counted ahead of it."""
    found = []
    for score, label in zip(scores.T.tolist(), labels.T.tolist()):
        right = sorted((s for s, is_right in zip(score, label) if is_right), reverse=True)
        wrong = [s for s, is_right in zip(score, label) if not is_right]
        precisions = [(j + 1) / (j + 1 + sum(w >= s for w in wrong)) for j, s in enumerate(right)]
        found.append(sum(precisions) / len(precisions) if precisions else math.nan)
    return found


def test_equals_scikit_learn_where_nothing_ties():
    scores, labels = random_case()
    theirs = [average_precision_score(label, score) for score, label in zip(scores.T.numpy(), labels.T.numpy())]
    assert state(scores, labels).table().average_precision.tolist() == pytest.approx(theirs, abs=1e-12)
    assert state(scores, labels).compute() == {"mean_average_precision": pytest.approx(np.mean(theirs))}


def test_equals_the_definition_of_clip_benchmark_where_nothing_ties():
    """Re-stated: sort a column, and average the running precision over the places of the right ones."""
    scores, labels = random_case(n=400)
    theirs = []
    for score, label in zip(scores.T, labels.T):
        hit = label[score.sort(descending=True).indices]
        theirs.append(float((hit.cumsum(0) / torch.arange(1, 401))[hit].mean()))
    assert state(scores, labels).compute()["mean_average_precision"] == pytest.approx(np.mean(theirs), abs=1e-6)


def test_by_hand():
    # class 0: right at places 1 and 3 of 4: (1 + 2/3) / 2; class 1: right at place 4 alone: 1/4
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.4], [0.7, 0.3], [0.6, 0.2]])
    labels = torch.tensor([[True, True], [False, False], [True, False], [False, False]])
    assert state(scores, labels).compute()["mean_average_precision"] == pytest.approx((5 / 6 + 1 / 4) / 2)
    assert state(scores, labels).table().support.tolist() == [2, 1]


@pytest.mark.parametrize("levels", [1, 3])
def test_ties_count_against_the_model_as_in_the_loop(levels):
    scores, labels = random_case(levels=levels)
    ours = state(scores, labels).table().average_precision
    assert ours.tolist() == pytest.approx(loop(scores, labels))
    theirs = [average_precision_score(label, score) for score, label in zip(scores.T.numpy(), labels.T.numpy())]
    assert all(a < b for a, b in zip(ours.tolist(), theirs))


def test_constant_and_missing_scores_are_the_worst_order():
    labels = torch.tensor([[True], [False], [False]])
    for scores in (torch.zeros(3, 1), torch.full((3, 1), torch.nan), torch.tensor([[torch.nan], [-9.0], [1.0]])):
        assert state(scores, labels).compute() == {"mean_average_precision": pytest.approx(1 / 3)}


def test_a_class_without_a_sample_is_left_out_and_counted():
    scores, labels = random_case(classes=3)
    labels[:, 1] = False
    found = state(scores, labels)
    both = state(scores[:, [0, 2]], labels[:, [0, 2]])
    assert found.skipped == {"class_without_a_sample": 1}
    assert both.skipped == {}
    assert found.table().average_precision.isnan().tolist() == [False, True, False]
    assert (found.compute(), found.intervals(n_boot=50), found.chance()) == (
        both.compute(),
        both.intervals(n_boot=50),
        both.chance(),
    )


def test_parts_merge_to_the_whole():
    scores, labels = random_case()
    whole, left, right = state(scores, labels), state(scores[:31], labels[:31]), state(scores[31:], labels[31:])
    left.merge(right)
    assert left.compute() == whole.compute()
    assert left.intervals(n_boot=20) == whole.intervals(n_boot=20)
    with pytest.raises(ValueError, match="6 and 2"):
        left.merge(MeanAveragePrecision(2))


@pytest.mark.parametrize("levels", [None, 2])
def test_the_interval_is_that_of_resampled_samples(levels, monkeypatch):
    scores, labels = random_case(n=40, classes=3, levels=levels)
    labels[:, 2] = torch.arange(40) == 7  # absent from a third of the resamples
    ours = state(scores, labels).intervals(n_boot=60)["mean_average_precision"]
    values = []
    for times in torch.cat(list(resamples(torch.zeros(40, dtype=torch.long), n_boot=60, seed=0))):
        rows = torch.arange(40).repeat_interleave(times)
        values.append(np.nanmean(loop(scores[rows], labels[rows])))
    assert ours == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))
    monkeypatch.setattr(multilabel, "CHUNK", 100)
    assert state(scores, labels).intervals(n_boot=60)["mean_average_precision"] == ours


def test_random_scores_reach_chance():
    states = [state(*random_case(n=60, classes=4, seed=seed)) for seed in range(60)]
    values = [s.compute()["mean_average_precision"] for s in states]
    chances = [s.chance()["mean_average_precision"] for s in states]
    assert np.mean(values) == pytest.approx(np.mean(chances), rel=0.02)


def test_resamples_draw_each_stratum_for_itself():
    strata = torch.tensor([1, 0, 1, 1, 0])
    times = torch.cat(list(resamples(strata, n_boot=400, seed=3)))
    assert times.shape == (400, 5)
    assert (times[:, strata == 0].sum(1) == 2).all()
    assert (times[:, strata == 1].sum(1) == 3).all()
    assert times.double().mean(0).tolist() == pytest.approx([1] * 5, abs=0.2)


def test_percentiles_leave_out_what_is_undefined():
    draws = torch.arange(101.0)
    assert percentiles(torch.cat([draws, torch.full((7,), torch.nan)])) == pytest.approx((2.5, 97.5))
    assert all(math.isnan(end) for end in percentiles(torch.empty(0)))
    assert percentiles_of([{"a": draws[:50]}, {"a": draws[50:]}]) == {"a": percentiles(draws)}


def test_wrong_input_is_refused_and_nothing_gives_nothing():
    empty = MeanAveragePrecision(3)
    assert (empty.compute(), empty.intervals(), empty.chance()) == ({}, {}, {})
    with pytest.raises(ValueError, match="3 columns"):
        empty.update(torch.zeros(2, 4), torch.zeros(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="booleans"):
        empty.update(torch.zeros(2, 3), torch.zeros(2, 3))
