"""DreamLIP's grouping against loops, algebra, its released defect, and itself in two processes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from tests.losses.compare import assert_equal, awkward
from tests.losses.extra import gradients, merged, one_rank, summed
from tests.losses.heads import parameters_gradients
from tests.models import tiny
from tests.models.test_freeze import RESNET
from vlp import gradcache
from vlp.losses import LOSSES
from vlp.losses.dreamlip import DreamLIP, grouped, patch_weights
from vlp.losses.infonce import InfoNCE
from vlp.losses.objective import Objective
from vlp.types import Features

SETTINGS = [{}, {"sibling_negatives": True}, {"delta": 0.0}, {"delta": 0.6, "temperature": 0.2}, {"focus": 0.3}]


def _with_tokens(features, *, patches=5, seed=1, scale=7.0):
    rng = torch.Generator().manual_seed(seed)
    B, D = features.image.shape
    tokens = normalize(torch.randn(B, patches, D, generator=rng, dtype=torch.float64), dim=-1).to(features.image.dtype)
    own = torch.tensor([scale], dtype=features.image.dtype, requires_grad=True)
    return features._replace(image_tokens=tokens.requires_grad_(), extra={"dreamlip/scale": own})


def _group_by_loops(text, patches, delta, focus=None):
    r = [text @ patch for patch in patches]
    low, high = min(r), max(r)
    if focus is not None:
        weights = [(x / focus).exp() for x in r]
    elif low == high:
        weights = [torch.ones((), dtype=text.dtype) for _ in r]
    else:
        weights = [(x - low) / (high - low) for x in r]
        weights = [0 * w if w < delta else w for w in weights]
    v = sum(w * patch for w, patch in zip(weights, patches, strict=True)) / sum(weights)
    return v / (v @ v).sqrt()


def _by_loops(settings, batch):
    def fn(features):
        P = features.image_tokens.shape[1]
        delta = settings.get("delta", 1 / P)
        s = 1 / settings["temperature"] if "temperature" in settings else features.extra["dreamlip/scale"][0]
        B, K = batch.caption_mask.shape
        real = [(i, k) for i in range(B) for k in range(K) if batch.valid[i] and batch.caption_mask[i, k]]
        focus = settings.get("focus")
        v = {(i, k): _group_by_loops(features.text[i, k], features.image_tokens[i], delta, focus) for i, k in real}
        result = []
        for a in real:
            kept = [
                b for b in real if b == a or settings.get("sibling_negatives") or batch.label[a[0]] != batch.label[b[0]]
            ]
            to_texts = sum((s * (v[a] @ features.text[b])).exp() for b in kept)
            to_images = sum((s * (v[b] @ features.text[a])).exp() for b in kept)
            own = s * (v[a] @ features.text[a])
            result.append((to_texts.log() + to_images.log()) / 2 - own)
        return sum(result) / len(result)

    return fn


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("how", [{"impl": "reference"}, {"block": 3}, {}])
def test_equals_loops(make_batch, make_features, settings, how):
    features, batch = awkward(make_batch, make_features)
    features = _with_tokens(features)
    found = gradients(summed(DreamLIP(**settings, **how), batch), features)
    assert_equal(found, gradients(_by_loops(settings, batch), features), atol=1e-11)


def test_weights_of_one_caption_by_hand():
    products = torch.tensor([[[0.1, 0.5, 0.3, 0.2, 0.9]]], dtype=torch.float64)
    spread = torch.tensor([0.0, 0.5, 0.25, 0.0, 1.0], dtype=torch.float64)  # 0.125 is below 1 / 5
    torch.testing.assert_close(patch_weights(products, delta=None)[0, 0], spread / 1.75)
    kept = torch.tensor([0.0, 0.5, 0.25, 0.125, 1.0], dtype=torch.float64)
    torch.testing.assert_close(patch_weights(products, delta=0.0)[0, 0], kept / 1.875)


def test_one_patch_above_the_threshold_is_the_group(make_features):
    features = _with_tokens(make_features(3, captions=2))
    found = grouped(features.text, features.image_tokens, delta=1.0)
    best = (features.text @ features.image_tokens.mT).argmax(-1)
    expected = features.image_tokens.gather(1, best[..., None].expand(-1, -1, 6))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_equal_products_weigh_evenly(make_features):
    features = make_features(2, captions=2)
    same = features.image.detach()[:, None].expand(-1, 4, -1).clone().requires_grad_()
    weights = patch_weights(features.text @ same.mT, delta=None)
    assert torch.equal(weights, torch.full_like(weights, 0.25))
    grouped(features.text, same, delta=None).sum().backward()
    assert same.grad.isfinite().all()
    assert patch_weights(torch.zeros(1, 1, 1), delta=None).item() == 1


def test_captions_go_with_their_own_picture(make_batch):
    """K=2, B=3: the released code views [K, B] as [B, K], so that caption k of picture i meets another's patches."""
    eye = torch.eye(6, dtype=torch.float64)
    text = eye.reshape(3, 2, 6)  # caption (i, k) is its own direction, and only picture i has a patch of it
    tokens = torch.cat([text, -torch.ones(3, 1, 6, dtype=torch.float64) / 6**0.5], 1)
    torch.testing.assert_close(grouped(text, tokens, delta=0.9), text)
    scale = torch.tensor([5.0], dtype=torch.float64)
    features = Features(eye[:3], text, scale, image_tokens=tokens, extra={"dreamlip/scale": scale})
    value = summed(DreamLIP(delta=0.9, sibling_negatives=True), make_batch(3, captions=2))(features).item()
    assert value == pytest.approx(math.log(1 + 5 * math.exp(-5)), abs=1e-12)
    value = summed(DreamLIP(delta=0.9), make_batch(3, captions=2))(features).item()
    assert value == pytest.approx(math.log(1 + 4 * math.exp(-5)), abs=1e-12)
    wrong = features._replace(text=text.transpose(0, 1).reshape(3, 2, 6))
    assert summed(DreamLIP(delta=0.9), make_batch(3, captions=2))(wrong).item() > 0.5


