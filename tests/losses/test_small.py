"""What the small losses have in common: processes, GradCache, empty slots, absent captions, precision, blocks."""

from __future__ import annotations

import math

import pytest
import torch

from tests.losses.compare import assert_equal
from tests.losses.extra import gradients, merged, one_rank, summed
from tests.losses.small import HeadedTowers, situation, with_columns, with_heads
from tests.towers import gradients as weight_gradients
from vlp import gradcache
from vlp.losses import LOSSES
from vlp.losses.objective import Objective

SMALL = [
    {"name": "dcl"},
    {"name": "dcl", "intra": True, "temperature": 0.2},
    {"name": "dclw"},
    {"name": "sdm"},
    {"name": "cmpm"},
    {"name": "distill"},
    {"name": "distill", "teacher_scale": 20.0},
    {"name": "relation_distill"},
    {"name": "feature_distill", "teacher_width": 4},
    {"name": "feature_distill", "teacher_width": 4, "kind": "cosine"},
    {"name": "hard_negative", "beta": 0.5, "alpha": 0.9},
    {"name": "hard_negative", "drop_above": -0.3, "judge": "own"},
    {"name": "hard_negative", "drop_above": 0.4, "drop_by": "similarity", "judge": "teacher", "alpha": 0.0},
    {"name": "negclip"},
    {"name": "matryoshka", "of": {"name": "infonce", "block": 2}, "widths": [2, 4, 6]},
    {"name": "matryoshka", "of": "negclip", "widths": [3, 6], "shares": [1.0, 0.5]},
    {"name": "koleo"},
    {"name": "uniformity"},
]
IDS = ["-".join(str(value) for value in spec.values()) for spec in SMALL]
LOSS = pytest.mark.parametrize("spec", SMALL, ids=IDS)
BLOCKED = [spec for spec in SMALL if spec["name"] not in ("feature_distill", "matryoshka")]


def _build(spec, **more):
    return LOSSES.build({**spec, **more})


def _ranks_of(rank, world, losses, cases):
    """Run by `spawn`, once for all cases: starting processes takes longer than what they do."""
    return [one_rank(rank, world, losses, features, batch) for features, batch in cases]


def test_processes_equal_one(spawn, make_batch, make_features):
    """Also where one of them has no valid slot."""
    empty = with_columns(make_batch(4, captions=2, label=[1, 2, 1, 3], valid=[True, True, False, False]))
    cases = [situation(make_batch, make_features), (with_heads(make_features(4, captions=2), empty), empty)]
    losses = [_build(spec, **({"block": 2} if spec in BLOCKED else {})) for spec in SMALL]
    ranks = spawn(_ranks_of, 2, losses, cases)
    for case, (features, batch) in enumerate(cases):
        for i, loss in enumerate(losses):
            found = merged([rank[case][i] for rank in ranks], frozenset())
            expected = gradients(summed(loss, batch), features)
            assert expected["value"].isfinite()
            moved = sum(x.abs().sum() for name, x in expected.items() if name != "value")
            assert moved > 1e-3 or case > 0, SMALL[i]  # of two pairs relations say nothing
            assert_equal(found, expected, atol=1e-10)


@pytest.mark.parametrize("spec", BLOCKED, ids=str)
@pytest.mark.parametrize("block", [1, 3])
def test_blocks_change_nothing(make_batch, make_features, spec, block):
    features, batch = situation(make_batch, make_features)
    found = gradients(summed(_build(spec, block=block), batch), features)
    assert_equal(found, gradients(summed(_build(spec, impl="reference"), batch), features))


@LOSS
@pytest.mark.parametrize("micro", [1, 3])
def test_gradcache_equals_the_whole_batch(make_batch, spec, micro):
    mask = [[True, True], [True, False], [False, False], [True, True], [True, True], [False, True], [True, True]]
    valid = [True, True, False, True, True, True, False]
    batch = make_batch(7, captions=2, size=8, label=[1, 2, 3, 1, 4, 2, 3], valid=valid, caption_mask=mask, seed=4)
    batch = with_columns(batch)
    objective = Objective([_build(spec), _build({"name": "sigmoid"})])
    for parameter in (cached := HeadedTowers()).parameters():
        parameter.grad = torch.zeros_like(parameter)
    for parameter in (direct := HeadedTowers()).parameters():
        parameter.grad = torch.zeros_like(parameter)
    value = gradcache.step(cached, objective, batch, micro=micro, reseed=lambda i: None)
    whole = objective(direct(batch), batch)
    whole.total.backward()
    assert_equal(value.terms, whole.terms)
    assert_equal(weight_gradients(cached), weight_gradients(direct))


