"""Oracles of RankMe, alignment, uniformity and the gap; merging; calibration."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from vlp.metrics.calibration import Calibration
from vlp.metrics.health import Alignment, ModalityGap, RankMe, Uniformity


def unit(*shape, seed=0):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def rankme(features):
    state = RankMe()
    state.update(features)
    return state.compute()["rankme"]


def by_svd(features):
    """Garrido et al. 2023, eq. 1-2."""
    sigma = torch.linalg.svdvals(features.double())
    p = sigma / sigma.sum() + 1e-7
    return math.exp(-float((p * p.log()).sum()))


def test_rankme_oracles():
    line = torch.randn(50, 1) @ torch.randn(1, 16)
    assert rankme(line) == pytest.approx(1.0, abs=1e-3)
    assert rankme(torch.eye(16)) == pytest.approx(16, rel=1e-4)
    x = torch.randn(100, 16)
    assert rankme(x) == pytest.approx(rankme(1000 * x), rel=1e-6)
    assert rankme(torch.zeros(5, 4)) == 1.0


@pytest.mark.parametrize("shape", [(300, 24), (10, 24)])
def test_rankme_equals_the_svd(shape):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -4, 24)
    assert rankme(x) == pytest.approx(by_svd(x), rel=1e-4)


def test_rankme_does_not_centre():
    x = torch.randn(200, 8) * 0.01 + 1
    assert rankme(x) < 1.5 < rankme(x - x.mean(0))


def test_alignment_and_gap_by_hand():
    image, text = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[0.0, 1], [0, 1]])
    pairs, gap = Alignment(), ModalityGap()
    pairs.update(image, text)
    gap.update(image=image, text=text)
    assert pairs.compute()["alignment"] == pytest.approx(1.0)  # distances squared 2 and 0
    assert gap.compute()["modality_gap"] == pytest.approx(math.sqrt(0.5))


def test_uniformity_equals_pdist_and_does_not_depend_on_blocks():
    x = unit(50, 6)
    theirs = torch.pdist(x.double(), p=2).pow(2).mul(-2).exp().mean().log()  # Wang & Isola's code
    for block in (7, 1024):
        state = Uniformity(block=block)
        state.update(x)
        assert state.compute()["uniformity"] == pytest.approx(float(theirs), abs=1e-6)
    state = Uniformity()
    state.update(torch.ones(4, 4) / 2)
    assert state.compute()["uniformity"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("make", [RankMe, Uniformity])
def test_states_of_rows_merge(make):
    x = unit(40, 8)
    whole, left, right = make(), make(), make()
    whole.update(x)
    left.update(x[:11])
    right.update(x[11:])
    left.merge(right)
    assert left.compute() == pytest.approx(whole.compute())
    assert make().compute() == {}


def test_states_of_pairs_merge():
    image, text = unit(20, 4), unit(20, 4, seed=1)
    whole, left, right = ModalityGap(), ModalityGap(), ModalityGap()
    whole.update(image=image, text=text)
    left.update(image=image[:3], text=text[:5])
    right.update(image=image[3:], text=text[5:])
    left.merge(right)
    assert left.compute() == pytest.approx(whole.compute())
    first, second, both = Alignment(), Alignment(), Alignment()
    both.update(image, text)
    first.update(image[:9], text[:9])
    second.update(image[9:], text[9:])
    first.merge(second)
    assert first.compute() == pytest.approx(both.compute())
    assert Alignment().compute() == {} == ModalityGap().compute()


def loop_ece(logits, label, bins):
    """Guo et al. 2017, eq. 3."""
    p, guess = logits.softmax(1).max(1)
    total = 0.0
    for b in range(bins):
        inside = (p > b / bins) & (p <= (b + 1) / bins)
        if inside.any():
            gap = (guess == label)[inside].double().mean() - p[inside].double().mean()
            total += float(inside.double().mean() * gap.abs())
    return total


def test_ece_equals_the_loop_and_merges():
    rng = torch.Generator().manual_seed(0)
    logits, label = 2 * torch.randn(300, 5, generator=rng), torch.randint(0, 5, (300,), generator=rng)
    whole, left, right = Calibration(), Calibration(), Calibration()
    whole.update(logits, label)
    left.update(logits[:100], label[:100])
    right.update(logits[100:], label[100:])
    left.merge(right)
    assert whole.compute()["ece"] == pytest.approx(loop_ece(logits, label, 15), abs=1e-6)
    assert left.compute() == pytest.approx(whole.compute())
    sure = Calibration()
    sure.update(100 * torch.eye(3), torch.arange(3))
    assert sure.compute()["ece"] == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match="bins"):
        sure.merge(Calibration(bins=3))
