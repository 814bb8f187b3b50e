"""MURAL's contrast between captions of a picture: against loops, in two processes, and where it must not look."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.losses import loops
from tests.losses.compare import AWKWARD
from tests.losses.heads import assert_ddp_exact, assert_equals, assert_sound, real_batch
from vlp.losses import LOSSES
from vlp.losses.text_pairs import TextPairs


def _situation(make_batch, make_features):
    """Three captions a picture, the first or a later one missing here and there, empty slots, repeated labels."""
    mask = [[1, 1, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1], [0, 1, 1], [1, 1, 1], [1, 0, 0], [1, 0, 0]]
    marks = AWKWARD | {"captions": 3, "caption_mask": [[bool(x) for x in row] for row in mask]}
    return make_features(8, captions=3, bias=-2.0), make_batch(**marks)


def _loops(features, batch, **settings):
    first = replace(
        batch,
        valid=batch.valid & batch.caption_mask[:, 0],
        caption_mask=batch.caption_mask[:, 1:],
        text=batch.text[:, 1:],
    )
    return loops.infonce(features._replace(image=features.text[:, 0], text=features.text[:, 1:]), first, **settings)


def test_equals_loops(make_batch, make_features):
    features, batch = _situation(make_batch, make_features)
    loss = LOSSES.build({"name": "text_pairs", "image_to_text": 0.75})
    assert_equals(loss, lambda f: _loops(f, batch, image_to_text=0.75), features, batch)


def test_is_sound(make_batch, make_features, spawn):
    assert_sound(TextPairs(), *_situation(make_batch, make_features), spawn)


def test_alone_it_leaves_no_parameter_without_a_gradient(spawn):
    """DDP would wait for those of the image tower, and a second step would fail."""
    assert_ddp_exact([TextPairs()], [real_batch(views=0, momentum=False)], spawn)


def test_pictures_and_lonely_captions_take_no_part(make_batch, make_features):
    features, batch = _situation(make_batch, make_features)
    text = features.text.detach().clone()
    text[[4, 6, 7]] *= -1  # without a first caption, without a second one, twice
    changed = features._replace(text=text, image=-features.image)
    assert TextPairs()(changed, batch)["text_pairs"].item() == pytest.approx(
        TextPairs()(features, batch)["text_pairs"].item(), abs=1e-12
    )


def test_one_caption_a_picture_is_an_error_that_says_what_to_set(make_batch, make_features):
    with pytest.raises(ValueError, match="data.captions=2"):
        TextPairs()(make_features(3), make_batch(3))