@LOSS
@pytest.mark.parametrize("garbage", [7.0, math.nan])
def test_empty_slots_and_absent_captions_leave_exactly(make_batch, make_features, spec, garbage):
    mask = [[True, False], [True, True], [True, True], [True, True]]
    kept_batch = with_columns(make_batch(4, captions=2, label=[1, 2, 1, 3], caption_mask=mask))
    kept = with_heads(make_features(4, captions=2), kept_batch)
    expected = gradients(summed(_build(spec), kept_batch), kept)
    places = [0, 2, 3, 6]  # slots 1, 4, 5 are empty, with labels of real ones

    def spread(x, fill):
        out = torch.full((7, *x.shape[1:]), fill, dtype=x.dtype)
        out[places] = x.detach()
        return out

    text = spread(kept.text, garbage)
    text[0, 1] = garbage
    columns = {name: spread(x, garbage if x.is_floating_point() else 1) for name, x in kept_batch.extra.items()}
    columns["teacher/text"][0, 1] = garbage
    extra = {name: spread(x, garbage) for name, x in kept.extra.items()}
    extra["feature_distill/text"][0, 1] = garbage
    negatives = kept_batch.extra["negative_mask"].any(-1)
    if spec["name"] == "negclip":  # heads leave zeros there; matryoshka makes what it gets unit
        extra["negclip/text"][places] = torch.where(negatives[..., None], extra["negclip/text"][places], garbage)
    features = kept._replace(
        image=spread(kept.image, garbage).requires_grad_(),
        text=text.requires_grad_(),
        extra={name: x.requires_grad_() for name, x in extra.items()},
    )
    batch = make_batch(
        7,
        captions=2,
        label=[1, 1, 2, 1, 3, 3, 3],
        valid=[i in places for i in range(7)],
        caption_mask=[mask[places.index(i)] if i in places else [True, True] for i in range(7)],
    ).plus(columns, kept_batch.memory)
    found = gradients(summed(_build(spec), batch), features)
    for name, x in found.items():
        if name not in ("value", "scale"):
            assert x[[1, 4, 5]].abs().max() == 0, name
            found[name] = x[places]
    assert_equal(found, expected)


@LOSS
def test_nothing_valid_is_zero_with_zero_gradient(make_batch, make_features, spec):
    batch = with_columns(make_batch(3, valid=[False] * 3))
    found = gradients(summed(_build(spec), batch), with_heads(make_features(3), batch))
    assert all((x == 0).all() for x in found.values())


@LOSS
def test_one_pair_alone_is_finite(make_batch, make_features, spec):
    batch = with_columns(make_batch(3, valid=[True, False, False]))
    found = gradients(summed(_build(spec), batch), with_heads(make_features(3), batch))
    assert all(x.isfinite().all() for x in found.values())


@LOSS
def test_finite_under_bf16_at_scale_100(make_batch, make_features, spec):
    batch = with_columns(make_batch(6, captions=2, label=[1, 2, 1, 3, 4, 5], valid=[True] * 5 + [False]))
    half = make_features(6, captions=2, scale=100.0, dtype=torch.bfloat16)
    half = with_heads(half._replace(image=half.text[:, 0].detach().clone().requires_grad_()), batch)
    whole = half._replace(**{name: getattr(half, name).detach().float().requires_grad_() for name in half._fields[:3]})
    whole = whole._replace(extra={name: x.detach().float().requires_grad_() for name, x in half.extra.items()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients(summed(_build(spec), batch), half)
    assert all(x.isfinite().all() for x in found.values())
    expected = gradients(summed(_build(spec), batch), whole)
    torch.testing.assert_close(found["value"].float(), expected["value"].float(), atol=1e-4, rtol=1e-4)


def test_equal_rows_everywhere_are_finite(make_batch, make_features):
    """As a collapsed model has them."""
    features, batch = situation(make_batch, make_features)
    same = features._replace(
        image=features.image[:1].detach().expand(8, -1).clone().requires_grad_(),
        text=features.image[:1, None].detach().expand(8, 2, -1).clone().requires_grad_(),
    )
    for spec in SMALL:
        found = gradients(summed(_build(spec), batch), same)
        assert all(x.isfinite().all() for x in found.values()), spec


def test_a_missing_column_is_named(make_batch, make_features):
    batch, features = make_batch(3), make_features(3)
    for name in ("distill", "relation_distill", "feature_distill"):
        with pytest.raises(ValueError, match=r'no column "teacher/image".*companion.*teacher.*columns'):
            _build({"name": name})(features, batch)
    with pytest.raises(ValueError, match=r'no column "negative_mask".*negatives'):
        _build({"name": "negclip"})(features, batch)
    stored = with_columns(batch)
    with pytest.raises(ValueError, match="set teacher_scale"):
        _build({"name": "distill"})(features, batch.plus(stored.extra))
    one = {**stored.extra, "teacher/text": stored.extra["teacher/text"][:, 0]}
    with pytest.raises(ValueError, match=r"\[3, 4\].*\[3, 1, E\]"):
        _build({"name": "relation_distill"})(features, batch.plus(one))


def test_settings_are_checked():
    for bad in (
        {"name": "dcl", "temperature": 0.0},
        {"name": "dclw", "sigma": 0.0},
        {"name": "sdm", "eps": 0.0},
        {"name": "hard_negative", "beta": -1.0},
        {"name": "koleo", "sides": []},
        {"name": "uniformity", "sides": ["picture"]},
        {"name": "distill", "teacher_scale": 0.0},
    ):
        with pytest.raises(ValueError, match=list(bad)[1]):
            LOSSES.build(bad)
