"""The weighted sum, its names, and what it says when a term is not finite."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn

from tests.losses.compare import only_term
from vlp.losses.infonce import InfoNCE
from vlp.losses.loss import Loss
from vlp.losses.objective import Objective
from vlp.losses.sigmoid import Sigmoid


class TwoTerms(Loss):
    """A loss that is in no table, with a head and two terms."""

    needs: ClassVar = frozenset({"image_tokens"})
    batchless: ClassVar = frozenset({"two_scale"})

    def heads(self, dual):
        return {"projection": nn.Linear(dual, 1)}

    def __call__(self, features, batch):
        return {"a": features.image.sum(), "b": features.text.sum().reshape(1)}


def test_weighted_sum_and_names(make_batch, make_features):
    features, batch = make_features(4, bias=-1.0), make_batch(4)
    losses = [InfoNCE(weight=0.5), Sigmoid(weight=2.0), InfoNCE(weight=0.0, temperature=0.1), TwoTerms(weight=3.0)]
    value = Objective(losses)(features, batch)
    assert list(value.terms) == ["infonce", "sigmoid", "infonce.2", "twoterms/a", "twoterms/b"]
    parts = [only_term(loss, batch)(features) for loss in losses[:3]]
    for name, part in zip(value.terms, parts, strict=False):
        assert value.terms[name].item() == part.item()
    expected = 0.5 * parts[0] + 2 * parts[1] + 3 * (features.image.sum() + features.text.sum())
    assert value.total.item() == pytest.approx(expected.item(), abs=1e-12)
    assert value.total.requires_grad
    assert not any(term.requires_grad for term in value.terms.values())
    for found, wanted in zip(
        torch.autograd.grad(value.total, [features.image, features.scale, features.bias], retain_graph=True),
        torch.autograd.grad(expected, [features.image, features.scale, features.bias]),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)


def test_unused_scale_and_bias_have_a_gradient_of_zero(make_batch, make_features):
    """DDP would otherwise wait for them for ever."""
    features = make_features(3, bias=-1.0)
    Objective([InfoNCE(temperature=0.1)])(features, make_batch(3)).total.backward()
    assert features.scale.grad.item() == 0
    assert features.bias.grad.item() == 0


def test_needs_are_the_union():
    objective = Objective([InfoNCE(), Sigmoid(), TwoTerms()])
    assert objective.needs == {"bias", "image_tokens"}
    assert objective.batchless == {"two_scale"}
    assert Objective([InfoNCE()]).needs == frozenset()


def test_heads_are_merged_and_names_must_differ():
    assert set(Objective([InfoNCE(), TwoTerms()]).heads(4)) == {"projection"}
    with pytest.raises(ValueError, match=r'"twoterms" and "twoterms\.2" both ask for a head "projection"'):
        Objective([TwoTerms(), TwoTerms()]).heads(4)


def test_no_losses_is_an_error():
    with pytest.raises(ValueError, match="at least one loss"):
        Objective([])
