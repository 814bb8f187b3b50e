"""DeCLIP's multi-view and nearest-neighbour terms against loops, and themselves in two processes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.losses import loops
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
from vlp.losses import LOSSES
from vlp.losses.infonce import InfoNCE
from vlp.losses.multiview import MultiView, NearestText
from vlp.losses.objective import Objective
from vlp.losses.selfsup import SimCLR, SimSiam


def _situation(make_batch, make_features):
    features, batch = awkward(make_batch, make_features)
    return with_extra(features, multiview_image=drawn(8, 3, 6, seed=1)), with_momentum(batch, width=6)


def _multiview(features, batch, **settings):
    views = features.extra["multiview/image"].unbind(1)
    return sum(loops.infonce(features._replace(image=view), batch, **settings) for view in views) / len(views)


def test_multiview_equals_loops(make_batch, make_features):
    features, batch = _situation(make_batch, make_features)
    loss = LOSSES.build({"name": "multiview", "label_smoothing": 0.1})
    assert_equals(loss, lambda f: _multiview(f, batch, smoothing=0.1), features, batch)


def test_multiview_is_sound(make_batch, make_features, spawn):
    assert_sound(MultiView(), *_situation(make_batch, make_features), spawn)


def test_a_view_that_is_the_picture_gives_infonce(make_batch, make_features):
    features, batch = awkward(make_batch, make_features)
    same = features._replace(extra={"multiview/image": features.image[:, None]})
    assert MultiView()(same, batch)["multiview"].item() == pytest.approx(
        InfoNCE()(features, batch)["contrast"].item(), abs=1e-12
    )


def _nearest(features, batch, **settings):
    """Each caption's neighbour by a loop, then plain InfoNCE."""
    m = batch.memory
    text, found = features.text.detach().clone(), batch.caption_mask.clone()
    for i in range(len(batch)):
        for k in range(text.shape[1]):
            allowed = [q for q in range(7) if m["queue/filled"][q] and m["queue/label"][q] != batch.label[i]]
            if not allowed:
                found[i, k] = False
                continue
            text[i, k] = m["queue/text"][
                max(allowed, key=lambda q: float(features.text[i, k].detach() @ m["queue/text"][q]))
            ]
    return loops.infonce(features._replace(text=text), replace(batch, caption_mask=found), **settings)


def test_nearest_text_equals_loops(make_batch, make_features):
    features, batch = _situation(make_batch, make_features)
    loss = LOSSES.build({"name": "nearest_text", "image_to_text": 0.75})
    assert_equals(loss, lambda f: _nearest(f, batch, image_to_text=0.75), features, batch)


def test_nearest_text_is_sound(make_batch, make_features, spawn):
    assert_sound(NearestText(), *_situation(make_batch, make_features), spawn)


def test_an_empty_queue_gives_nothing(make_batch, make_features):
    features, batch = _situation(make_batch, make_features)
    empty = batch.plus({}, {"queue/filled": torch.zeros(7, dtype=torch.bool)})
    term = NearestText()(features, empty)["nearest"]
    assert term.item() == 0
    assert (torch.autograd.grad(term, features.image)[0] == 0).all()


def test_a_pair_does_not_find_itself(make_batch, make_features):
    features, batch = _situation(make_batch, make_features)
    own = batch.plus(
        {},
        {
            "queue/text": features.text.detach()[:7, 0],
            "queue/label": batch.label[:7],
            "queue/filled": torch.ones(7) > 0,
        },
    )
    found = NearestText()._neighbours(features, own)
    for i in range(7):
        places = (found.text[i, 0] == features.text[:7, 0]).all(1).nonzero().flatten().tolist()
        assert places
        assert all(batch.label[p] != batch.label[i] for p in places)


def test_with_a_real_model():
    batch = real_batch()
    for loss, least in ((MultiView(), 0.05), (NearestText(), 0.01)):
        assert_gradcache_exact([loss], batch)
        assert_learns([loss], batch, least=least)


def test_all_pairings_are_contrasted():
    """One extra view and two captions: with infonce beside it the four pairings of the paper, each on its own."""
    losses = [InfoNCE(weight=0.5), MultiView(weight=0.5)]
    model, batch = headed(losses), real_batch(views=1)
    batch = replace(batch, caption_mask=torch.ones_like(batch.caption_mask))
    features = model(batch)
    pairings = []
    for pictures in (batch.image, batch.extra["views"][:, 0]):
        for k in range(2):
            image, text = model.encode_image(pictures), features.text[:, k : k + 1]
            alone = replace(batch, caption_mask=batch.caption_mask[:, k : k + 1])
            pairings.append(loops.infonce(features._replace(image=image, text=text), alone))
    torch.testing.assert_close(Objective(losses)(features, batch).total, sum(pairings) / 4, atol=1e-9, rtol=0)
    assert len({round(pairing.item(), 6) for pairing in pairings}) == 4


def test_only_views_that_are_asked_for_are_encoded_and_each_once():
    """Heads that look at one, two and, with multiview, all of three views."""
    one, two, every = SimSiam(hidden=16, bottleneck=8), SimCLR(hidden=16, out=8), MultiView()
    batch = real_batch(views=3)
    for losses, number in (([one], 1), ([one, two], 2), ([two, one], 2), ([one, every, two], 3)):
        model, seen = headed(losses), []
        encode = model.encode_image
        model.encode_image = lambda image, encode=encode, seen=seen: (seen.append(image), encode(image))[1]
        features = model(batch)
        wanted = batch.extra["views"][:, :number]
        assert sum(map(len, seen)) == wanted.shape[0] * number
        assert sorted(x.sum().item() for part in seen for x in part) == sorted(
            x.sum().item() for x in wanted.flatten(0, 1)
        )
        if every in losses:
            expected = encode(wanted.flatten(0, 1)).unflatten(0, (6, 3))
            torch.testing.assert_close(features.extra["multiview/image"], expected, atol=1e-9, rtol=0)


def test_a_missing_queue_is_explained(make_batch, make_features):
    with pytest.raises(ValueError, match='no column "queue/text".*`momentum`.*`queue`'):
        NearestText()(make_features(3), make_batch(3))
