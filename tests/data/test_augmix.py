"""AugMix: of the generator alone, between the picture and what its chains make, every change a picture of its size."""

from __future__ import annotations

import numpy as np
import torch

from vlp.data import augmix as module
from vlp.data.augmix import CHANGES, augmix


def picture(seed=0):
    return torch.randint(0, 256, (3, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_the_generator_decides():
    image = picture()
    one, same, other = (augmix(image, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (one.dtype, one.shape) == (torch.uint8, image.shape)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(image, picture())


def test_every_change_keeps_size_and_kind_at_every_severity():
    for change in CHANGES:
        for severity in (0.0, 1.0, 10.0):
            for seed in range(4):
                found = change(picture(), np.random.default_rng(seed), severity)
                assert (found.dtype, found.shape) == (torch.uint8, (3, 20, 24)), change


def test_the_mixture_by_loops(monkeypatch):
    """With changes that add 10 and 20 the chains are known."""
    added = []

    def plus(amount):
        def change(image, rng, severity):
            added[-1].append(amount)
            return image + amount

        return change

    monkeypatch.setattr(module, "CHANGES", (plus(10), plus(20)))
    image = picture() // 4
    for seed in range(5):
        rng = np.random.default_rng(seed)
        weights, keep = rng.dirichlet([1, 1, 1]), rng.beta(1, 1)
        added.clear()
        chains = []
        for _ in range(3):
            length = int(rng.integers(1, 4))
            chains.append(sum((10, 20)[int(rng.integers(2))] for _ in range(length)))
        added.append([])
        shift = (1 - keep) * sum(w * c for w, c in zip(weights, chains, strict=True))
        found = augmix(image, np.random.default_rng(seed))
        torch.testing.assert_close(found.float(), image.float() + shift, atol=0.51, rtol=0)
        assert sum(added[0]) == sum(chains)
