"""Bootstrap intervals against the normal approximation and a loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vlp.metrics import interval
from vlp.metrics.interval import of_class_means, of_means, of_median


def hits(n, share):
    return (torch.arange(n) < round(share * n)).double()


def test_equals_the_normal_interval_for_large_n():
    low, high = of_means(hits(4000, 0.3)[:, None])[0]
    half = 1.96 * math.sqrt(0.3 * 0.7 / 4000)
    assert low == pytest.approx(0.3 - half, abs=0.0015)
    assert high == pytest.approx(0.3 + half, abs=0.0015)


def test_is_seeded_and_does_not_depend_on_chunks(monkeypatch):
    values = torch.stack([hits(300, 0.1), hits(300, 0.8)], dim=1)
    first = of_means(values)
    assert first == of_means(values)
    assert first != of_means(values, seed=1)
    monkeypatch.setattr(interval, "CHUNK", 1000)
    assert first == of_means(values)


def test_columns_do_not_disturb_each_other():
    values = torch.stack([hits(300, 0.1), hits(300, 0.8)], dim=1)
    assert of_means(values)[1] == of_means(values[:, 1:])[0]


def test_groups_equal_a_loop_over_resampled_groups():
    values = torch.rand(12, 1, generator=torch.Generator().manual_seed(0)).double()
    groups = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 3, 3, 4, 4])
    rng, means = np.random.default_rng(0), []
    for row in rng.integers(0, 5, (1000, 5)):
        drawn = torch.cat([values[groups == g, 0] for g in row])
        means.append(float(drawn.mean()))
    low, high = of_means(values, groups=groups)[0]
    assert low == pytest.approx(np.quantile(means, 0.025))
    assert high == pytest.approx(np.quantile(means, 0.975))


def test_median_interval_equals_plain_resampling():
    ranks = torch.randint(1, 1000, (401,), generator=torch.Generator().manual_seed(1)).double()
    drawn = np.random.default_rng(3).choice(ranks.numpy(), (4000, 401))
    plain = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    assert of_median(ranks, n_boot=4000) == pytest.approx(tuple(plain), rel=0.05)


def test_class_means_equal_resampling_inside_classes():
    right, support = torch.tensor([3, 10, 0]), torch.tensor([6, 20, 5])
    low, high = of_class_means(right, support, n_boot=4000)
    rng = np.random.default_rng(5)
    means = np.stack(
        [rng.choice(np.arange(n) < k, (4000, n)).mean(axis=1) for k, n in zip(right.tolist(), support.tolist())]
    ).mean(axis=0)
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.02)


def test_nothing_measured_gives_nan():
    assert all(math.isnan(end) for end in of_means(torch.empty(0, 1))[0])
    assert all(math.isnan(end) for end in of_median(torch.empty(0)))
