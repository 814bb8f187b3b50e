"""InfoNCE against loops, open_clip, algebra, and itself in two processes."""

from __future__ import annotations

import math

import pytest
import torch
from open_clip.loss import ClipLoss

from tests.losses import loops
from tests.losses.compare import assert_equal, awkward, merged, one_rank, only_term, value_and_gradients
from vlp.losses import LOSSES
from vlp.losses.infonce import InfoNCE
from vlp.types import Features

SETTINGS = [
    {},
    {"label_smoothing": 0.1},
    {"image_to_text": 0.75, "temperature": 0.1},
    {"image_to_text": 0.0, "label_smoothing": 0.3},
]


def _by_loops(settings, batch):
    return lambda features: loops.infonce(
        features,
        batch,
        smoothing=settings.get("label_smoothing", 0.0),
        image_to_text=settings.get("image_to_text", 0.5),
        scale=1 / settings["temperature"] if "temperature" in settings else None,
    )


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("how", [{"impl": "reference"}, {"block": 3}, {"block": 1}, {}])
def test_equals_loops(make_batch, make_features, settings, how):
    features, batch = awkward(make_batch, make_features)
    found = value_and_gradients(only_term(InfoNCE(**settings, **how), batch), features)
    assert_equal(found, value_and_gradients(_by_loops(settings, batch), features))


@pytest.mark.parametrize("num", [1, 7])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_equals_open_clip(make_batch, make_features, num, dtype, atol):
    features = make_features(num, width=16, scale=30.0, dtype=dtype)
    found = value_and_gradients(only_term(InfoNCE(block=4), make_batch(num)), features)
    theirs = value_and_gradients(lambda f: ClipLoss()(f.image, f.text[:, 0], f.scale), features)
    assert_equal(found, theirs, atol=atol)


def test_one_pair_is_no_problem(make_batch, make_features):
    found = value_and_gradients(only_term(InfoNCE(), make_batch(1)), make_features(1))
    assert max(x.abs().max() for x in found.values()) < 1e-14


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_orthonormal_pairs(make_batch, scale):
    eye = torch.eye(5, dtype=torch.float64)
    features = Features(image=eye, text=eye[:, None], scale=torch.tensor([scale], dtype=torch.float64))
    value = only_term(InfoNCE(), make_batch(5))(features).item()
    assert value == pytest.approx(loops.orthonormal(5, scale), abs=1e-12)


def test_order_and_modalities_do_not_matter(make_batch, make_features):
    features, batch = make_features(6), make_batch(6, label=[1, 2, 1, 3, 4, 4])
    value = only_term(InfoNCE(), batch)(features).item()
    swapped = features._replace(image=features.text[:, 0], text=features.image[:, None])
    assert only_term(InfoNCE(), batch)(swapped).item() == pytest.approx(value, abs=1e-12)
    order = [3, 0, 5, 1, 4, 2]
    permuted = features._replace(image=features.image[order], text=features.text[order])
    relabelled = make_batch(6, label=[batch.label[i].item() for i in order])
    assert only_term(InfoNCE(), relabelled)(permuted).item() == pytest.approx(value, abs=1e-12)
    assert only_term(InfoNCE(), make_batch(6))(permuted).item() != pytest.approx(value, abs=1e-3)


def test_swapping_modalities_swaps_the_weights_of_directions(make_batch, make_features):
    features, batch = make_features(5), make_batch(5)
    swapped = features._replace(image=features.text[:, 0], text=features.image[:, None])
    value = only_term(InfoNCE(image_to_text=0.8), batch)(features).item()
    assert only_term(InfoNCE(image_to_text=0.2), batch)(swapped).item() == pytest.approx(value, abs=1e-12)
    assert only_term(InfoNCE(image_to_text=0.8), batch)(swapped).item() != pytest.approx(value, abs=1e-3)


def test_fixed_temperature_is_a_scale_that_does_not_learn(make_batch, make_features):
    found = value_and_gradients(only_term(InfoNCE(temperature=0.1), make_batch(5)), make_features(5, scale=3.0))
    learned = value_and_gradients(only_term(InfoNCE(), make_batch(5)), make_features(5, scale=10.0))
    assert found["scale"].item() == 0
    assert abs(learned["scale"].item()) > 1e-4
    assert_equal(found | {"scale": learned["scale"]}, learned)


