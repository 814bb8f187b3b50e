"""The cells that a grid goes through."""

from __future__ import annotations

from vlp.adapters.loki import Loki
from vlp.adapters.tpt import TPT
from vlp.adapters.waffle import Waffle
from vlp.adapters.zeroshot import ZeroShot
from vlp.tune.protocols import FewShot
from vlp.tune.trial import Plan


def test_methods_that_draw_go_through_all_seeds_and_those_that_do_not_once():
    methods = [ZeroShot(), Waffle(), TPT(), Loki(of=Waffle()), Loki()]
    plan = Plan(methods, shots=[1, None], seeds=[1, 2], protocol=FewShot())
    found = [(methods.index(method), shots, seed) for method, shots, seed in plan.cells()]
    draw = [(place, 0, seed) for place in (1, 2, 3) for seed in (1, 2)]
    assert found == [(0, 0, 1), *draw, (4, 0, 1)]
