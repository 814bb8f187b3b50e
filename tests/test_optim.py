"""Schedules are pure functions of the step; groups cover every parameter once."""

from __future__ import annotations

import math
from typing import Any

import pytest

from vlp.checkpoint import CheckpointError
from vlp.duration import Clock
from vlp.models.dual import Dual
from vlp.models.freeze import depths, lock
from vlp.models.model import Model
from vlp.optim import SCHEDULES, Optim, set_rate
from vlp.optim_state import load_optimizer, optimizer_tensors

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


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"name": "cosine", "warmup": 200}, "warmup of 200 steps do not fit a run of 100"),
        ({"name": "wsd", "warmup": 50, "decay": 60}, "warmup of 50 and decay of 60 steps do not fit"),
        ({"name": "infinite", "cooldown": "80%", "anneal": 30}, "cooldown of 80 and anneal of 30 steps do not fit"),
    ],
)
def test_phases_that_the_run_has_no_room_for_are_refused(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rate(**spec)


def test_shares_that_add_up_to_the_whole_fit_a_run_of_any_length() -> None:
    for total in range(1, 40):
        clock = CLOCK._replace(total=total)
        SCHEDULES.build({"name": "infinite", "warmup": "5%", "cooldown": "65%", "anneal": "30%"}).bind(clock)
        SCHEDULES.build({"name": "wsd", "warmup": "33.3%", "decay": "66.7%"}).bind(clock)


def test_an_anneal_goes_down() -> None:
    with pytest.raises(ValueError, match=r"goes down from constant, 0\.005, to final, which is more: 0\.01"):
        rate(name="infinite", constant=0.005, anneal=10)
    assert rate(name="infinite", constant=0.005)(99) == 0.005


@pytest.fixture(scope="module")
def dual() -> Dual:
    return Model(arch="vlp-nano").build()


def test_groups_cover_all_once_and_scale_by_depth(dual: Dual) -> None:
    groups = list(Optim(lr=1.0, layer_decay=0.5, text_lr=0.1).groups(dual, depths=depths(dual)))
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in dual.named_parameters())
    scale = {name: group["lr_scale"] for group in groups for name in group["names"]}
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    num = len(dual.image_blocks)
    blocks = [scale[f"visual.transformer.resblocks.{i}.attn.in_proj_weight"] for i in range(num)]
    assert blocks == pytest.approx([0.5 ** (num - i) for i in range(num)])
    assert (scale["visual.proj"], scale["visual.ln_post.weight"], scale["visual.conv1.weight"]) == pytest.approx(
        (1.0, 0.5, 0.5 ** (num + 1))
    )
    assert scale["text.text_projection"] == pytest.approx(0.1)
    assert scale["text.token_embedding.weight"] == pytest.approx(0.1 * 0.5 ** (len(dual.text_blocks) + 1))
    assert scale["logit_scale"] == 1.0
    assert decay["visual.ln_post.weight"] == decay["logit_scale"] == 0.0
    assert decay["visual.proj"] == decay["visual.conv1.weight"] == 0.2


def test_locked_parameters_have_no_group_and_rates_follow() -> None:
    dual = Model(arch="vlp-nano").build()
    lock(dual, image=True)
    optimizer = Optim(lr=1.0, text_lr=0.1).build(dual, depths=depths(dual))
    assert not any(name.startswith("visual.") for group in optimizer.param_groups for name in group["names"])
    set_rate(optimizer, 0.5)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.05, 0.5])
    with pytest.raises(ValueError, match="every parameter of the model is locked"):
        Optim().build(dual.requires_grad_(False), depths={})


def test_state_of_a_run_with_more_locks_is_refused_with_a_way_out() -> None:
    locked, free = Model(arch="vlp-nano").build(), Model(arch="vlp-nano").build()
    lock(locked, text=True)
    before, now = (Optim().build(dual, depths=depths(dual)) for dual in (locked, free))
    with pytest.raises(CheckpointError, match=r"they were locked then; keep the locks, or start a run of another name"):
        load_optimizer(now, optimizer_tensors(before))
