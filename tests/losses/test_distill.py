"""Distillation against loops and open_clip, and what a perfect student must see."""

from __future__ import annotations

import pytest
import torch
from open_clip.loss import DistillClipLoss
from torch.nn.functional import normalize

from tests.losses.compare import assert_equal, only_term, value_and_gradients
from tests.losses.extra import gradients, summed
from tests.losses.small import TEACHER, real_of, situation, unit, with_columns, with_heads
from vlp.losses.distill import FeatureDistill, LogitDistill, Projections, RelationDistill
from vlp.types import Features


def _softmax(logits):
    total = sum(z.exp() for z in logits)
    return [z.exp() / total for z in logits]


def _distill(features, batch, known):
    result, count = [], 0
    for k in range(batch.caption_mask.shape[1]):
        real = real_of(batch, k)
        count += len(real)
        student = (features.image, features.text[:, k])
        teacher = (batch.extra["teacher/image"], batch.extra["teacher/text"][:, k])
        for (x, y), (u, v) in ((student, teacher), (student[::-1], teacher[::-1])):
            for i in real:
                p = _softmax([known * (unit(u[i]) @ unit(v[j])) for j in real])
                q = _softmax([features.scale[0] * (x[i] @ y[j]) for j in real])
                result += [-0.5 * a * b.log() for a, b in zip(p, q, strict=True)]
    return sum(result) / count


@pytest.mark.parametrize("how", [{"impl": "reference"}, {"block": 3}])
@pytest.mark.parametrize("teacher_scale", [None, 20.0])
def test_logits_equal_loops(make_batch, make_features, teacher_scale, how):
    features, batch = situation(make_batch, make_features)
    loss = LogitDistill(teacher_scale=teacher_scale, **how)
    known = teacher_scale or 7.0
    assert_equal(
        value_and_gradients(only_term(loss, batch), features),
        value_and_gradients(lambda f: _distill(f, batch, known), features),
    )


def test_a_stored_scale_is_that_of_each_row(make_batch, make_features):
    """As a column of the shards, zero or worse in empty slots; under another name if it is said."""
    features, batch = situation(make_batch, make_features)
    stored = torch.full((len(batch),), 7.0)
    stored[~batch.valid] = torch.nan
    found = value_and_gradients(
        only_term(LogitDistill(scale_column="big/scale", block=3), batch.plus({"big/scale": stored})), features
    )
    assert_equal(found, value_and_gradients(lambda f: _distill(f, batch, 7.0), features))
    with pytest.raises(ValueError, match=r'no column "big/scale".*teacher\.npz:scale'):
        LogitDistill(scale_column="big/scale")(features, batch)


def test_logits_equal_open_clip(make_batch, make_features):
    batch, features = with_columns(make_batch(6)), make_features(6, scale=12.0)
    u, v = (normalize(batch.extra[f"teacher/{side}"], dim=-1) for side in ("image", "text"))

    def theirs(f):
        plain = DistillClipLoss()(f.image, f.text[:, 0], f.scale, u, v[:, 0], torch.tensor([9.0]).double())
        return plain[1]

    found = value_and_gradients(only_term(LogitDistill(teacher_scale=9.0, block=4), batch), features)
    assert_equal(found, value_and_gradients(theirs, features))


def _relation(features, batch, tau):
    def side(x, u, real):
        result = 0.0
        for i in real:
            others = [j for j in real if j != i]
            if others:
                p = _softmax([unit(u[i]) @ unit(u[j]) / tau for j in others])
                q = _softmax([x[i] @ x[j] / tau for j in others])
                result = result + sum(a * (a.log() - b.log()) for a, b in zip(p, q, strict=True))
        return result

    valid = [i for i in range(len(batch)) if batch.valid[i]]
    image = side(features.image, batch.extra["teacher/image"], valid) / len(valid)
    slots = [real_of(batch, k) for k in range(batch.caption_mask.shape[1])]
    texts = [side(features.text[:, k], batch.extra["teacher/text"][:, k], real) for k, real in enumerate(slots)]
    return 0.5 * image + 0.5 * sum(texts) / sum(map(len, slots))


@pytest.mark.parametrize("how", [{"impl": "reference"}, {"block": 3}])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_relations_equal_loops(make_batch, make_features, temperature, how):
    features, batch = situation(make_batch, make_features)
    loss = RelationDistill(temperature=temperature, **how)
    found = gradients(summed(loss, batch), features)
    assert_equal(found, gradients(lambda f: _relation(f, batch, temperature), features), atol=1e-11)