def test_all_positives_and_equal_logits_give_the_entropy_of_the_even_target(make_batch):
    row = torch.nn.functional.normalize(torch.arange(1.0, 5.0, dtype=torch.float64), dim=0)
    features = Features(row.expand(6, 4), row.expand(6, 1, 4), torch.tensor([20.0], dtype=torch.float64))
    value = only_term(InfoNCE(), make_batch(6, label=[3] * 6))(features).item()
    assert value == pytest.approx(math.log(6), abs=1e-12)


@pytest.mark.parametrize("garbage", [7.0, math.nan, math.inf])
@pytest.mark.parametrize("settings", SETTINGS)
def test_empty_slots_leave_exactly(make_batch, make_features, garbage, settings):
    kept = make_features(4, captions=2)
    expected = value_and_gradients(only_term(InfoNCE(**settings), make_batch(4, captions=2)), kept)
    places = [0, 2, 3, 6]  # slots 1, 4, 5 are empty, with labels of real ones
    image, text = torch.full((7, 6), garbage, dtype=torch.float64), torch.full((7, 2, 6), garbage, dtype=torch.float64)
    image[places], text[places] = kept.image.detach(), kept.text.detach()
    features = kept._replace(image=image.requires_grad_(), text=text.requires_grad_())
    labels = [1, 1, 2, 3, 3, 4, 4]
    batch = make_batch(7, captions=2, label=labels, valid=[i in places for i in range(7)])
    found = value_and_gradients(only_term(InfoNCE(**settings, block=2), batch), features)
    for name in ("image", "text"):
        assert found[name][[1, 4, 5]].abs().max() == 0
        found[name] = found[name][places]
    assert_equal(found, expected)


def test_absent_captions_leave_exactly(make_batch, make_features):
    features = make_features(4, captions=3)
    mask = [[True, False, False]] * 4
    with torch.no_grad():
        features.text[:, 1:] = math.nan
    found = value_and_gradients(only_term(InfoNCE(), make_batch(4, captions=3, caption_mask=mask)), features)
    first = features._replace(text=features.text.detach()[:, :1].clone().requires_grad_())
    expected = value_and_gradients(only_term(InfoNCE(), make_batch(4)), first)
    assert found["text"][:, 1:].abs().max() == 0
    assert_equal(found | {"text": found["text"][:, :1]}, expected)


def test_captions_of_one_image_are_separate_problems(make_batch, make_features):
    features, batch = make_features(5, captions=2), make_batch(5, captions=2)
    slots = [features._replace(text=features.text[:, k : k + 1]) for k in range(2)]
    expected = sum(only_term(InfoNCE(), make_batch(5))(slot).item() for slot in slots) / 2
    assert only_term(InfoNCE(), batch)(features).item() == pytest.approx(expected, abs=1e-12)


def test_nothing_valid_is_zero_with_zero_gradient(make_batch, make_features):
    batch = make_batch(3, valid=[False] * 3)
    found = value_and_gradients(only_term(InfoNCE(label_smoothing=0.1), batch), make_features(3))
    assert all((x == 0).all() for x in found.values())


@pytest.mark.parametrize("world", [2, 4])
def test_processes_equal_one(spawn, make_batch, make_features, world):
    features, batch = awkward(make_batch, make_features)
    losses = [InfoNCE(**settings, block=2) for settings in SETTINGS] + [InfoNCE(impl="reference")]
    ranks = spawn(one_rank, world, losses, features, batch)
    for i, loss in enumerate(losses):
        expected = value_and_gradients(only_term(loss, batch), features)
        assert_equal(merged([rank[i] for rank in ranks]), expected)


def test_a_rank_without_a_valid_slot_takes_part(spawn, make_batch, make_features):
    features = make_features(4, captions=2)
    batch = make_batch(4, captions=2, label=[1, 2, 1, 2], valid=[True, True, False, False])
    ranks = spawn(one_rank, 2, [InfoNCE()], features, batch)
    assert ranks[1][0]["value"].item() == 0
    expected = value_and_gradients(only_term(InfoNCE(), batch), features)
    assert_equal(merged([rank[0] for rank in ranks]), expected)


def test_settings_are_checked():
    for bad in ({"label_smoothing": 1.0}, {"image_to_text": 1.1}, {"temperature": 0.0}, {"weight": -1.0}, {"k": 1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            InfoNCE(**bad)
    assert LOSSES.build({"name": "infonce", "temperature": 0.1}).name == "infonce"
