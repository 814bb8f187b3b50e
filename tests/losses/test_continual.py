"""Topology preservation: loops, the authors' formula, and what a model that has not moved must see."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import kl_div, normalize

from tests.losses.compare import assert_equal, awkward
from tests.losses.extra import gradients, summed
from tests.losses.heads import assert_equals, assert_gradcache_exact, assert_learns, assert_sound, drawn, real_batch
from tests.losses.small import real_of, unit
from vlp.losses import LOSSES
from vlp.losses.continual import Topology
from vlp.losses.distill import LogitDistill, RelationDistill


def _with_reference(batch, *, width=4, seed=21):
    """The batch with a reference's features, not of unit norm, in a joint space of its own."""
    (B, K), rng = batch.caption_mask.shape, torch.Generator().manual_seed(seed)
    rows = {"image": (B, width), "text": (B, K, width)}
    made = {side: torch.randn(*shape, generator=rng, dtype=torch.float64) for side, shape in rows.items()}
    return batch.plus({f"reference/{side}": x for side, x in made.items()})


def _situation(make_batch, make_features):
    features, batch = awkward(make_batch, make_features)
    return features, _with_reference(batch)


def _divergence(reference, model):
    """KL of two softmaxes over lists of logits."""
    p, q = (torch.stack(logits).exp() / torch.stack(logits).exp().sum() for logits in (reference, model))
    return (p * (p.log() - q.log())).sum()


def _topology(features, batch, tau):
    x, y = features.image, features.text
    u, v = (batch.extra[f"reference/{side}"] for side in ("image", "text"))
    cross, within, images = [], [], []
    valid = [i for i in range(len(batch)) if batch.valid[i]]
    for i in valid:
        others = [j for j in valid if j != i]
        images.append(_divergence([unit(u[i]) @ unit(u[j]) / tau for j in others], [x[i] @ x[j] / tau for j in others]))
    count = 0
    for k in range(y.shape[1]):
        real = real_of(batch, k)
        count += len(real)
        for i in real:
            there, here = [unit(u[i]) @ unit(v[j, k]) / tau for j in real], [x[i] @ y[j, k] / tau for j in real]
            cross.append(_divergence(there, here))
            there, here = [unit(v[i, k]) @ unit(u[j]) / tau for j in real], [y[i, k] @ x[j] / tau for j in real]
            cross.append(_divergence(there, here))
            others = [j for j in real if j != i]
            if others:
                there = [unit(v[i, k]) @ unit(v[j, k]) / tau for j in others]
                within.append(_divergence(there, [y[i, k] @ y[j, k] / tau for j in others]))
    return sum(cross) / count / 2 + (sum(images) / len(valid) + sum(within) / count) / 2


@pytest.mark.parametrize("how", [{"impl": "reference"}, {"block": 3}])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_equals_loops(make_batch, make_features, temperature, how):
    features, batch = _situation(make_batch, make_features)
    loss = LOSSES.build({"name": "topology", "temperature": temperature, **how})
    found = gradients(summed(loss, batch), features)
    assert_equal(found, gradients(lambda f: _topology(f, batch, temperature), features), atol=1e-11)


def test_equals_the_formula_of_the_authors_code(make_batch, make_features):
    """Four relation matrices, -1000 on the diagonals within a side, batch means of KL, each pair of them averaged."""
    features, batch = make_features(7), _with_reference(make_batch(7), width=6)
    u, v = normalize(batch.extra["reference/image"], dim=-1), normalize(batch.extra["reference/text"][:, 0], dim=-1)

    def theirs(f):
        def term(x, y, p, q, *, same):
            here, there = x @ y.T, p @ q.T
            if same:
                here, there = (r.masked_fill(torch.eye(7, dtype=torch.bool), -1000.0) for r in (here, there))
            return kl_div((here / 0.07).log_softmax(1), (there / 0.07).softmax(1), reduction="batchmean")

        x, y = f.image, f.text[:, 0]
        cross = term(x, y, u, v, same=False) + term(y, x, v, u, same=False)
        return cross / 2 + (term(x, x, u, u, same=True) + term(y, y, v, v, same=True)) / 2

    assert_equals(Topology(), theirs, features, batch)


