from __future__ import annotations

import pytest
import torch

from vlp.models import COMPANIONS
from vlp.models.companions import Ema
from vlp.models.freeze import lock

from .tiny import make_batch, make_dual


def test_the_average_is_the_loop_by_hand() -> None:
    dual = make_dual()
    ema = Ema(decay=0.9, ramp=False).build(dual)
    by_hand = dual.logit_scale.item()
    for step in range(1, 6):
        dual.logit_scale.data += 1.0
        by_hand = 0.9 * by_hand + 0.1 * dual.logit_scale.item()
        ema.after_step(dual, step=step, batch=None)
    assert ema.averages["logit_scale"].item() == pytest.approx(by_hand)


def test_ramp_and_every() -> None:
    dual = make_dual()
    ema = Ema(decay=0.99, every=2).build(dual)
    start = dual.logit_scale.item()
    dual.logit_scale.data += 1.0
    ema.after_step(dual, step=1, batch=None)
    assert ema.averages["logit_scale"].item() == start
    ema.after_step(dual, step=2, batch=None)
    assert ema.averages["logit_scale"].item() == pytest.approx(start + 1 - 2 / 11)


def test_applied_swaps_and_swaps_back_even_after_a_fault() -> None:
    dual, batch = make_dual(), make_batch()
    ema = Ema(decay=0.5).build(dual)
    at_start = dual(batch).text
    with torch.no_grad():
        for p in dual.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    now = dual(batch).text
    with pytest.raises(RuntimeError, match="stop"):  # noqa: PT012, SIM117
        with ema.applied(dual):
            assert torch.equal(dual(batch).text, at_start)
            raise RuntimeError("stop")
    assert torch.equal(dual(batch).text, now)


def test_locked_weights_are_not_kept_twice_and_state_comes_back() -> None:
    dual = make_dual()
    lock(dual, image=True)
    ema = Ema().build(dual)
    assert not any(name.startswith("visual.") for name in ema.averages)
    dual.logit_scale.data += 1
    ema.after_step(dual, step=1, batch=None)
    again = Ema().build(dual)
    again.load_state_dict(ema.state_dict())
    assert int(again.updates) == 1
    assert all(torch.equal(again.averages[name], tensor) for name, tensor in ema.averages.items())
    with pytest.raises(ValueError, match="not in both"):
        again.load_state_dict({"updates": torch.tensor(1), "average.other": torch.zeros(1)})


def test_statistics_of_batchnorm_are_averaged_too() -> None:
    from .test_freeze import RESNET

    dual = make_dual(RESNET)
    assert "visual.bn1.running_mean" in Ema().build(dual).averages


def test_the_table_has_it() -> None:
    assert COMPANIONS.build({"name": "ema", "decay": 0.9}) == Ema(decay=0.9)
