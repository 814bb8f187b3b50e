"""Hard negatives against loops, and against the losses they become at the ends of their settings."""

from __future__ import annotations

import math

import pytest
import torch

from tests.losses.compare import assert_equal, awkward, only_term, value_and_gradients
from tests.losses.small import real_of, situation, unit
from vlp.losses.decoupled import DCL
from vlp.losses.hard import HardNegative
from vlp.losses.infonce import InfoNCE
from vlp.types import Features


def _dropped(settings, batch, k, features, i, j, flip):
    """Whether the negative j of row i is left out; looked up pair by pair."""
    above = settings.get("drop_above")
    if above is None:
        return False
    if settings.get("judge") == "teacher":
        image, text = batch.extra["teacher/image"], batch.extra["teacher/text"][:, k]
    else:
        image, text = features.image.detach(), features.text[:, k].detach()
    x, y = (text, image) if flip else (image, text)
    similarity = (unit(x[i]) @ unit(y[j])).item()
    own = (unit(x[i]) @ unit(y[i])).item() if settings.get("drop_by", "margin") == "margin" else 0.0
    return similarity > own + above


def _loops(features, batch, settings):
    s, alpha, beta = features.scale[0], settings.get("alpha", 1.0), settings.get("beta", 0.25)
    result, count = [], 0
    for k in range(batch.caption_mask.shape[1]):
        real = real_of(batch, k)
        count += len(real)
        for flip, x, y in ((False, features.image, features.text[:, k]), (True, features.text[:, k], features.image)):
            for i in real:
                positives = [s * (x[i] @ y[j]) for j in real if batch.label[j] == batch.label[i]]
                negatives = [
                    s * (x[i] @ y[j])
                    for j in real
                    if batch.label[j] != batch.label[i] and not _dropped(settings, batch, k, features, i, j, flip)
                ]
                total = alpha * sum(z.exp() for z in positives)
                if negatives:
                    mean = sum((beta * z).exp() for z in negatives) / len(negatives)
                    total = total + sum((beta * z).exp() / mean * z.exp() for z in negatives)
                if negatives or alpha > 0:
                    result.append(0.5 * (total.log() - sum(positives) / len(positives)))
    return sum(result) / count


SETTINGS = [
    {},
    {"beta": 0.0},
    {"beta": 1.5, "alpha": 0.5},
    {"alpha": 0.0},
    {"drop_above": 0.1},
    {"drop_above": -0.5, "beta": 0.0},
    {"drop_above": 0.2, "drop_by": "similarity", "alpha": 0.0},
    {"drop_above": 0.0, "judge": "teacher"},
    {"drop_above": 0.3, "drop_by": "similarity", "judge": "teacher"},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("how", [{"impl": "reference"}, {"block": 3}])
def test_equals_loops(make_batch, make_features, settings, how):
    features, batch = situation(make_batch, make_features)
    found = value_and_gradients(only_term(HardNegative(**settings, **how), batch), features)
    assert_equal(found, value_and_gradients(lambda f: _loops(f, batch, settings), features))


def test_ends_of_the_settings(make_batch, make_features):
    features, batch = awkward(make_batch, make_features)
    for ours, theirs in (
        (HardNegative(beta=0.0), InfoNCE()),
        (HardNegative(beta=0.0, alpha=0.0), DCL()),
        (HardNegative(drop_above=2.1), HardNegative()),  # no cosine is further off
    ):
        found = value_and_gradients(only_term(ours, batch), features)
        assert_equal(found, value_and_gradients(only_term(theirs, batch), features))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"judge": "teacher"}, "judge: only with drop_above"),
        ({"drop_by": "similarity"}, "drop_by: only with drop_above"),
        ({"text_column": "reference/text"}, "text_column: only with drop_above"),
        ({"drop_above": 0.0, "image_column": "reference/image"}, "image_column: only with judge: teacher"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        HardNegative(**settings)


def test_one_negative_needs_no_weight(make_batch, make_features):
    features = make_features(2)
    values = {only_term(HardNegative(beta=beta), make_batch(2))(features).item() for beta in (0.0, 0.5, 3.0)}
    assert max(values) - min(values) < 1e-12


def test_the_harder_the_weights_the_higher_the_loss(make_batch, make_features):
    """Weights of mean 1 move towards what is near."""
    features, batch = awkward(make_batch, make_features)
    values = [only_term(HardNegative(beta=beta), batch)(features).item() for beta in (0.0, 0.25, 1.0, 4.0)]
    assert values == sorted(values)
    assert values[-1] > values[0] + 0.1


def test_all_negatives_dropped_leave_the_positives(make_batch, make_features):
    loss = HardNegative(drop_above=-1.0, drop_by="similarity")
    found = value_and_gradients(only_term(loss, make_batch(4)), make_features(4))
    assert max(x.abs().max() for x in found.values()) < 1e-12  # log e^p - p
    decoupled = HardNegative(drop_above=-1.0, drop_by="similarity", alpha=0.0)
    assert only_term(decoupled, make_batch(4))(make_features(4)).item() == 0


def test_a_copy_of_the_pair_is_a_false_negative(make_batch, make_features):
    """Slots 0 and 1 hold the same pair under two labels: with the margin they stop pushing each other."""
    features = make_features(4)
    with torch.no_grad():
        features.image[1], features.text[1] = features.image[0], features.text[0]
        features.text[0] = features.text[1] = features.image[0]
    filtered = HardNegative(beta=0.0, drop_above=-1e-6)
    value = only_term(filtered, make_batch(4))(features).item()
    z = features.scale * features.image @ features.text[:, 0].T
    keep = torch.ones(4, 4, dtype=torch.bool)
    keep[0, 1] = keep[1, 0] = False
    other = [
        keep & ((z / features.scale) <= (z / features.scale).diag()[:, None] - 1e-6) | torch.eye(4, dtype=torch.bool)
    ]
    other += [keep & ((z.T / features.scale) <= (z / features.scale).diag()[:, None] - 1e-6) | torch.eye(4).bool()]
    rows = [
        (m.masked_fill(~seen, -math.inf).logsumexp(1) - z.diag()).mean().item()
        for m, seen in zip((z, z.T), other, strict=True)
    ]
    assert value == pytest.approx(sum(rows) / 2, abs=1e-12)


def test_rows_that_are_wrong_about_their_pairs_learn_from_a_teacher_alone(make_batch):
    """Pairs are the least similar of all: by their own margin every negative goes, by a good teacher none."""
    eye, scale = torch.eye(4, dtype=torch.float64), torch.tensor([10.0], dtype=torch.float64)
    features = Features(eye.clone().requires_grad_(), -eye[:, None], scale)
    batch = make_batch(4).plus({"teacher/image": eye, "teacher/text": eye[:, None]})
    for judge, moves in (("own", False), ("teacher", True)):
        term = HardNegative(drop_above=0.0, judge=judge)(features, batch)["contrast"]
        (grad,) = torch.autograd.grad(term, features.image)
        assert (grad.abs().max() > 1e-3) == moves
