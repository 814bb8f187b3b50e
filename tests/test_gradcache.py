"""GradCache against one backward through the whole batch."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn.functional import pad
from torch.nn.parallel import DistributedDataParallel

from tests.losses.compare import assert_equal
from tests.towers import TinyTowers, gradients
from vlp import gradcache
from vlp.losses.infonce import InfoNCE
from vlp.losses.loss import Loss
from vlp.losses.objective import Objective
from vlp.losses.sigmoid import Sigmoid
from vlp.types import Features


class Tokens(Loss):
    """Something of tokens and of a scale of its own that only the whole batch knows."""

    batchless: ClassVar = frozenset({"token_scale"})

    def __call__(self, features, batch):
        scale = features.extra["token_scale"]
        mean = features.text_tokens.sum((0, 1, 2)) / features.extra["lengths"].sum()
        return {"spread": (scale * (features.text_tokens - mean) ** 2 * _mask(features, batch)).sum()}


def _mask(features, batch):
    return batch.token_mask[:, :, : features.text_tokens.shape[2], None]


OBJECTIVE = Objective([InfoNCE(label_smoothing=0.1, block=3), Sigmoid(weight=0.5), Tokens(weight=0.1)])


def _awkward(make_batch):
    mask = [[True, True], [True, False], [False, False], [True, True], [True, True], [False, True], [True, True]]
    valid = [True, True, False, True, True, True, False]
    return make_batch(7, captions=2, size=8, label=[1, 2, 3, 1, 1, 2, 3], valid=valid, caption_mask=mask, seed=4)


def _reseed(i):
    torch.manual_seed(100 + i)


def _whole(model, batch, micro):
    """Features of all micro-batches with their graphs, put together by hand, and one backward."""
    parts = []
    for i, start in enumerate(range(0, len(batch), micro)):
        _reseed(i)
        parts.append(model(batch.rows(start, min(start + micro, len(batch)))))
    longest = max(part.text_tokens.shape[2] for part in parts)
    features = Features(
        image=torch.cat([part.image for part in parts]),
        text=torch.cat([part.text for part in parts]),
        scale=parts[0].scale,
        bias=parts[0].bias,
        text_tokens=torch.cat(
            [pad(part.text_tokens, (0, 0, 0, longest - part.text_tokens.shape[2])) for part in parts]
        ),
        extra={
            "token_scale": parts[0].extra["token_scale"],
            "lengths": torch.cat([part.extra["lengths"] for part in parts]),
        },
    )
    value = OBJECTIVE(features, batch)
    value.total.backward()
    return value


def _found(value, model):
    return {"total": value.total.detach(), **value.terms, **gradients(model)}


@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("micro", [1, 2, 3, 5, 7, 100])
def test_equals_the_whole_batch(make_batch, micro, rate):
    batch = _awkward(make_batch)
    cached, direct = TinyTowers(rate=rate, own=True), TinyTowers(rate=rate, own=True)
    value = gradcache.step(cached, OBJECTIVE, batch, micro=micro, reseed=_reseed)
    assert not value.total.requires_grad
    assert_equal(_found(value, cached), _found(_whole(direct, batch, micro), direct))


def test_micro_batches_of_this_test_differ_in_length(make_batch):
    batch = _awkward(make_batch)
    lengths = {TinyTowers()(batch.rows(i, i + 2)).text_tokens.shape[2] for i in (0, 2, 4)}
    assert len(lengths) > 1


def test_without_dropout_the_size_of_micro_batches_does_not_matter(make_batch):
    batch = _awkward(make_batch)
    models = [TinyTowers(own=True) for _ in range(3)]
    found = [
        _found(gradcache.step(model, OBJECTIVE, batch, micro=micro, reseed=_reseed), model)
        for model, micro in zip(models, (1, 3, 7), strict=True)
    ]
    assert_equal(found[0], found[2])
    assert_equal(found[1], found[2])


def test_dropout_needs_the_reseed(make_batch):
    batch = _awkward(make_batch)
    cached, direct = TinyTowers(rate=0.5, own=True), TinyTowers(rate=0.5, own=True)
    gradcache.step(cached, OBJECTIVE, batch, micro=2, reseed=lambda i: None)
    _whole(direct, batch, 2)
    assert (cached.image.weight.grad - direct.image.weight.grad).abs().max() > 1e-3


def test_gradients_are_added_and_backward_is_the_callers(make_batch):
    batch, once, twice = _awkward(make_batch), TinyTowers(own=True), TinyTowers(own=True)
    gradcache.step(once, OBJECTIVE, batch, micro=2, reseed=_reseed)
    for _ in range(2):
        gradcache.step(twice, OBJECTIVE, batch, micro=3, reseed=_reseed, backward=lambda x: (2 * x).backward())
    for name, grad in gradients(once).items():
        torch.testing.assert_close(gradients(twice)[name], 4 * grad, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("micro", [2, 7])
def test_locked_towers(make_batch, micro):
    """Only the numbers without batch dimension learn."""
    batch = _awkward(make_batch)
    cached, direct = TinyTowers(own=True), TinyTowers(own=True)
    for model in (cached, direct):
        model.image.requires_grad_(False)
        model.words.requires_grad_(False)
    gradcache.step(cached, OBJECTIVE, batch, micro=micro, reseed=_reseed)
    _whole(direct, batch, micro)
    for name in ("logit_scale", "logit_bias", "token_scale"):
        torch.testing.assert_close(getattr(cached, name).grad, getattr(direct, name).grad, atol=1e-12, rtol=1e-12)
    assert cached.image.weight.grad is None


def test_a_feature_without_batch_dimension_must_be_listed(make_batch):
    with pytest.raises(ValueError, match=r"features.extra.token_scale has shape \(1,\).*batchless"):
        gradcache.step(TinyTowers(own=True), Objective([InfoNCE()]), _awkward(make_batch), micro=3, reseed=_reseed)


class _Counting(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.rows = inner, []

    def forward(self, batch):
        self.rows.append((len(batch), torch.is_grad_enabled()))
        return self.inner(batch)


def test_every_micro_batch_runs_once_without_and_once_with_a_graph(make_batch):
    model, seeds = _Counting(TinyTowers(own=True)), []
    gradcache.step(model, OBJECTIVE, _awkward(make_batch), micro=3, reseed=seeds.append)
    assert model.rows == [(3, False), (3, False), (1, False), (3, True), (3, True), (1, True)]
    assert seeds == [0, 1, 2, 0, 1, 2]


BOTH = Objective([InfoNCE(label_smoothing=0.1, block=2), Sigmoid(weight=0.5)])


def _one_rank(rank, world, batch, micro):
    half = len(batch) // world
    model = TinyTowers()
    parallel = DistributedDataParallel(model)
    part = batch.rows(rank * half, (rank + 1) * half)
    value = gradcache.step(parallel, BOTH, part, micro=micro, reseed=_reseed, no_sync=parallel.no_sync)
    return value.terms, gradients(model)


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_two_processes_equal_one(spawn, make_batch, micro):
    mask = [[True, True], [True, False], [False, False], [True, True], [True, True], [False, True]]
    valid = [True, True, False, False, True, False]
    batch = make_batch(6, captions=2, size=8, label=[1, 2, 3, 1, 1, 2], valid=valid, caption_mask=mask, seed=4)
    ranks = spawn(_one_rank, 2, batch, micro)
    model = TinyTowers()
    value = BOTH(model(batch), batch)
    value.total.backward()
    for _, found in ranks:
        assert_equal(found, gradients(model), atol=1e-10)
    for name, term in value.terms.items():
        torch.testing.assert_close((ranks[0][0][name] + ranks[1][0][name]) / 2, term, atol=1e-12, rtol=1e-12)