@pytest.mark.parametrize("kind", ["mse", "cosine"])
def test_features_equal_loops(make_batch, make_features, kind):
    features, batch = situation(make_batch, make_features)

    def far(x, u):
        return ((x - unit(u)) ** 2).sum() if kind == "mse" else 1 - unit(x) @ unit(u)

    def loops(f):
        image, text = f.extra["feature_distill/image"], f.extra["feature_distill/text"]
        valid = [i for i in range(len(batch)) if batch.valid[i]]
        slots = [(i, k) for k in range(2) for i in real_of(batch, k)]
        pictures = sum(far(image[i], batch.extra["teacher/image"][i]) for i in valid) / len(valid)
        return pictures + sum(far(text[i, k], batch.extra["teacher/text"][i, k]) for i, k in slots) / len(slots)

    found = gradients(summed(FeatureDistill(kind=kind, teacher_width=TEACHER), batch), features)
    assert_equal(found, gradients(loops, features))


@pytest.mark.parametrize("loss", [LogitDistill(), RelationDistill(), FeatureDistill(), FeatureDistill(kind="cosine")])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(make_batch, make_features, loss):
    features, batch = make_features(5, captions=2, scale=7.0), make_batch(5, captions=2)
    columns = {"teacher/image": features.image.detach(), "teacher/text": features.text.detach()}
    batch = batch.plus(columns, {"teacher/scale": features.scale.detach()})
    found = gradients(summed(loss, batch), features)
    tangent = {name: x - (x * y).sum(-1, keepdim=True) * y for name, x, y in (
        ("image", found["image"], features.image), ("text", found["text"], features.text)
    )}  # fmt: skip
    assert max(x.abs().max() for x in tangent.values()) < 1e-12
    if not isinstance(loss, LogitDistill):  # cross entropy keeps the teacher's entropy
        assert abs(found["value"].item()) < 1e-12


def test_without_a_head_mse_is_twice_the_cosine(make_batch, make_features):
    batch = make_batch(4)
    features = make_features(4)
    other = make_features(4, seed=1)
    batch = batch.plus({"teacher/image": other.image.detach(), "teacher/text": 3 * other.text.detach()})
    values = [summed(FeatureDistill(kind=kind), batch)(features).item() for kind in ("mse", "cosine")]
    assert values[0] == pytest.approx(2 * values[1], abs=1e-12)


def test_widths_that_differ_want_a_head(make_batch, make_features):
    batch = with_columns(make_batch(3))
    with pytest.raises(ValueError, match=r"width 6, the teacher's 4; set teacher_width: 4"):
        FeatureDistill()(with_heads(make_features(3), batch), batch)
    wide = {"teacher/image": torch.ones(3, 6), "teacher/text": torch.ones(3, 1, 6)}
    with pytest.raises(ValueError, match=r"width 4, the teacher's 6; set teacher_width: 6"):
        FeatureDistill(teacher_width=4)(with_heads(make_features(3), batch), make_batch(3).plus(wide))


def test_the_head_maps_both_sides(make_batch, make_features):
    class Width:
        dim = 6

    assert FeatureDistill().heads(Width()) == {}
    head = FeatureDistill(teacher_width=TEACHER).heads(Width())["feature_distill"].double()
    assert isinstance(head, Projections)

    class Towers:
        features = make_features(3, captions=2)

    made = head(make_batch(3, captions=2), Towers())
    assert made["feature_distill/image"].shape == (3, TEACHER)
    assert made["feature_distill/text"].shape == (3, 2, TEACHER)


def test_columns_may_have_other_names(make_batch, make_features):
    features, batch = make_features(4), with_columns(make_batch(4))
    renamed = batch.plus({"b/image": batch.extra["teacher/image"], "b/text": batch.extra["teacher/text"]})
    loss = LogitDistill(image_column="b/image", text_column="b/text")
    assert only_term(loss, renamed)(features).item() == only_term(LogitDistill(), batch)(features).item()


def test_half_precision_columns(make_batch, make_features):
    batch = with_columns(make_batch(4))
    half = {name: x.half() for name, x in batch.extra.items() if name.startswith("teacher")}
    features = make_features(4, dtype=torch.float32)
    assert isinstance(features, Features)
    value = only_term(LogitDistill(), batch.plus(half))(features)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(only_term(LogitDistill(), batch)(features).item(), abs=1e-2)