def test_is_sound(make_batch, make_features, spawn):
    assert_sound(Topology(), *_situation(make_batch, make_features), spawn)


def test_a_model_that_has_not_moved_has_nothing_to_learn(make_batch, make_features):
    features, batch = make_features(5, captions=2), make_batch(5, captions=2)
    kept = {"reference/image": features.image.detach(), "reference/text": features.text.detach()}
    found = gradients(summed(Topology(), batch.plus(kept)), features)
    assert abs(found["value"].item()) < 1e-12
    for side in ("image", "text"):
        x, g = getattr(features, side), found[side]
        assert (g - (g * x).sum(-1, keepdim=True) * x).abs().max() < 1e-12


def test_a_rotation_of_the_joint_space_is_no_change(make_batch, make_features):
    """Relations are all that is kept: both sides turned alike are the same model."""
    features, batch = make_features(6), make_batch(6)
    turn, _ = torch.linalg.qr(drawn(6, 6, seed=4))
    turned = {"reference/image": features.image.detach() @ turn, "reference/text": features.text.detach() @ turn}
    assert abs(summed(Topology(), batch.plus(turned))(features).item()) < 1e-12
    one_side = batch.plus({"reference/image": turned["reference/image"], "reference/text": features.text.detach()})
    terms = Topology()(features, one_side)
    assert abs(terms["within"].item()) < 1e-12
    assert terms["cross"].item() > 0.01


def test_its_halves_are_the_known_distillations(make_batch, make_features):
    """Within a side it is `relation_distill`; across, `distill` less the reference's entropy, at equal scales."""
    features, batch = _situation(make_batch, make_features)
    terms = Topology(temperature=0.1)(features, batch)
    columns = {"image_column": "reference/image", "text_column": "reference/text"}
    apart = RelationDistill(temperature=0.1, **columns)(features, batch)
    torch.testing.assert_close(terms["within"], apart["image"] + apart["text"])
    same = features._replace(scale=torch.tensor([10.0], dtype=torch.float64, requires_grad=True))
    loss = LogitDistill(teacher_scale=10.0, **columns)
    found = gradients(summed(loss, batch), same)
    across = gradients(lambda f: Topology(temperature=0.1)(f, batch)["cross"], features)
    for side in ("image", "text"):
        torch.testing.assert_close(across[side], found[side])


def test_padding_and_lonely_rows_change_nothing(make_batch, make_features):
    features, batch = _situation(make_batch, make_features)
    longer = replace(batch, text=torch.cat([batch.text, batch.text * 0], 2))
    assert summed(Topology(), longer)(features).item() == summed(Topology(), batch)(features).item()
    alone = replace(batch, valid=torch.tensor([True] + [False] * 7))
    found = gradients(summed(Topology(), alone), features)
    assert found["value"].item() == 0
    assert all((found[side] == 0).all() for side in ("image", "text"))


def test_the_columns_of_another_frozen_model(make_batch, make_features):
    features, batch = make_features(4), make_batch(4)
    with pytest.raises(ValueError, match=r'no column "reference/image".*compatible_momentum.*teacher/image'):
        Topology()(features, batch)
    named = batch.plus({"teacher/image": drawn(4, 6, seed=1), "teacher/text": drawn(4, 6, seed=2)[:, None]})
    terms = Topology(image_column="teacher/image", text_column="teacher/text")(features, named)
    assert list(terms) == ["cross", "within"]
    assert all(math.isfinite(term.item()) and term.item() > 0 for term in terms.values())


def test_with_a_real_model():
    batch = _with_reference(real_batch())
    assert_gradcache_exact([Topology()], batch)
    assert_learns([Topology()], batch)
