"""Long-CLIP's two contrasts against plain principal components, InfoNCE, and itself in two processes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.losses import loops
from tests.losses.compare import assert_equal, awkward
from tests.losses.extra import gradients, merged, one_rank, summed
from vlp.losses import LOSSES
from vlp.losses.infonce import InfoNCE
from vlp.losses.longclip import LongCLIP, principal

LOSS = LongCLIP(components=3, block=2)


def _by_loops(batch, *, components, smoothing=0.1):
    """Long and short contrast; components by the SVD of the rows that have a short caption."""

    def one(features, k):
        mask = torch.zeros_like(batch.caption_mask)
        mask[:, k] = batch.caption_mask[:, k]
        part = type(batch)(**{name: getattr(batch, name) for name in batch.__slots__} | {"caption_mask": mask})
        return loops.infonce(features, part, smoothing=smoothing)

    def fn(features):
        real = [i for i in range(len(batch)) if batch.valid[i] and batch.caption_mask[i, 1]]
        rows = torch.stack([features.image[i] for i in real])
        mean = rows.mean(0)
        _, _, basis = torch.linalg.svd(rows - mean, full_matrices=False)
        coarse = {i: sum(((row - mean) @ v) * v for v in basis[:components]) + mean for i, row in zip(real, rows)}
        image = torch.stack([coarse.get(i, torch.zeros_like(mean)) for i in range(len(batch))])
        return one(features, 0) + one(features._replace(image=image), 1)

    return fn


@pytest.mark.parametrize("components", [1, 2, 3])
def test_equals_loops(make_batch, make_features, components):
    features, batch = awkward(make_batch, make_features)
    found = gradients(summed(LongCLIP(components=components), batch), features)
    assert_equal(found, gradients(_by_loops(batch, components=components), features), atol=1e-9)


def test_all_components_leave_infonce(make_batch, make_features):
    features, batch = make_features(5, captions=2), make_batch(5, captions=2)
    found = gradients(summed(LongCLIP(components=6), batch), features)
    expected = gradients(summed(InfoNCE(label_smoothing=0.1, weight=1.0), batch), features)
    assert_equal(found, {name: 2 * x for name, x in expected.items()}, atol=1e-10)  # InfoNCE is the mean of two slots


def test_a_batch_smaller_than_the_components_is_left_as_it_is(make_batch, make_features):
    """Its rows span fewer directions, and the gradient of a plain eigenbasis would be infinite."""
    features, batch = make_features(4, captions=2, width=16), make_batch(4, captions=2)
    found = gradients(summed(LongCLIP(components=8), batch), features)
    expected = gradients(summed(InfoNCE(label_smoothing=0.1), batch), features)
    assert_equal(found, {name: 2 * x for name, x in expected.items()}, atol=1e-9)


def test_with_own_positives_labels_play_no_part(make_batch, make_features):
    features, repeated = awkward(make_batch, make_features)
    apart = replace(repeated, label=torch.arange(len(repeated)))
    found = gradients(summed(LongCLIP(components=3, positives="own"), repeated), features)
    assert_equal(found, gradients(summed(LongCLIP(components=3), apart), features))
    assert abs(found["value"] - summed(LongCLIP(components=3), repeated)(features)) > 0.01


def test_principal_components_by_hand():
    x = torch.tensor([[3.0, 1.0], [-3.0, -1.0], [1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64) + 5
    found = principal(x, torch.ones(4, dtype=torch.bool), components=1)
    centred = x - 5
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    along = vectors[:, 1]
    torch.testing.assert_close(found, (centred @ along)[:, None] * along + 5)


def test_the_gradient_through_the_components():
    torch.manual_seed(0)
    x = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    valid = torch.tensor([True] * 5 + [False, True])
    for components in (1, 2, 4, 9):
        assert torch.autograd.gradcheck(lambda x, n=components: principal(x, valid, components=n), x)


@pytest.mark.parametrize("garbage", [7.0, math.nan])
def test_empty_slots_leave_exactly(make_batch, make_features, garbage):
    kept = make_features(4, captions=2)
    expected = gradients(summed(LOSS, make_batch(4, captions=2)), kept)
    places = [0, 2, 3]
    image, text = torch.full((6, 6), garbage, dtype=torch.float64), torch.full((6, 2, 6), garbage, dtype=torch.float64)
    places = [0, 2, 3, 5]
    image[places], text[places] = kept.image.detach(), kept.text.detach()
    features = kept._replace(image=image.requires_grad_(), text=text.requires_grad_())
    batch = make_batch(6, captions=2, label=[1, 2, 3, 4, 4, 5], valid=[i in places for i in range(6)])
    found = gradients(summed(LOSS, batch), features)
    for name in ("image", "text"):
        assert found[name][[1, 4]].abs().max() == 0
        found[name] = found[name][places]
    assert_equal(found, expected, atol=1e-11)


def test_nothing_valid_is_zero_with_zero_gradient(make_batch, make_features):
    found = gradients(summed(LOSS, make_batch(3, captions=2, valid=[False] * 3)), make_features(3, captions=2))
    assert all((x == 0).all() for x in found.values())


def test_processes_equal_one(spawn, make_batch, make_features):
    features, batch = awkward(make_batch, make_features)
    ranks = spawn(one_rank, 2, [LOSS], features, batch)
    assert_equal(merged([rank[0] for rank in ranks], frozenset()), gradients(summed(LOSS, batch), features), atol=1e-10)


def test_finite_under_autocast_at_scale_100(make_batch, make_features):
    features, batch = (
        make_features(6, captions=2, width=64, scale=100.0, dtype=torch.float32),
        make_batch(6, captions=2),
    )
    with torch.autocast("cpu", torch.bfloat16):
        for components in (2, 32):
            found = gradients(summed(LongCLIP(components=components), batch), features)
            assert all(x.isfinite().all() for x in found.values())


def test_settings_and_what_is_missing(make_batch, make_features):
    loss = LOSSES.build({"name": "longclip", "components": 8})
    assert (loss.name, loss.label_smoothing) == ("longclip", 0.1)
    with pytest.raises(ValueError, match="two captions a picture, the long one first"):
        LOSS(make_features(3), make_batch(3))
