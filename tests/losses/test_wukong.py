"""Wukong's reducer against loops and algebra; its loss in several processes, in micro-batches and in real models."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from tests.losses import token_compare
from tests.losses.compare import AWKWARD, assert_equal
from tests.losses.token_compare import merged, one_rank, seen, token_features
from tests.models.tiny import NANO, make_dual
from tests.models.tiny import make_batch as tiny_batch
from vlp import gradcache
from vlp.losses import LOSSES
from vlp.losses.filip import FILIP
from vlp.losses.infonce import InfoNCE
from vlp.losses.objective import Objective
from vlp.losses.wukong import TokenReducer, Wukong
from vlp.models.freeze import lock

SETTINGS = [{}, {"label_smoothing": 0.1, "text_keep": 0.5, "image_keep": 0.5, "group": 4}]


def _awkward(make_batch):
    batch = make_batch(**AWKWARD | {"caption_mask": [[bool(x) for x in row] for row in AWKWARD["caption_mask"]]})
    return batch, token_features(batch, extra=("wukong/tokens",))


def _reducer(width=8, dim=5, *, tokens=3, conv_groups=4, **settings):
    torch.manual_seed(0)
    return TokenReducer(width, dim, tokens=tokens, conv_groups=conv_groups, **settings).double().eval()


def _identity(reducer):
    with torch.no_grad():
        reducer.values.weight.copy_(torch.eye(reducer.values.weight.shape[0])[..., None])


def test_constant_selection_gives_the_mean_of_the_patches():
    hidden = torch.randn(2, 7, 8, dtype=torch.float64)
    reducer = _reducer(tokens=1, conv_groups=1)
    _identity(reducer)
    torch.nn.init.zeros_(reducer.selection[1].weight)
    torch.testing.assert_close(reducer.mixtures(hidden)[:, 0], hidden.mean(1), atol=1e-12, rtol=0)


def test_every_mixture_has_weights_that_add_up_to_one_over_the_patches():
    """The released file's softmax names no axis; over the mixtures or the batch these would not be means."""
    reducer = _reducer(tokens=5, conv_groups=1)
    _identity(reducer)
    patch = torch.randn(2, 1, 8, dtype=torch.float64)
    same = reducer.mixtures(patch.expand(2, 7, 8))
    torch.testing.assert_close(same, patch.expand(2, 5, 8), atol=1e-12, rtol=0)


def test_reducer_equals_loops():
    reducer, hidden = _reducer(), torch.randn(3, 7, 8, dtype=torch.float64)
    with torch.no_grad():
        reducer.norm.weight.normal_()
        reducer.norm.bias.normal_()
    found = reducer.tokens(hidden)
    assert found.shape == (3, 3, 5)
    grouped, select = reducer.selection[0].weight[..., 0], reducer.selection[1].weight[..., 0]
    values = reducer.values.weight[..., 0]
    for b in range(3):
        logits, mixed = [], []
        for x in hidden[b]:
            parts = [slice(2 * g, 2 * g + 2) for g in range(4)]
            normed = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() * reducer.norm.weight + reducer.norm.bias
            logits.append(select @ torch.cat([grouped[rows] @ normed[rows] for rows in parts]))
            mixed.append(torch.cat([values[rows] @ x[rows] for rows in parts]))
        for r in range(3):
            powers = [logit[r].exp() for logit in logits]
            token = reducer.proj.weight @ sum(p / sum(powers) * value for p, value in zip(powers, mixed))
            torch.testing.assert_close(found[b, r], token / token.norm(), atol=1e-12, rtol=0)


