"""Weighted neighbours against a loop over queries."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from vlp.probe import neighbours as module
from vlp.probe.neighbours import neighbours, votes


def made(n=11, bank=40, width=5, classes=4):
    rng = torch.Generator().manual_seed(1)
    unit = [normalize(torch.randn(count, width, generator=rng, dtype=torch.float64), dim=1) for count in (n, bank)]
    return *unit, torch.randint(0, classes, (bank,), generator=rng)


def loop(query, bank, label, *, classes, k, temperature):
    """Votes [n, classes] of Wu et al., one query and one neighbour at a time."""
    rows = []
    for one in query:
        cosine = [(float(one @ other), int(own)) for other, own in zip(bank, label)]
        total = [0.0] * classes
        for value, own in sorted(cosine, reverse=True)[:k]:
            total[own] += math.exp(value / temperature)
        rows.append(total)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 7, 40])
def test_votes_equal_the_loop_up_to_the_weight_of_the_nearest(k):
    query, bank, label = made()
    found = votes(neighbours(query, bank, k=40), label, classes=4, k=k)
    expected = loop(query, bank, label, classes=4, k=k, temperature=0.07)
    scale = ((query @ bank.T).amax(dim=1) / 0.07).exp()
    assert torch.allclose(found, expected / scale[:, None])


def test_blocks_change_nothing(monkeypatch):
    query, bank, _ = made()
    whole = neighbours(query, bank, k=5)
    monkeypatch.setattr(module, "NUMBERS", 90)  # two queries a block
    parts = neighbours(query, bank, k=5)
    assert torch.equal(whole.row, parts.row)
    assert torch.allclose(whole.similarity, parts.similarity)


def test_a_small_temperature_leaves_the_nearest_and_a_large_one_counts():
    query, bank, label = made()
    found = neighbours(query, bank, k=9)
    sharp = votes(found, label, classes=4, k=9, temperature=1e-4)
    assert sharp.isfinite().all()
    assert torch.equal(sharp.argmax(1), label[found.row[:, 0]])
    flat = votes(found, label, classes=4, k=9, temperature=1e9)
    assert torch.allclose(flat.sum(1), torch.full((11,), 9.0, dtype=torch.float64))


def test_more_neighbours_than_there_are_is_refused():
    query, bank, _ = made(bank=3)
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"{k} neighbours of 3 samples; take at most 3"):
            neighbours(query, bank, k=k)
