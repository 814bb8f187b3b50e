"""KoLeo and uniformity against loops."""

from __future__ import annotations

import math

import pytest
import torch

from tests.losses.compare import assert_equal, awkward
from tests.losses.extra import gradients, summed
from tests.losses.heads import headed, parameters_gradients, real_batch
from tests.losses.small import real_of
from vlp.losses.objective import Objective
from vlp.losses.spread import KoLeo, Uniformity
from vlp.types import Features


def _sides(features, batch):
    """(rows, slots in use) of pictures, and of captions slot by slot."""
    valid = [i for i in range(len(batch)) if batch.valid[i]]
    texts = [(features.text[:, k], real_of(batch, k)) for k in range(batch.caption_mask.shape[1])]
    return {"image": [(features.image, valid)], "text": texts}


def _koleo(features, batch, side, eps):
    result, count = 0.0, 0
    for x, real in _sides(features, batch)[side]:
        count += len(real)
        for i in real:
            far = [(x[i] - x[j]).norm() for j in real if batch.label[j] != batch.label[i]]
            if far:
                result = result - (min(far) + eps).log()
    return result / count


def _uniformity(features, batch, side, t):
    result, count = 0.0, 0
    for x, real in _sides(features, batch)[side]:
        # |x_i - x_j|^2 of unit rows; what differs off the sphere, no feature can follow
        pairs = [(-t * (2 - 2 * x[i] @ x[j])).exp() for i in real for j in real if i != j]
        result = result + len(real) * (sum(pairs) / len(pairs)).log()
        count += len(real)
    return result / count


@pytest.mark.parametrize("sides", [("image",), ("text",), ("image", "text")])
@pytest.mark.parametrize("block", [None, 3])
def test_equal_loops(make_batch, make_features, sides, block):
    features, batch = awkward(make_batch, make_features)
    found = gradients(summed(KoLeo(sides=sides, block=block, eps=1e-3), batch), features)
    assert_equal(found, gradients(lambda f: sum(_koleo(f, batch, side, 1e-3) for side in sides), features))
    found = gradients(summed(Uniformity(sides=sides, block=block, t=3.0), batch), features)
    assert_equal(found, gradients(lambda f: sum(_uniformity(f, batch, side, 3.0) for side in sides), features))
    assert set(Uniformity(sides=sides)(features, batch)) == set(sides)


def test_known_values(make_batch):
    eye = torch.eye(4, dtype=torch.float64)
    features = Features(eye, eye[:, None], torch.ones(1, dtype=torch.float64))
    batch = make_batch(4)
    assert KoLeo(sides=("image",), eps=1e-12)(features, batch)["image"].item() == pytest.approx(-math.log(2) / 2)
    assert Uniformity(sides=("image",))(features, batch)["image"].item() == pytest.approx(-4.0)
    same = features._replace(image=eye[:1].expand(4, -1))
    assert KoLeo(sides=("image",))(same, batch)["image"].item() == pytest.approx(-math.log(1e-4))
    assert Uniformity(sides=("image",))(same, batch)["image"].item() == pytest.approx(0)


def test_pairs_of_one_label_are_no_neighbours_of_koleo(make_batch, make_features):
    features = make_features(4)
    with torch.no_grad():
        features.image[1] = features.image[0]
    apart = KoLeo(sides=("image",))(features, make_batch(4, label=[1, 1, 2, 3]))["image"].item()
    together = KoLeo(sides=("image",))(features, make_batch(4))["image"].item()
    assert together > apart + 3
    assert KoLeo(sides=("image",))(features, make_batch(4, label=[1] * 4))["image"].item() == 0


@pytest.mark.parametrize("loss", [KoLeo(sides=("image",)), Uniformity(sides=("text",))])
def test_a_side_that_is_not_looked_at_has_a_gradient_of_zero(loss):
    """DDP and AdamW tell it from none."""
    model, batch = headed([loss]), real_batch(momentum=False, views=0)
    Objective([loss])(model(batch), batch).total.backward()
    found = parameters_gradients(model)
    assert all((g == 0).all() for name, g in found.items() if name.startswith("text.") == (loss.sides == ("image",)))


@pytest.mark.parametrize("loss", [KoLeo(), Uniformity()])
def test_steps_spread_the_rows(make_batch, loss):
    torch.manual_seed(0)
    x = (torch.randn(12, 3) * 0.2 + torch.tensor([1.0, 0.0, 0.0])).requires_grad_()
    batch, optimizer = make_batch(12), torch.optim.SGD([x], lr=0.05)
    values = []
    for _ in range(60):
        rows = torch.nn.functional.normalize(x, dim=-1)
        value = summed(loss, batch)(Features(rows, rows[:, None], torch.ones(1)))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0] - 0.5
    assert torch.nn.functional.normalize(x, dim=-1).mean(0).norm() < 0.7