def test_order_of_patches_does_not_matter_and_dropout_is_for_training():
    reducer, hidden = _reducer(dropout=0.5), torch.randn(2, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(reducer.tokens(hidden.flip(1)), reducer.tokens(hidden), atol=1e-12, rtol=0)
    assert (reducer.train().tokens(hidden) - reducer.eval().tokens(hidden)).abs().max() > 1e-3


@pytest.mark.parametrize("settings", [*SETTINGS, {"positives": "own"}])
def test_is_filip_on_the_reduced_tokens(make_batch, settings):
    batch, features = _awkward(make_batch)
    found = seen(Wukong(**settings), features, batch)
    loops = {"group": 1, "image": "extra.wukong/tokens"} | settings
    assert_equal(found, seen(lambda f, b: token_compare.filip(f, b, **loops), features, batch))
    assert found["image_tokens"].abs().max() == 0
    moved = features._replace(image_tokens=features.extra["wukong/tokens"])
    torch.testing.assert_close(FILIP(**settings)(moved, batch)["contrast"].detach(), found["value"], atol=0, rtol=0)


@pytest.mark.parametrize("garbage", [7.0, math.nan])
def test_empty_slots_leave_exactly(make_batch, garbage):
    batch, features = _awkward(make_batch)
    expected = seen(Wukong(), features, batch)
    with torch.no_grad():
        for x in (features.image, features.text, features.text_tokens, features.extra["wukong/tokens"]):
            x[~batch.valid] = garbage
        features.text_tokens[~batch.caption_mask] = garbage
        features.text[~batch.caption_mask] = garbage
    assert_equal(seen(Wukong(), features, batch), expected)
    nothing = dataclasses.replace(batch, valid=torch.zeros_like(batch.valid))
    assert all((x == 0).all() for x in seen(Wukong(), features, nothing).values())


def test_two_processes_equal_one(spawn, make_batch):
    batch, features = _awkward(make_batch)
    batch.token_mask[4:, :, 5:] = False
    losses = [Wukong(**settings) for settings in SETTINGS]
    ranks = spawn(one_rank, 2, losses, features, batch)
    for i, loss in enumerate(losses):
        assert_equal(merged([rank[i] for rank in ranks], features), seen(loss, features, batch))


# ------------------------------------------------------------------------------------------------ real models

RESNET = {**NANO, "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}}
OBJECTIVE = Objective([InfoNCE(weight=0.5), Wukong(tokens=3, conv_groups=4, own_scale=True, text_keep=0.5)])
ALONE = Objective([Wukong(tokens=3, conv_groups=4)])


def _batch(B=6):
    return dataclasses.replace(tiny_batch(B, 2), label=torch.arange(B) % 4)


def _model(objective, config=NANO):
    dual = make_dual(config)
    dual.set_needs(objective.needs)
    dual.heads.update(objective.heads(dual))
    return dual.double().train()


def _gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}  # every one of them has a gradient


@pytest.mark.parametrize("micro", [1, 4])
def test_gradcache_equals_the_whole_batch(micro):
    batch, direct, cached = _batch(), _model(OBJECTIVE), _model(OBJECTIVE)
    value = OBJECTIVE(direct(batch), batch)
    value.total.backward()
    found = gradcache.step(cached, OBJECTIVE, batch, micro=micro, reseed=torch.manual_seed)
    assert_equal(dict(found.terms), dict(value.terms), atol=1e-6)
    assert_equal(_gradients(cached), _gradients(direct), atol=1e-6)


def _one_rank(rank, world, batch):
    model = _model(ALONE)
    part = batch.rows(rank * 3, rank * 3 + 3)
    parallel = DistributedDataParallel(model)
    for _ in range(2):
        model.zero_grad()
        ALONE(parallel(part), part).total.backward()
    return _gradients(model)


def test_ddp_sees_every_parameter_and_equals_one_process(spawn):
    batch, alone = _batch(), _model(ALONE)
    ALONE(alone(batch), batch).total.backward()
    for found in spawn(_one_rank, 2, batch):
        assert_equal(found, _gradients(alone), atol=1e-6)


def test_an_attention_pool_that_it_passes_by_has_a_gradient_too():
    model = _model(ALONE, RESNET)
    ALONE(model(_batch()), _batch()).total.backward()
    found = _gradients(model)
    assert found["visual.attnpool.q_proj.weight"].abs().max() == 0
    assert found["heads.wukong.values.weight"].abs().max() > 0


def test_a_few_steps_beside_a_locked_tower_lower_it():
    """LiT: only the reducer, the text tower and the scale learn."""
    batch, model = tiny_batch(6, 1, absent=False), _model(ALONE).float()
    lock(model, image=True)
    before = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    values = []
    for _ in range(25):
        value = ALONE(model(batch), batch)
        optimizer.zero_grad()
        value.total.backward()
        optimizer.step()
        values.append(value.terms["wukong"].item())
    assert values[-1] < 0.5 * values[0]
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == name.startswith("visual."), name


def test_evaluation_makes_the_tokens_of_training():
    model, batch = _model(ALONE).eval(), _batch()
    features = model(batch)
    out = model.image_tower.run(model.pixels(batch.image), tokens=True)
    found = model.heads["wukong"].tokens(out.hidden)
    torch.testing.assert_close(found, features.extra["wukong/tokens"], atol=1e-12, rtol=0)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(6, 3, dtype=torch.float64), atol=1e-12, rtol=0)


def test_finite_under_autocast_at_the_largest_scale():
    batch, model = _batch(), _model(ALONE).float()
    with torch.no_grad():
        model.logit_scale.fill_(math.log(100.0))
    with torch.autocast("cpu", torch.bfloat16):
        value = ALONE(model(batch), batch)
    value.total.backward()
    assert value.total.isfinite()
    assert all(grad.isfinite().all() for grad in _gradients(model).values())


def test_settings_are_checked():
    for bad in ({"tokens": 0}, {"conv_groups": 0}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Wukong(**bad)
    with pytest.raises(ValueError, match="conv_groups=7 does not divide the image tower's width 32"):
        Wukong(conv_groups=7).heads(make_dual())
    assert LOSSES.build({"name": "wukong", "tokens": 24}).name == "wukong"