def test_one_patch_and_one_caption_is_infonce(make_batch, make_features):
    features = make_features(5, scale=7.0)
    ours = _with_tokens(features)._replace(
        image_tokens=features.image[:, None], extra={"dreamlip/scale": features.scale}
    )
    expected = summed(InfoNCE(), make_batch(5))(features).item()
    assert summed(DreamLIP(), make_batch(5))(ours).item() == pytest.approx(expected, abs=1e-12)


def test_multi_positive_contrast_with_one_caption_is_clip(make_batch, make_features):
    features = make_features(5, captions=3)
    only = features._replace(text=features.text[:, :1])
    mask = [[True, False, False]] * 5
    value = summed(InfoNCE(), make_batch(5, captions=3, caption_mask=mask))(features).item()
    assert value == pytest.approx(summed(InfoNCE(), make_batch(5))(only).item(), abs=1e-12)


@pytest.mark.parametrize("garbage", [7.0, math.nan, math.inf])
def test_empty_slots_leave_exactly(make_batch, make_features, garbage):
    kept = _with_tokens(make_features(4, captions=2))
    mask = [[True, True], [True, False], [True, True], [False, True]]
    expected = gradients(summed(DreamLIP(), make_batch(4, captions=2, caption_mask=mask)), kept)
    places = [0, 2, 3, 6]
    made = {}
    for name in ("image", "text", "image_tokens"):
        x = getattr(kept, name).detach()
        made[name] = torch.full((7, *x.shape[1:]), garbage, dtype=torch.float64)
        made[name][places] = x
    made["text"][2, 1] = made["text"][6, 0] = garbage  # absent captions
    features = kept._replace(**{name: x.requires_grad_() for name, x in made.items()})
    valid = [i in places for i in range(7)]
    wide = [mask[places.index(i)] if i in places else [True, True] for i in range(7)]
    batch = make_batch(7, captions=2, label=[1, 2, 3, 4, 4, 1, 5], valid=valid, caption_mask=wide)
    found = gradients(summed(DreamLIP(block=2), batch), features)
    for name in ("image", "text", "image_tokens"):
        assert found[name][[1, 4, 5]].abs().max() == 0
        found[name] = found[name][places]
    assert_equal(found, expected)


def test_absent_slots_at_the_end_change_nothing(make_batch, make_features):
    features = _with_tokens(make_features(4, captions=2))
    expected = summed(DreamLIP(), make_batch(4, captions=2))(features).item()
    padded = features._replace(text=torch.cat([features.text, torch.zeros(4, 2, 6, dtype=torch.float64)], 1))
    mask = [[True, True, False, False]] * 4
    found = summed(DreamLIP(), make_batch(4, captions=4, caption_mask=mask))(padded).item()
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("settings", SETTINGS)
def test_nothing_valid_is_zero_with_zero_gradient(make_batch, make_features, settings):
    batch = make_batch(3, valid=[False] * 3)
    found = gradients(summed(DreamLIP(**settings), batch), _with_tokens(make_features(3)))
    assert all((x == 0).all() for x in found.values())


def test_processes_equal_one(spawn, make_batch, make_features):
    features, batch = awkward(make_batch, make_features)
    features = _with_tokens(features)
    losses = [DreamLIP(**settings, block=2) for settings in SETTINGS]
    ranks = spawn(one_rank, 2, losses, features, batch)
    for i, loss in enumerate(losses):
        expected = gradients(summed(loss, batch), features)
        assert_equal(merged([rank[i] for rank in ranks], loss.batchless), expected)


