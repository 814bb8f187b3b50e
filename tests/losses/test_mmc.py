"""Masked momentum contrast: its three terms against loops, and the mask against what it must hide."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.losses.compare import awkward
from tests.losses.heads import (
    assert_equals,
    assert_gradcache_exact,
    assert_learns,
    assert_sound,
    drawn,
    headed,
    real_batch,
    with_extra,
    with_momentum,
)
from tests.losses.test_masked_image import CONVOLUTIONS
from vlp.losses import LOSSES
from vlp.losses.mmc import MMC, local_error, masked_error

SMALL = {"hidden": 16}


def _situation(make_batch, make_features):
    features, batch = awkward(make_batch, make_features)
    made = {"mmc_masked": drawn(8, seed=2).abs(), "mmc_local": drawn(8, seed=3).abs()}
    return with_extra(features, mmc_image=drawn(8, 2, 6, seed=1), **made), with_momentum(batch, width=6)


def _mmc(features, batch, loss):
    e, t = features.extra, batch.extra["momentum/view_image"]
    real = [i for i in range(len(batch)) if batch.valid[i]]
    found = []
    for i in real:
        for v in range(2):
            logits = {j: (e["mmc/image"][i, v] @ t[j, 1 - v]) / loss.temperature for j in real}
            partition = sum(logit.exp() for logit in logits.values())
            found.append(-0.5 * loss.contrast * (logits[i].exp() / partition).log())
        found.append(loss.masked * e["mmc/masked"][i] + loss.local * e["mmc/local"][i])
    return sum(found) / len(real)


@pytest.mark.parametrize("settings", [{}, {"masked": 0.5, "local": 2.0, "contrast": 0.3, "block": 2}])
def test_equals_loops(make_batch, make_features, settings):
    features, batch = _situation(make_batch, make_features)
    loss = LOSSES.build({"name": "mmc", **settings})
    assert_equals(loss, lambda f: _mmc(f, batch, loss), features, batch)


def test_is_sound(make_batch, make_features, spawn):
    assert_sound(MMC(), *_situation(make_batch, make_features), spawn)


def test_the_errors_of_tokens_equal_loops():
    torch.manual_seed(1)
    guess, tokens, pooled = drawn(3, 2, 5, 4, seed=1), drawn(3, 2, 5, 4, seed=2), drawn(3, 2, 4, seed=3)
    masked = torch.rand(3, 2, 5).argsort(-1) < 2
    near, far = masked_error(guess, tokens, masked), local_error(guess, tokens, pooled, temperature=0.2)
    for b in range(3):
        places = masked[b].nonzero().tolist()
        by_hand = sum(1 - guess[b, v, p] @ tokens[b, v, p] for v, p in places) / len(places)
        assert near[b].item() == pytest.approx(by_hand.item(), abs=1e-12)
        by_hand = 0
        for v in range(2):
            weights = [((tokens[b, v, p] @ pooled[b, 1 - v]) / 0.2).exp() for p in range(5)]
            for p in range(5):
                by_hand += weights[p] / sum(weights) * (1 - guess[b, v, p] @ pooled[b, 1 - v]) / 2
        assert far[b].item() == pytest.approx(by_hand.item(), abs=1e-12)


def test_masked_patches_are_not_seen():
    """The student's outputs do not depend on the pixels under its mask; those of other patches they do."""
    loss = MMC(**SMALL)
    model, batch = headed([loss]), real_batch()
    torch.manual_seed(4)
    order = torch.rand(12, 16).argsort(dim=1).reshape(6, 2, 16)

    def with_patch(which):
        views = batch.extra["views"].clone()
        for b in range(6):
            for v in range(2):
                top, left = divmod(int(order[b, v, which]), 4)
                views[b, v, :, 8 * top : 8 * top + 8, 8 * left : 8 * left + 8] = 7
        torch.manual_seed(4)
        return model(batch.plus({"views": views})).extra

    torch.manual_seed(4)
    plain, hidden, seen = model(batch).extra, with_patch(0), with_patch(15)
    for name, x in plain.items():
        torch.testing.assert_close(hidden[name], x, atol=1e-12, rtol=0)
        assert (seen[name] - x).abs().max() > 1e-6


def test_with_a_real_model():
    batch = real_batch()
    assert_gradcache_exact([MMC(**SMALL)], batch)
    assert_learns([MMC(**SMALL)], batch)


def test_what_is_missing_is_explained():
    with pytest.raises(ValueError, match="mmc masks the patches of an open_clip ViT"):
        headed([MMC()], CONVOLUTIONS)
    model, batch = headed([MMC(**SMALL)]), real_batch()
    with pytest.raises(ValueError, match=r'no column "momentum/view_image".*view_tokens'):
        model(replace(batch, extra={"views": batch.extra["views"]}))
