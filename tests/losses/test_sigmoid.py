"""The sigmoid loss against loops, open_clip, algebra, and itself in two processes."""

from __future__ import annotations

import math

import pytest
import torch
from open_clip.loss import SigLipLoss

from tests.losses import loops
from tests.losses.compare import assert_equal, awkward, merged, one_rank, only_term, value_and_gradients
from vlp.losses.sigmoid import Sigmoid
from vlp.types import Features


@pytest.mark.parametrize("temperature", [None, 0.2])
@pytest.mark.parametrize("how", [{"impl": "reference"}, {"block": 3}, {"block": 1}, {}])
def test_equals_loops(make_batch, make_features, temperature, how):
    features, batch = awkward(make_batch, make_features)
    found = value_and_gradients(only_term(Sigmoid(temperature=temperature, **how), batch), features)
    scale = None if temperature is None else 1 / temperature
    expected = value_and_gradients(lambda f: loops.sigmoid(f, batch, scale=scale), features)
    assert_equal(found, expected)


@pytest.mark.parametrize("num", [1, 7])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_equals_open_clip(make_batch, make_features, num, dtype, atol):
    features = make_features(num, width=16, scale=10.0, bias=-10.0, dtype=dtype)
    found = value_and_gradients(only_term(Sigmoid(block=4), make_batch(num)), features)
    theirs = value_and_gradients(lambda f: SigLipLoss()(f.image, f.text[:, 0], f.scale, f.bias), features)
    assert_equal(found, theirs, atol=atol)


def _constant(num: int, *, bias: float) -> Features:
    zeros = torch.zeros(num, 4, dtype=torch.float64)
    number = torch.tensor([bias], dtype=torch.float64)
    return Features(image=zeros, text=zeros[:, None], scale=torch.ones_like(number), bias=number)


def test_zero_logits_give_n_ln_2(make_batch):
    value = only_term(Sigmoid(), make_batch(7))(_constant(7, bias=0.0)).item()
    assert value == pytest.approx(7 * math.log(2), abs=1e-12)


@pytest.mark.parametrize("how", [{"impl": "reference"}, {"block": 3}])
def test_large_logits_are_exact(make_batch, how):
    """Beyond 20, torch's softplus is the identity unless told otherwise: an error of 2e-9 a pair."""
    value = only_term(Sigmoid(**how), make_batch(4))(_constant(4, bias=21.0)).item()
    assert value == pytest.approx(3 * 21 + 4 * math.log1p(math.exp(-21)), abs=1e-12)


def test_far_negative_bias_leaves_the_positives(make_batch, make_features):
    features = make_features(5, bias=-60.0)
    diagonal = (features.scale * (features.image * features.text[:, 0]).sum(1) + features.bias).mean()
    assert only_term(Sigmoid(), make_batch(5))(features).item() == pytest.approx(-diagonal.item(), abs=1e-9)


def test_equal_labels_are_positives(make_batch):
    labelled = only_term(Sigmoid(), make_batch(4, label=[1, 1, 2, 3]))(_constant(4, bias=-3.0)).item()
    positives, negatives = 6, 10
    expected = (positives * math.log1p(math.exp(3)) + negatives * math.log1p(math.exp(-3))) / 4
    assert labelled == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("garbage", [7.0, math.nan, math.inf])
def test_empty_slots_leave_exactly(make_batch, make_features, garbage):
    kept = make_features(3, bias=-1.0)
    expected = value_and_gradients(only_term(Sigmoid(), make_batch(3)), kept)
    image, text = torch.full((5, 6), garbage, dtype=torch.float64), torch.full((5, 1, 6), garbage, dtype=torch.float64)
    places = [0, 2, 4]
    image[places], text[places] = kept.image.detach(), kept.text.detach()
    features = kept._replace(image=image.requires_grad_(), text=text.requires_grad_())
    batch = make_batch(5, label=[1, 1, 2, 2, 3], valid=[i in places for i in range(5)])
    found = value_and_gradients(only_term(Sigmoid(block=2), batch), features)
    for name in ("image", "text"):
        assert found[name][[1, 3]].abs().max() == 0
        found[name] = found[name][places]
    assert_equal(found, expected)


def test_nothing_valid_is_zero_with_zero_gradient(make_batch, make_features):
    found = value_and_gradients(only_term(Sigmoid(), make_batch(3, valid=[False] * 3)), make_features(3, bias=-1.0))
    assert all((x == 0).all() for x in found.values())


@pytest.mark.parametrize("world", [2, 4])
def test_processes_equal_one(spawn, make_batch, make_features, world):
    features, batch = awkward(make_batch, make_features)
    losses = [Sigmoid(block=2), Sigmoid(temperature=0.3), Sigmoid(impl="reference")]
    ranks = spawn(one_rank, world, losses, features, batch)
    for i, loss in enumerate(losses):
        expected = value_and_gradients(only_term(loss, batch), features)
        assert_equal(merged([rank[i] for rank in ranks]), expected)


def test_a_rank_without_a_valid_slot_takes_part(spawn, make_batch, make_features):
    features = make_features(4, bias=-2.0)
    batch = make_batch(4, label=[1, 2, 1, 2], valid=[False, False, True, True])
    ranks = spawn(one_rank, 2, [Sigmoid()], features, batch)
    assert ranks[0][0]["value"].item() == 0
    expected = value_and_gradients(only_term(Sigmoid(), batch), features)
    assert_equal(merged([rank[0] for rank in ranks]), expected)


def test_a_model_without_bias_is_told_what_to_do(make_batch, make_features):
    assert Sigmoid.needs == {"bias"}
    with pytest.raises(ValueError, match=r'needs=\{"bias"\}'):
        Sigmoid()(make_features(2), make_batch(2))