def test_a_rank_without_a_valid_slot_takes_part(spawn, make_batch, make_features):
    features = _with_tokens(make_features(4, captions=2))
    batch = make_batch(4, captions=2, label=[1, 2, 1, 2], valid=[True, True, False, False])
    ranks = spawn(one_rank, 2, [DreamLIP()], features, batch)
    assert ranks[1][0]["value"].item() == 0
    expected = gradients(summed(DreamLIP(), batch), features)
    assert_equal(merged([rank[0] for rank in ranks], DreamLIP.batchless), expected)


def test_one_pair_is_no_problem(make_batch, make_features):
    for K in (1, 3):  # siblings are no negatives, so nothing is left to tell apart
        found = gradients(summed(DreamLIP(), make_batch(1, captions=K)), _with_tokens(make_features(1, captions=K)))
        assert max(x.abs().max() for x in found.values()) < 1e-14


def test_finite_under_autocast_at_scale_100(make_batch, make_features):
    features = _with_tokens(make_features(6, captions=2, width=32, scale=100.0, dtype=torch.float32), scale=100.0)
    half = features._replace(
        image_tokens=features.image_tokens.detach().bfloat16().requires_grad_(),
        text=features.text.detach().bfloat16().requires_grad_(),
    )
    with torch.autocast("cpu", torch.bfloat16):
        for given in (features, half):
            found = gradients(summed(DreamLIP(), make_batch(6, captions=2)), given)
            assert all(x.isfinite().all() for x in found.values())
            assert found["value"].dtype is torch.float32


# ---- with a model

OBJECTIVE = Objective([InfoNCE(), DreamLIP()])


def _model(seed=0):
    dual = tiny.make_dual(seed=seed)
    dual.heads.update(OBJECTIVE.heads(dual))
    dual.set_needs(OBJECTIVE.needs)
    return dual.double()


def _grads(dual):
    return {name: p.grad.clone() for name, p in dual.named_parameters()}


def _batch():
    torch.manual_seed(3)
    return tiny.make_batch(4, 3)


def _on_one_rank(rank, world, batch):
    dual = _model()
    part = batch.rows(rank * 2, rank * 2 + 2)
    parallel = DistributedDataParallel(dual)
    OBJECTIVE(parallel(part), part).total.backward()
    return _grads(dual)


def test_with_a_model_gradcache_and_ddp_equal_one_backward(spawn):
    batch, direct, cached = _batch(), _model(), _model()
    value = OBJECTIVE(direct(batch), batch)
    value.total.backward()
    found = gradcache.step(cached, OBJECTIVE, batch, micro=2, reseed=lambda i: None)
    torch.testing.assert_close(found.total, value.total.detach(), atol=1e-10, rtol=0)
    assert_equal(_grads(cached), _grads(direct), atol=1e-10)
    for rank in spawn(_on_one_rank, 2, batch):
        assert_equal(rank, _grads(direct), atol=1e-10)


def test_alone_it_leaves_no_parameter_without_a_gradient():
    """It reads the patches of a ResNet alone, and DDP would wait for the queries of its attention pool."""
    dual = tiny.make_dual(RESNET).double()
    alone = Objective([DreamLIP()])
    dual.heads.update(alone.heads(dual))
    dual.set_needs(alone.needs)
    batch = _batch()
    alone(dual(batch), batch).total.backward()
    assert parameters_gradients(dual)["visual.attnpool.q_proj.weight"].abs().max() == 0


def test_a_few_steps_lower_the_term_and_the_scale_stays_in_bounds():
    dual, batch = _model(), _batch()
    optimizer = torch.optim.AdamW(dual.parameters(), lr=3e-3)
    terms = []
    for _ in range(12):
        value = OBJECTIVE(dual(batch), batch)
        optimizer.zero_grad()
        value.total.backward()
        optimizer.step()
        terms.append(value.terms["dreamlip"].item())
    assert terms[-1] < 0.8 * terms[0]
    with torch.no_grad():
        dual.heads["dreamlip"].logit_scale.fill_(9.0)
    features = dual(batch)
    assert features.extra["dreamlip/scale"].item() == pytest.approx(100)
    (grad,) = torch.autograd.grad(OBJECTIVE(features, batch).total, dual.heads["dreamlip"].logit_scale)
    assert grad.item() != 0


def test_settings():
    loss = LOSSES.build({"name": "dreamlip", "delta": 0.1})
    assert loss.name == "dreamlip"
    assert isinstance(loss.heads(None)["dreamlip"], nn.Module)
    assert DreamLIP(temperature=0.1).heads(None)["dreamlip"].value == pytest.approx(10)  # for evaluation alone
    for bad in ({"delta": -1}, {"delta": 1.5}, {"temperature": 0}, {"focus": 0.1, "delta": 0.1}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            DreamLIP(**bad)


def test_what_is_missing_is_said(make_batch, make_features):
    features = _with_tokens(make_features(2))
    with pytest.raises(ValueError, match="image_tokens"):
        DreamLIP()(features._replace(image_tokens=None), make_batch(2))
    with pytest.raises(ValueError, match="heads of the loss"):
        DreamLIP()(features._replace(extra={}), make_batch(2))
