"""Contrasts against a momentum copy: loops, algebra, and themselves in two processes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.losses.compare import awkward
from tests.losses.heads import (
    assert_equals,
    assert_gradcache_exact,
    assert_learns,
    assert_sound,
    drawn,
    real_batch,
    with_momentum,
)
from vlp.losses import LOSSES
from vlp.losses.infonce import InfoNCE
from vlp.losses.momentum import M3I, Keys, MomentumContrast, attraction
from vlp.types import UNLABELLED


def _situation(make_batch, make_features):
    features, batch = awkward(make_batch, make_features)
    return features, with_momentum(batch, width=6)


def _cross_entropy(x, label, keys, scale):
    """keys: (row, label) of what counts; the target is even over those with the label."""
    logits = [scale * (x @ row) for row, _ in keys]
    positives = [n for n, (_, other) in enumerate(keys) if other == label]
    partition = sum(logit.exp() for logit in logits)
    return sum(-(logits[n].exp() / partition).log() for n in positives) / len(positives) if positives else 0 * x.sum()


def _momentum(features, batch, *, queue=True, image_to_text=0.5, scale=None):
    s = features.scale[0] if scale is None else scale
    e, m, found, count = batch.extra, batch.memory, [], 0
    queued = [q for q in range(7) if m["queue/filled"][q]] if queue else []
    for k in range(features.text.shape[1]):
        real = [i for i in range(len(batch)) if batch.valid[i] and batch.caption_mask[i, k]]
        count += len(real)
        texts = [(e["momentum/text"][i, k], batch.label[i]) for i in real]
        texts += [(m["queue/text"][q], m["queue/label"][q]) for q in queued]
        images = [(e["momentum/image"][i], batch.label[i]) for i in real]
        images += [(m["queue/image"][q], m["queue/label"][q]) for q in queued]
        for i in real:
            found.append(image_to_text * _cross_entropy(features.image[i], batch.label[i], texts, s))
            found.append((1 - image_to_text) * _cross_entropy(features.text[i, k], batch.label[i], images, s))
    return sum(found) / count


@pytest.mark.parametrize("how", [{"impl": "reference"}, {"block": 2}])
@pytest.mark.parametrize(
    ("settings", "loop"),
    [({}, {}), ({"queue": False, "image_to_text": 0.3}, {}), ({"temperature": 0.25}, {"scale": 4.0})],
)
def test_momentum_contrast_equals_loops(make_batch, make_features, settings, loop, how):
    features, batch = _situation(make_batch, make_features)
    loss = LOSSES.build({"name": "momentum_contrast", **settings, **how})
    shared = {key: settings[key] for key in ("queue", "image_to_text") if key in settings}
    assert_equals(loss, lambda f: _momentum(f, batch, **shared, **loop), features, batch)


def test_momentum_contrast_is_sound(make_batch, make_features, spawn):
    assert_sound(MomentumContrast(), *_situation(make_batch, make_features), spawn)


def test_a_copy_that_is_the_student_gives_infonce(make_batch, make_features):
    features, batch = awkward(make_batch, make_features)
    same = batch.plus({"momentum/image": features.image.detach(), "momentum/text": features.text.detach()})
    found = MomentumContrast(queue=False)(features, same)["momentum"].item()
    assert found == pytest.approx(InfoNCE()(features, batch)["contrast"].item(), abs=1e-12)


def test_queued_features_of_the_same_label_are_positives(make_batch, make_features):
    """A queue that holds the batch itself: every target is spread over both, so nothing is pushed from itself."""
    features, batch = make_features(7), make_batch(7)
    rows = {"image": features.image.detach(), "text": features.text.detach()[:, 0]}
    full = batch.plus(
        {"momentum/image": rows["image"], "momentum/text": rows["text"][:, None]},
        {f"queue/{side}": x for side, x in rows.items()} | {"queue/label": batch.label, "queue/filled": batch.valid},
    )
    found = MomentumContrast()(features, full)["momentum"].item()
    expected = InfoNCE()(features, batch)["contrast"].item() + torch.tensor(2.0).log().item()
    assert found == pytest.approx(expected, abs=1e-6)


def test_what_is_missing_is_explained(make_batch, make_features):
    with pytest.raises(ValueError, match='no column "momentum/image".*`outputs`'):
        MomentumContrast()(make_features(3), make_batch(3))
    batch = with_momentum(make_batch(3), width=6)
    with pytest.raises(ValueError, match='no column "queue/text".*`queue`'):
        MomentumContrast()(make_features(3), replace(batch, memory={}))


def test_a_row_without_a_positive_is_zero_with_zero_gradient():
    x = drawn(2, 4, seed=1).requires_grad_()
    keys = Keys(drawn(3, 4, seed=2), torch.tensor([True, True, False]), torch.tensor([5, 6, 7]))
    found = attraction(x, torch.tensor([5, 7]), keys, torch.ones(1, dtype=torch.float64))
    (grad,) = torch.autograd.grad(found.sum(), x)
    assert found[0] > 0
    assert found[1] == 0
    assert (grad[1] == 0).all()


# ------------------------------------------------------------------------------------------------------------- m3i


def _mixed(make_batch, make_features):
    """Captions and labels in one batch."""
    features, batch = _situation(make_batch, make_features)
    label = torch.tensor([5, UNLABELLED + 7, 5, 5, UNLABELLED + 9, UNLABELLED + 7, 11, 12])
    return features, replace(batch, label=label)


def _m3i(features, batch, target):
    s, e, found = features.scale[0], batch.extra, []
    real = [i for i in range(len(batch)) if batch.valid[i]]
    seen = e["momentum/image"] if target == "image" else e["momentum/view_image"][:, 0]
    for i in real:
        of_targets = [_cross_entropy(features.image[i], batch.label[i], [(seen[j], batch.label[j]) for j in real], s)]
        labelled, of_captions = batch.label[i] < UNLABELLED, []
        for k in range(2):
            if batch.caption_mask[i, k]:
                kind = [j for j in real if batch.caption_mask[j, k] and (batch.label[j] < UNLABELLED) == labelled]
                keys = [(features.text[j, k], batch.label[j]) for j in kind]
                of_captions.append(_cross_entropy(features.image[i], batch.label[i], keys, s))
        if of_captions:
            of_targets.append(sum(of_captions) / len(of_captions))
        found.append(sum(of_targets) / len(of_targets))
    return sum(found) / len(found)


@pytest.mark.parametrize("target", ["view", "image"])
@pytest.mark.parametrize("situation", [_mixed, _situation])
def test_m3i_equals_loops(make_batch, make_features, situation, target):
    features, batch = situation(make_batch, make_features)
    loss = LOSSES.build({"name": "m3i", "target": target})
    assert_equals(loss, lambda f: _m3i(f, batch, target), features, batch)


def test_m3i_without_captions_leaves_the_momentum_target(make_batch, make_features):
    features, batch = _mixed(make_batch, make_features)
    mask = batch.caption_mask.clone()
    mask[2] = False
    bare = replace(batch, caption_mask=mask)
    assert_equals(M3I(), lambda f: _m3i(f, bare, "view"), features, bare)


def test_m3i_is_sound(make_batch, make_features, spawn):
    assert_sound(M3I(), *_mixed(make_batch, make_features), spawn)


def test_m3i_has_three_terms(make_batch, make_features):
    features, batch = _mixed(make_batch, make_features)
    terms = M3I()(features, batch)
    assert list(terms) == ["text", "label", "momentum"]
    captions_only = replace(batch, label=UNLABELLED + torch.arange(8))
    assert M3I()(features, captions_only)["label"].item() == 0


def test_with_a_real_model():
    for loss in (MomentumContrast(), M3I()):
        assert_gradcache_exact([loss], real_batch())
        assert_learns([loss], real_batch())
