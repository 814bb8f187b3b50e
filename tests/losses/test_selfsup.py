"""SimCLR and SimSiam against loops, algebra, and themselves in two processes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

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
)
from vlp.losses import LOSSES
from vlp.losses.selfsup import SimCLR, SimSiam
from vlp.types import Features

SMALL = {"hidden": 16}


def _simclr(features, batch, temperature):
    z, found = features.extra["simclr/views"], []
    anchors = [(i, v) for i in range(len(batch)) if batch.valid[i] for v in range(2)]
    for i, v in anchors:
        logits = {other: (z[i, v] @ z[other]) / temperature for other in anchors if other != (i, v)}
        partition = sum(logit.exp() for logit in logits.values())
        found.append(-(logits[i, 1 - v].exp() / partition).log())
    return sum(found) / len(found)


def _situation(make_batch, make_features):
    features, batch = awkward(make_batch, make_features)
    return with_extra(features, simclr_views=drawn(8, 2, 5, seed=1)), batch


@pytest.mark.parametrize("block", [None, 1, 3])
def test_simclr_equals_loops(make_batch, make_features, block):
    features, batch = _situation(make_batch, make_features)
    loss = LOSSES.build({"name": "simclr", "temperature": 0.3, "block": block})
    assert_equals(loss, lambda f: _simclr(f, batch, 0.3), features, batch)


def test_simclr_is_sound(make_batch, make_features, spawn):
    assert_sound(SimCLR(block=2), *_situation(make_batch, make_features), spawn)


def test_simclr_of_orthonormal_pairs(make_batch):
    """Each anchor has one positive at 1 and 2N - 2 negatives at 0."""
    eye = torch.eye(4, dtype=torch.float64)
    features = Features(eye, eye[:, None], torch.ones(1).double(), extra={"simclr/views": torch.stack([eye, eye], 1)})
    value = SimCLR(temperature=0.5)(features, make_batch(4))["simclr"].item()
    assert value == pytest.approx(math.log(1 + 6 * math.exp(-2)), abs=1e-12)
    one = features._replace(image=eye[:1], text=eye[:1, None], extra={"simclr/views": torch.stack([eye, eye], 1)[:1]})
    assert SimCLR()(one, make_batch(1))["simclr"].item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_the_head_makes_unit_embeddings_of_views_0_and_1(norm):
    model, batch = headed([SimCLR(norm=norm, **SMALL)]), real_batch(views=3)
    found = model(batch).extra["simclr/views"]
    assert found.shape == (6, 2, 256)
    for v in range(2):
        alone = model.encode_image(batch.extra["views"][:, v])
        expected = normalize(model.heads["simclr"].projector(alone), dim=-1)
        torch.testing.assert_close(found[:, v], expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("loss", [SimCLR(**SMALL), SimSiam(bottleneck=8, **SMALL)])
def test_alone_with_a_real_model(loss):
    assert_gradcache_exact([loss], real_batch(momentum=False))
    assert_learns([loss], real_batch(momentum=False))


def test_simsiam_is_the_symmetric_negative_cosine_with_a_fixed_target():
    loss = SimSiam(bottleneck=8, **SMALL)
    model, batch = headed([loss]), real_batch()
    features = model(batch)
    head, view = model.heads["simsiam"], model.encode_image(batch.extra["views"][:, 0])
    rows = []
    for i in range(len(batch)):
        z = [head.projector(x[i]) for x in (features.image, view)]
        p = [head.predictor(x) for x in z]
        rows.append(-sum((p[a] / p[a].norm()) @ (z[1 - a] / z[1 - a].norm()).detach() for a in range(2)) / 2)
    torch.testing.assert_close(features.extra["simsiam/error"], torch.stack(rows), atol=1e-9, rtol=0)
    kept = torch.stack([row for row, real in zip(rows, batch.valid, strict=True) if real])
    term = loss(features, batch)["simsiam"]
    torch.testing.assert_close(term, kept.mean(), atol=1e-9, rtol=0)
    ours = torch.autograd.grad(term, head.projector[0].weight, retain_graph=True)[0]
    theirs = torch.autograd.grad(kept.mean(), head.projector[0].weight)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)


def test_simsiam_is_sound(make_batch, make_features, spawn):
    features, batch = awkward(make_batch, make_features)
    loss = LOSSES.build("simsiam")
    features = with_extra(features, simsiam_error=drawn(8, seed=2))
    expected = features.extra["simsiam/error"][batch.valid].mean().item()
    assert loss(features, batch)["simsiam"].item() == pytest.approx(expected, abs=1e-12)
    assert_sound(loss, features, batch, spawn)


def test_the_tower_looks_at_the_views_once():
    model, batch, calls = headed([SimCLR(**SMALL), SimSiam(bottleneck=8, **SMALL)]), real_batch(), []
    run = model.image_tower.run
    model.image_tower.run = lambda pixels, tokens: calls.append(len(pixels)) or run(pixels, tokens=tokens)
    model(batch)
    assert calls == [6, 12]


def test_missing_views_are_explained():
    model = headed([SimCLR(**SMALL)])
    with pytest.raises(ValueError, match=r"simclr needs 2 extra view.*data\.views"):
        model(real_batch(views=0, momentum=False))
    with pytest.raises(ValueError, match=r"simclr needs 2 extra view.*the batch has 1"):
        model(real_batch(views=1, momentum=False))
