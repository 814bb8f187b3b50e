"""SDM and CMPM against loops, and what KL divergences must do."""

from __future__ import annotations

import math

import pytest
import torch

from tests.losses.compare import assert_equal, awkward, only_term, value_and_gradients
from tests.losses.extra import gradients, summed
from tests.losses.heads import assert_ddp_exact, assert_gradcache_exact, assert_learns, headed, real_batch
from tests.losses.small import real_of, situation
from vlp.losses.identity import CMPM, SDM
from vlp.types import Features


def _loops(features, batch, *, temperature=0.02, eps=1e-8, pictures=None):
    result, count = [], 0
    pictures = features.image if pictures is None else pictures
    for k in range(batch.caption_mask.shape[1]):
        real = real_of(batch, k)
        count += len(real)
        for x, y in ((pictures, features.text[:, k]), (features.text[:, k], pictures)):
            for i in real:
                partition = sum((x[i] @ y[j] / temperature).exp() for j in real)
                matches = sum(batch.label[j] == batch.label[i] for j in real).item()
                for j in real:
                    p = (x[i] @ y[j] / temperature).exp() / partition
                    q = float(batch.label[i] == batch.label[j]) / matches  # sums to 1 along the row
                    result.append(p * (p.log() - math.log(q + eps)))
    return sum(result) / count


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.3}, {"temperature": 1.0, "eps": 1e-3}])
@pytest.mark.parametrize("how", [{"impl": "reference"}, {"block": 3}])
def test_equals_loops(make_batch, make_features, settings, how):
    features, batch = awkward(make_batch, make_features)
    found = value_and_gradients(only_term(SDM(**settings, **how), batch), features)
    expected = value_and_gradients(lambda f: _loops(f, batch, **settings), features)
    assert_equal(found, expected, atol=1e-10)


def test_the_learned_scale_has_no_part(make_batch, make_features):
    values = [only_term(SDM(), make_batch(4))(make_features(4, scale=scale)).item() for scale in (1.0, 50.0)]
    assert values[0] == values[1]


def test_equal_similarities_among_equal_identities_are_a_perfect_match(make_batch):
    """P = Q where everyone has one identity and all cosines are equal; only eps is left."""
    row = torch.nn.functional.normalize(torch.arange(1.0, 4.0, dtype=torch.float64), dim=0)
    features = Features(row.expand(5, 3), row.expand(5, 1, 3), torch.tensor([1.0], dtype=torch.float64))
    value = only_term(SDM(), make_batch(5, label=[2] * 5))(features).item()
    assert value == pytest.approx(-2 * math.log(1 + 5e-8), abs=1e-12)


def test_identities_of_unequal_size_are_normalised_by_row(make_batch):
    """Three of one identity, one of another: orthogonal groups at a high scale are a perfect match again."""
    eye = torch.eye(2, dtype=torch.float64)
    rows = eye[[0, 0, 0, 1]]
    features = Features(rows, rows[:, None], torch.tensor([1.0], dtype=torch.float64))
    value = only_term(SDM(), make_batch(4, label=[1, 1, 1, 2]))(features).item()
    assert abs(value) < 1e-6


@pytest.mark.parametrize("settings", [{}, {"eps": 1e-3}])
@pytest.mark.parametrize("how", [{"impl": "reference"}, {"block": 3}])
def test_cmpm_equals_loops(make_batch, make_features, settings, how):
    features, batch = situation(make_batch, make_features)
    found = gradients(summed(CMPM(**settings, **how), batch), features)

    def loops(f):
        return _loops(f, batch, temperature=1.0, pictures=f.extra["cmpm/image"], **settings)

    assert_equal(found, gradients(loops, features), atol=1e-10)


def test_cmpm_of_unit_pictures_times_fifty_is_sdm(make_batch, make_features):
    features, batch = awkward(make_batch, make_features)
    longer = features._replace(extra={"cmpm/image": 50 * features.image})
    torch.testing.assert_close(CMPM()(longer, batch), SDM()(features, batch))


def test_cmpm_with_a_real_model(spawn):
    """The pictures it reads are the model's before they are made unit; every parameter learns."""
    loss, batch = CMPM(), real_batch(views=0, momentum=False)
    model = headed([loss])
    features = model(batch)
    made = features.extra["cmpm/image"]
    torch.testing.assert_close(torch.nn.functional.normalize(made, dim=-1), features.image)
    assert (made.norm(dim=-1) - 1).abs().max() > 0.1
    assert_gradcache_exact([loss], batch)
    assert_learns([loss], batch)
    assert_ddp_exact([loss], [batch], spawn)
