"""Rows that do not see everything: against sums written out, in tiles and whole."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize
from torch.profiler import ProfilerActivity, profile

from vlp.kernels.masked import Limit, masked_logsumexp


def _inputs(rows=5, columns=7, width=4, *, groups=3, dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    x, y = (normalize(torch.randn(n, width, generator=rng, dtype=torch.float64), dim=1) for n in (rows, columns))
    leaves = [t.to(dtype).requires_grad_() for t in (x, y, torch.tensor([10.0], dtype=torch.float64))]
    known = {
        "row_group": torch.arange(rows) % groups,
        "column_group": torch.arange(columns) % groups,
        "column_valid": torch.rand(columns, generator=rng) < 0.8,
    }
    return leaves, known


def _written_out(leaves, known, same, limit):
    x, y, scale = leaves
    sums, counts = [], []
    for i in range(len(x)):
        seen = [
            j
            for j in range(len(y))
            if known["column_valid"][j]
            and bool(known["row_group"][i] == known["column_group"][j]) == same
            and (limit is None or limit.rows[i] @ limit.columns[j] <= limit.limit[i])
        ]
        counts.append(float(len(seen)))
        zero = 0.0 * scale[0]
        sums.append(sum((scale[0] * (x[i] @ y[j])).exp() for j in seen).log() if seen else zero)
    return torch.stack(sums), torch.tensor(counts, dtype=x.dtype)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("how", [{"impl": "reference"}, {"block": 1}, {"block": 2}, {}])
def test_equals_sums_written_out(same, limited, how):
    leaves, known = _inputs()
    known["row_group"][0] = 9  # a group that no column has
    limit = None
    if limited:
        limit = Limit(leaves[0].detach(), leaves[1].detach(), torch.tensor([-2.0, 0.0, 0.1, 0.3, 2.0]).double())
    found = masked_logsumexp(*leaves, **known, same=same, limit=limit, **how)
    expected = _written_out(leaves, known, same, limit)
    assert not same or expected[1][0] == 0
    assert expected[1].max() >= 1
    weight = torch.linspace(0.5, 2, 5).double()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
    grads = [torch.autograd.grad((sums * weight).sum(), leaves) for sums in (found.sums, expected[0])]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize("block", [1, None])
def test_a_row_that_sees_nothing_has_no_gradient(block):
    leaves, known = _inputs(groups=1)
    found = masked_logsumexp(*leaves, **known, block=block)
    assert (found.sums == 0).all()
    assert (found.counts == 0).all()
    assert all((g == 0).all() for g in torch.autograd.grad(found.sums.sum(), leaves))


def test_half_inputs_are_summed_in_fp32():
    leaves, known = _inputs(40, 600, 16, dtype=torch.bfloat16)
    expected = masked_logsumexp(*(x.detach().float() for x in leaves), **known, impl="reference")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = masked_logsumexp(*leaves, **known, block=16)
    assert found.sums.dtype is torch.float32
    torch.testing.assert_close(found.sums, expected.sums, atol=1e-4, rtol=1e-5)
    assert torch.autograd.grad(found.sums.sum(), leaves[0])[0].isfinite().all()


def test_memory_does_not_grow_with_the_square():
    leaves, known = _inputs(2048, 2048, 8, groups=500, dtype=torch.float32)
    square = 2048 * 2048 * 4

    def largest(**how):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as events:
            torch.autograd.grad(masked_logsumexp(*leaves, **known, **how).sums.sum(), leaves)
        return max(event.self_cpu_memory_usage for event in events.events())

    assert largest(block=32) < square / 16
    assert largest(impl="reference") >= square
