"""Objectives through a model under DistributedDataParallel: the gradient of every parameter equals one process's."""

from __future__ import annotations

import torch
from torch.nn.parallel import DistributedDataParallel

from tests.losses.compare import assert_equal
from tests.towers import TinyTowers, gradients
from vlp.losses.infonce import InfoNCE
from vlp.losses.objective import Objective
from vlp.losses.sigmoid import Sigmoid

OBJECTIVES = [
    [InfoNCE(label_smoothing=0.1, block=2)],
    [InfoNCE(temperature=0.1, image_to_text=0.75)],
    [Sigmoid()],
    [InfoNCE(weight=0.3), Sigmoid(weight=2.0), InfoNCE(temperature=0.2, weight=0.0)],
]


def _one_rank(rank, world, batch):
    part = batch.rows(rank * len(batch) // world, (rank + 1) * len(batch) // world)
    result = []
    for losses in OBJECTIVES:
        model = TinyTowers()
        parallel = DistributedDataParallel(model)
        value = Objective(losses)(parallel(part), part)
        value.total.backward()
        result.append(({"total": value.total.detach(), **value.terms}, gradients(model)))
    return result


def _check(spawn, batch, world):
    ranks = spawn(_one_rank, world, batch)
    for i, losses in enumerate(OBJECTIVES):
        model = TinyTowers()
        value = Objective(losses)(model(batch), batch)
        value.total.backward()
        for rank in ranks:  # DDP leaves the same gradient on every rank
            assert_equal(rank[i][1], gradients(model), atol=1e-10)
        means = {name: torch.stack([rank[i][0][name] for rank in ranks]).mean(0) for name in ranks[0][i][0]}
        assert_equal(means, {"total": value.total.detach(), **value.terms})


def test_ddp_equals_one_process(spawn, make_batch):
    mask = [[True, True], [True, False], [True, True], [True, True], [False, True], [True, True]]
    valid = [True, False, True, True, True, True]
    batch = make_batch(6, captions=2, size=8, label=[1, 2, 1, 1, 2, 3], valid=valid, caption_mask=mask)
    _check(spawn, batch, 2)


def test_ddp_with_a_rank_without_a_valid_slot(spawn, make_batch):
    batch = make_batch(6, captions=2, size=8, label=[1, 2, 1, 1, 2, 3], valid=[True] * 4 + [False] * 2)
    _check(spawn, batch, 3)
