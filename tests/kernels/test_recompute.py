"""Rows in parts: results and gradients are those of the whole, in their order, and memory is that of one part."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from vlp.kernels.recompute import by_rows, in_parts


def _given(rows=7, width=4):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=rng, dtype=torch.float64, requires_grad=True)
    table = torch.randn(9, width, generator=rng, dtype=torch.float64, requires_grad=True)
    return x, torch.arange(rows), table


@pytest.mark.parametrize("parts", [[slice(0, 3), slice(3, 6), slice(6, 7)], [slice(i, i + 1) for i in range(7)]])
def test_one_result_or_several(parts):
    x, index, table = _given()

    def one(x, index):
        return (x @ table.T).softmax(1)[torch.arange(len(index)), index]

    def two(x, index):
        return one(x, index), index * 2

    found = in_parts(one, parts, x, index)
    several, doubled = in_parts(two, parts, x, index)
    expected = one(x, index)
    assert doubled.tolist() == (index * 2).tolist()
    grads = [torch.autograd.grad(y.square().sum(), (x, table)) for y in (found, several, expected)]
    for y, grad in zip((found, several), grads, strict=False):
        torch.testing.assert_close(y, expected, atol=1e-14, rtol=0)
        for a, b in zip(grad, grads[2], strict=True):
            torch.testing.assert_close(a, b, atol=1e-14, rtol=0)


def test_tiles_come_back_in_order():
    doubled, index = by_rows(lambda x: (2 * x, x.long()), torch.arange(7.0), num_columns=3, block=2)
    assert doubled.tolist() == [2.0 * i for i in range(7)]
    assert index.tolist() == list(range(7))


@pytest.mark.parametrize(("how", "calls"), [({"impl": "reference"}, 1), ({}, 1), ({"block": 7}, 1), ({"block": 2}, 8)])
def test_only_several_parts_are_made_twice(how, calls):
    seen = []

    def fn(x):
        seen.append(len(x))
        return x.square().sum(1)

    by_rows(fn, _given()[0], num_columns=9, **how).sum().backward()
    assert len(seen) == calls
    assert sum(seen) == 7 * (2 if calls > 1 else 1)


def test_no_rows_give_no_results():
    assert in_parts(lambda x: x.sum(1), [], torch.zeros(0, 3)).shape == (0,)


def test_precision_is_that_of_the_rows_or_the_one_in_force():
    x, ones = torch.randn(6, 4, requires_grad=True), torch.ones(4, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        full = by_rows(lambda x: x @ ones, x, num_columns=2, block=2)
        half = in_parts(lambda x: x @ ones, [slice(0, 3), slice(3, 6)], x)
    assert (full.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(torch.autograd.grad(half.float().sum(), x)[0], torch.full((6, 4), 2.0))


def test_memory_is_that_of_one_part():
    x, table = torch.randn(2048, 8, requires_grad=True), torch.randn(2048, 8, requires_grad=True)

    def largest(**how):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as events:
            sums = by_rows(lambda x: (x @ table.T).logsumexp(1), x, num_columns=2048, **how)
            torch.autograd.grad(sums.sum(), (x, table))
        return max(event.self_cpu_memory_usage for event in events.events())

    assert largest(block=32) < 2048 * 2048 * 4 / 16
    assert largest(impl="reference") >= 2048 * 2048 * 4
