"""Schedules are pure functions of the step; groups cover every parameter once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vlp.duration import Clock
from vlp.optim import SCHEDULES, Optim, set_rate

CLOCK = Clock(batch_size=10, epoch_samples=100, total=100)


def rate(**spec: object):  # type: ignore[no-untyped-def]
    return SCHEDULES.build(spec).bind(CLOCK)


def test_warmup_reaches_the_base_rate_and_the_end_reaches_final() -> None:
    cosine = rate(name="cosine", warmup="10steps", final=0.1)
    assert cosine(0) == pytest.approx(0.1)
    assert cosine(9) == cosine(10) == 1.0
    assert cosine(55) == pytest.approx(0.55)
    assert cosine(100) == pytest.approx(0.1)
    assert {rate(name="constant")(s) for s in (0, 50, 1000)} == {1.0}
    linear = rate(name="linear", final=0.5)
    assert [linear(s) for s in (0, 50, 100)] == pytest.approx([1, 0.75, 0.5])


def test_wsd_is_flat_until_the_decay() -> None:
    wsd = rate(name="wsd", warmup="10%", decay="20steps")
    assert {wsd(s) for s in range(10, 80)} == {1.0}
    assert wsd(90) == pytest.approx(0.5)
    assert wsd(100) == 0.0
    sqrt = rate(name="wsd", decay="100steps", shape="sqrt")
    assert sqrt(25) == pytest.approx(0.5)


def test_infinite_cools_stays_and_anneals() -> None:
    infinite = rate(name="infinite", warmup=10, cooldown=20, constant=0.4, anneal=10, final=0.1)
    assert infinite(9) == 1.0
    assert infinite(20) == pytest.approx(0.7)
    assert {infinite(s) for s in range(30, 91)} == {0.4}
    assert infinite(95) == pytest.approx(0.4 * math.sqrt(0.25))
    open_end = rate(name="infinite", warmup=10, cooldown=20, constant=0.4)
    assert open_end(99) == open_end(10_000) == 0.4


class Towers(nn.Module):
    """Two towers of two blocks, as Dual names them."""

    no_decay = ("text.prefix",)

    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
        self.text = nn.ModuleDict({"one": nn.Linear(2, 2)})
        self.text.register_parameter("prefix", nn.Parameter(torch.ones(3, 2)))
        self.logit_scale = nn.Parameter(torch.ones(1))

    @property
    def image_blocks(self) -> list[nn.Module]:
        return [self.visual[1], self.visual[2]]

    @property
    def text_blocks(self) -> list[nn.Module]:
        return []


def test_groups_cover_all_once_and_scale_by_depth() -> None:
    dual = Towers()
    groups = list(Optim(lr=1.0, layer_decay=0.5, text_lr=0.1).groups(dual))
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in dual.named_parameters())
    where = {name: group for group in groups for name in group["names"]}
    assert [where[f"visual.{i}.weight"]["lr_scale"] for i in range(4)] == [0.125, 0.25, 0.5, 1.0]
    assert where["visual.3.bias"]["weight_decay"] == where["text.prefix"]["weight_decay"] == 0.0
    assert where["visual.3.weight"]["weight_decay"] == 0.2
    assert where["logit_scale"]["lr_scale"] == 1.0


def test_locked_parameters_have_no_group_and_rates_follow() -> None:
    dual = Towers()
    dual.visual.requires_grad_(False)
    optimizer = Optim(lr=1.0, text_lr=0.1).build(dual)
    assert not any(name.startswith("visual.") for group in optimizer.param_groups for name in group["names"])
    set_rate(optimizer, 0.5)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.05, 0.5])
    with pytest.raises(ValueError, match="every parameter of the model is locked"):
        Optim().build(dual.requires_grad_(False))
