"""A scale of a loss's own: where it starts, within what it stays, and that it comes back from the border."""

from __future__ import annotations

import pytest
import torch

from vlp.losses import LOSSES
from vlp.losses.scale import OwnScale


@pytest.mark.parametrize(
    ("spec", "head", "name", "start"),
    [
        ({"name": "filip", "own_scale": True}, "filip_scale", "filip/scale", 47.8),
        ({"name": "dreamlip"}, "dreamlip", "dreamlip/scale", 1 / 0.07),
    ],
)
def test_losses_start_where_their_papers_do(make_batch, spec, head, name, start):
    loss = LOSSES.build(spec)
    made = loss.heads(None)[head](make_batch(1), None)
    assert set(made) == {name} <= loss.batchless
    assert made[name].shape == (1,)
    assert made[name].item() == pytest.approx(start, abs=0.05)


@pytest.mark.parametrize(("logarithm", "scale"), [(9.0, 100.0), (-9.0, 1.0)])
def test_it_stays_within_1_and_100_and_can_come_back(make_batch, logarithm, scale):
    head = OwnScale("mine/scale", logarithm)
    found = head(make_batch(1), None)["mine/scale"]
    assert found.item() == pytest.approx(scale, abs=1e-3)
    found.sum().backward()
    assert head.logit_scale.grad.item() == pytest.approx(scale, abs=1e-3)


def test_evaluation_changes_no_weight(make_batch):
    head = OwnScale("mine/scale", 9.0).eval()
    head(make_batch(1), None)
    assert torch.equal(head.logit_scale.detach(), torch.tensor([9.0]))
