"""Logistic regression against scikit-learn, its stationary point, and the search for its strength."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy, normalize

from vlp.probe import logistic
from vlp.probe.logistic import Score, best, choose, fit, judge, search


def noisy(n=150, width=6, classes=4, seed=0, offset=2.0):
    """Unit features in a cone, as those of a model are, and classes of unequal size that overlap."""
    rng = torch.Generator().manual_seed(seed)
    label = torch.cat([torch.arange(classes), (torch.rand(n - classes, generator=rng) ** 2 * classes).long()])
    centres = torch.randn(classes, width, generator=rng, dtype=torch.float64)
    features = centres[label] + torch.randn(n, width, generator=rng, dtype=torch.float64) + offset
    return normalize(features, dim=1), label


def objective(weight, bias, features, label, C):
    return float(weight.square().sum() / 2 + C * cross_entropy(features @ weight.T + bias, label, reduction="sum"))


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("C", [0.01, 1.0, 30.0])
def test_equals_scikit_learn(C, intercept):
    features, label = noisy()
    peer = LogisticRegression(C=C, fit_intercept=intercept, tol=1e-9, max_iter=5000).fit(
        features.numpy(), label.numpy()
    )
    ours = fit(features, label, C=C, intercept=intercept, tolerance=1e-9)
    weight, bias = torch.from_numpy(peer.coef_), torch.from_numpy(peer.intercept_)
    assert ours.converged
    assert torch.allclose(ours.weight, weight, atol=1e-4)
    assert torch.allclose(ours.bias - ours.bias.mean(), bias - bias.mean(), atol=1e-4)
    assert intercept or not ours.bias.any()
    theirs = objective(weight, bias, features, label, C)
    assert objective(ours.weight, ours.bias, features, label, C) == pytest.approx(theirs, rel=1e-6)
    assert ours.loss == pytest.approx(theirs / (C * len(label)), rel=1e-6)


def test_two_classes_equal_scikit_learns_single_vector():
    features, label = noisy(classes=2)
    peer = LogisticRegression(C=3.0, tol=1e-9, max_iter=5000).fit(features.numpy(), label.numpy())
    ours = fit(features, label, C=3.0, tolerance=1e-9)
    assert torch.allclose(ours.weight[1] - ours.weight[0], torch.from_numpy(peer.coef_[0]), atol=1e-4)
    assert float(ours.bias[1] - ours.bias[0]) == pytest.approx(float(peer.intercept_[0]), abs=1e-4)


def test_blocks_of_rows_and_single_precision_change_nothing(monkeypatch):
    features, label = noisy()
    whole = fit(features, label, C=1.0)
    monkeypatch.setattr(logistic, "NUMBERS", 7 * 13)  # 13 rows of 7 numbers
    assert torch.allclose(fit(features, label, C=1.0).weight, whole.weight, atol=1e-5)
    assert torch.allclose(fit(features.float(), label, C=1.0).weight, whole.weight, atol=1e-4)


def test_the_gradient_vanishes_and_the_start_does_not_matter():
    features, label = noisy()
    found = fit(features, label, C=2.0)
    again = fit(features, label, C=2.0, start=fit(features, label, C=100.0))
    assert torch.allclose(found.weight, again.weight, atol=1e-4)
    weight, bias = found.weight.clone().requires_grad_(), found.bias.clone().requires_grad_()
    loss = cross_entropy(features @ weight.T + bias, label) + weight.square().sum() / (2 * 2.0 * len(label))
    loss.backward()
    assert loss.item() == pytest.approx(found.loss)
    assert max(float(weight.grad.abs().max()), float(bias.grad.abs().max())) < 1e-6
    assert fit(features, label, C=2.0, start=found, max_iter=2).converged  # nothing is left to do


@pytest.mark.parametrize("C", [1e-6, 1e-2, 1.0, 1e2])
def test_every_strength_of_the_search_converges_in_few_steps(C):
    features, label = noisy(width=20)
    found = fit(features * torch.logspace(-2, 1, 20), label, C=C, max_iter=200)  # of unequal scales
    assert found.converged


def test_separable_classes_are_separated_and_too_few_steps_are_said():
    features, label = torch.eye(3, dtype=torch.float64).repeat(4, 1), torch.arange(3).repeat(4)
    found = fit(features, label, C=1e4)
    assert found.converged
    assert judge(found, features, label).accuracy == 1.0
    assert judge(found, features, label).log_likelihood > -0.01
    hard, wrong = noisy()
    assert not fit(hard, wrong, C=1e6, max_iter=2).converged


def test_labels_with_a_gap_and_a_single_class_are_refused():
    features = torch.eye(4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"got 4 classes, without samples: \[1\]"):
        fit(features, torch.tensor([0, 2, 3, 0]), C=1.0)
    with pytest.raises(ValueError, match="at least 2 classes"):
        fit(features, torch.zeros(4, dtype=torch.long), C=1.0)


def test_the_search_finds_a_peak_between_the_first_candidates():
    tried = search(lambda C: Score(-abs(torch.tensor(C).log10().item() - 0.625), 0.0))
    assert best(tried) == pytest.approx(10**0.625)
    assert len(tried) <= 15
    assert list(tried)[:3] == pytest.approx([1e-6, 1e-4, 1e-2])


def test_the_search_stays_inside_its_range_and_prefers_the_stronger_penalty():
    high = search(lambda C: Score(C, 0.0))
    assert best(high) == pytest.approx(1e6) == max(high)
    even = search(lambda C: Score(0.5, 0.0))
    assert best(even) == pytest.approx(1e-6) == min(even)
    assert best({1.0: Score(0.5, -1.0), 10.0: Score(0.5, -0.5)}) == 10.0  # likelihood decides between equal accuracies


def test_choose_takes_the_best_on_validation():
    features, label = noisy(n=240)
    train, validation = (features[::2], label[::2]), (features[1::2], label[1::2])
    found = choose(train, validation)
    assert 7 < len(found.tried) <= 15
    assert found.tried[found.C] == max(found.tried.values())
    for C in (found.C, 1e-6, 1.0):
        score = judge(fit(*train, C=C), *validation)  # a start elsewhere makes no difference
        assert found.tried[C].accuracy == pytest.approx(score.accuracy)
        assert found.tried[C].log_likelihood == pytest.approx(score.log_likelihood, abs=1e-4)
    assert judge(found.fitted, *validation) == found.tried[found.C]
    assert choose(train, validation, max_iter=1).unconverged > 0


def test_a_probe_of_ties_is_never_right():
    flat = logistic.Logistic(torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 0.0, True)
    assert judge(flat, torch.randn(5, 2), torch.tensor([0, 1, 2, 0, 0])).accuracy == 0.0
