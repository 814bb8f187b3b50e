"""Guards that need no run."""

from __future__ import annotations

import torch
from torch import nn

from vlp.guards import BatchStatistics


def test_a_step_that_is_left_out_leaves_no_statistics() -> None:
    frozen = nn.BatchNorm1d(3).eval()
    tower = nn.Sequential(nn.BatchNorm1d(3), frozen)
    tower(torch.randn(8, 3))
    before = [buffer.clone() for buffer in tower.buffers()]
    statistics = BatchStatistics(tower)
    assert len(statistics.buffers) == 3, "of the layer that takes them"
    statistics.keep()
    tower(torch.full((8, 3), torch.nan))
    assert tower[0].running_mean.isnan().all()
    statistics.put_back()
    assert all(torch.equal(a, b) for a, b in zip(tower.buffers(), before, strict=True))
