"""DCL and DCLW against loops, and against CLIP by the softplus that joins them."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import softplus

from tests.losses.compare import assert_equal, awkward, only_term, value_and_gradients
from tests.losses.small import real_of
from vlp.losses.decoupled import DCL, DCLW


def _loops(features, batch, *, sigma=None, intra=False, scale=None):
    """Pair by pair; the weight of DCLW is made of numbers without gradient."""
    s = features.scale[0] if scale is None else scale
    result, count = [], 0
    for k in range(batch.caption_mask.shape[1]):
        real = real_of(batch, k)
        count += len(real)
        for x, y in ((features.image, features.text[:, k]), (features.text[:, k], features.image)):
            positives = {i: [j for j in real if batch.label[j] == batch.label[i]] for i in real}
            cosine = {i: sum(x[i] @ y[j] for j in positives[i]) / len(positives[i]) for i in real}
            mean = sum(math.exp(cosine[i].item() / (sigma or 1)) for i in real) / max(1, len(real))
            for i in real:
                negatives = [x[i] @ y[j] for j in real if j not in positives[i]]
                negatives += [x[i] @ x[j] for j in real if j not in positives[i]] if intra else []
                if negatives:
                    w = 1.0 if sigma is None else 2 - math.exp(cosine[i].item() / sigma) / mean
                    push = sum((s * negative).exp() for negative in negatives).log()
                    result.append(0.5 * (push - w * s * cosine[i]))
    return sum(result) / count


@pytest.mark.parametrize("settings", [{}, {"intra": True}, {"temperature": 0.1}])
@pytest.mark.parametrize("kind", [DCL, DCLW])
@pytest.mark.parametrize("how", [{"impl": "reference"}, {"block": 3}, {}])
def test_equals_loops(make_batch, make_features, kind, settings, how):
    features, batch = awkward(make_batch, make_features)
    found = value_and_gradients(only_term(kind(**settings, **how), batch), features)
    told = {
        "sigma": 0.5 if kind is DCLW else None,
        "intra": settings.get("intra", False),
        "scale": 10.0 if settings.get("temperature") else None,
    }
    assert_equal(found, value_and_gradients(lambda f: _loops(f, batch, **told), features))


@pytest.mark.parametrize("num", [2, 5])
def test_clip_is_the_softplus_of_dcl_row_by_row(make_batch, make_features, num):
    """CLIP_i = log(1 + negatives / positive) = softplus(DCL_i): a row alone is what is left when only its pair is."""
    features = make_features(num, scale=5.0)
    z = (features.scale * features.image @ features.text[:, 0].T).detach()
    dcl = (z.masked_fill(torch.eye(num, dtype=torch.bool), -math.inf).logsumexp(1) - z.diag()).detach()
    across = z.T.masked_fill(torch.eye(num, dtype=torch.bool), -math.inf).logsumexp(1) - z.diag()
    assert only_term(DCL(), make_batch(num))(features).item() == pytest.approx(
        (dcl.mean() + across.mean()).item() / 2, abs=1e-12
    )
    from vlp.losses.infonce import InfoNCE

    expected = (softplus(dcl, threshold=100).mean() + softplus(across, threshold=100).mean()).item() / 2
    assert only_term(InfoNCE(), make_batch(num))(features).item() == pytest.approx(expected, abs=1e-12)


def test_two_pairs_give_the_difference_of_logits(make_batch, make_features):
    features = make_features(2, scale=3.0)
    x, y = features.image, features.text[:, 0]
    rows = [x[0] @ y[0] - x[0] @ y[1], x[1] @ y[1] - x[1] @ y[0], x[0] @ y[0] - x[1] @ y[0], x[1] @ y[1] - x[0] @ y[1]]
    value = only_term(DCL(), make_batch(2))(features)
    assert value.item() == pytest.approx(-3.0 * sum(row.item() for row in rows) / 4, abs=1e-12)


def test_a_row_without_a_negative_gives_nothing(make_batch, make_features):
    for batch in (make_batch(1), make_batch(4, label=[3] * 4)):
        for loss in (DCL(), DCLW(), DCL(intra=True)):
            found = value_and_gradients(only_term(loss, batch), make_features(len(batch)))
            assert all((x == 0).all() for x in found.values())


def test_the_weight_has_mean_one_and_no_gradient(make_batch, make_features):
    features = make_features(6)
    cosine = (features.image * features.text[:, 0]).sum(1).detach().requires_grad_()
    valid = torch.tensor([True] * 5 + [False])
    weight = DCLW().weights(cosine.detach(), valid)
    assert weight[:5].mean().item() == pytest.approx(1, abs=1e-12)
    assert (weight[:5].argsort() == cosine[:5].argsort(descending=True)).all()
    # if w learned, the gradient of the pull would have another part: that of a weight held fixed is all there is
    found = value_and_gradients(only_term(DCLW(), make_batch(6)), features)
    w = DCLW().weights(cosine.detach(), torch.ones(6, dtype=torch.bool))

    def fixed(f):
        z = f.scale * f.image @ f.text[:, 0].T
        off = z.masked_fill(torch.eye(6, dtype=torch.bool), -math.inf)
        return ((off.logsumexp(1) + off.logsumexp(0)) / 2 - w * z.diag()).mean()

    assert_equal(found, value_and_gradients(fixed, features))


@pytest.mark.parametrize("sigma", [0.1, 0.01, 0.001])
def test_a_small_sigma_does_not_overflow(make_batch, make_features, sigma):
    """exp(1 / sigma) is beyond fp32 from 1 / 89 on; the weights themselves stay within 2 and 2 - N."""
    cosine = torch.tensor([1.0, 0.9, 0.1, -1.0, 1.0])
    valid = torch.tensor([True] * 4 + [False])
    expected = 2 - 4 * (cosine[:4].double() / sigma).softmax(0)
    torch.testing.assert_close(DCLW(sigma=sigma).weights(cosine, valid)[:4].double(), expected, atol=1e-4, rtol=0)
    assert (DCLW(sigma=sigma).weights(cosine, torch.zeros(5, dtype=torch.bool)) == 2).all()


def test_the_pull_does_not_fade_where_clip_is_content(make_batch):
    """The gradient of CLIP vanishes for an easy pair; that of DCL stays the scale."""
    eye = torch.eye(3, dtype=torch.float64)
    from vlp.losses.infonce import InfoNCE
    from vlp.types import Features

    def pull(loss):
        features = Features(eye.clone().requires_grad_(), eye[:, None].clone(), torch.tensor([30.0]).double())
        (grad,) = torch.autograd.grad(only_term(loss, make_batch(3))(features), features.image)
        return -grad[0, 0].item()

    assert pull(InfoNCE()) < 1e-10
    assert pull(DCL()) == pytest.approx(30.0 / 3, abs=1e-9)
