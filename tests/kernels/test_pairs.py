"""The chunked kernels against their N x N references: values, gradients, precision, memory."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize
from torch.profiler import ProfilerActivity, profile

from vlp.kernels.logsumexp import pair_logsumexp, row_logsumexp
from vlp.kernels.softplus import pair_softplus


def _inputs(rows=5, columns=7, width=4, *, dtype=torch.float64, scale=10.0, seed=0):
    rng = torch.Generator().manual_seed(seed)
    x, y = (normalize(torch.randn(n, width, generator=rng, dtype=torch.float64), dim=1) for n in (rows, columns))
    row_valid, column_valid = torch.ones(rows, dtype=torch.bool), torch.ones(columns, dtype=torch.bool)
    row_valid[1::4], column_valid[2::3] = False, False
    numbers = [torch.tensor([value], dtype=torch.float64) for value in (scale, -2.0)]
    leaves = [t.to(dtype).requires_grad_() for t in (x, y, *numbers)]
    return (*leaves, row_valid, column_valid)


def _rows(x, y, scale, bias, row_valid, column_valid, **how):
    return row_logsumexp(x, y, scale, column_valid=column_valid, **how)


def _pairs(x, y, scale, bias, row_valid, column_valid, **how):
    return torch.cat(pair_logsumexp(x, y, scale, row_valid=row_valid, column_valid=column_valid, **how))


def _softplus(x, y, scale, bias, row_valid, column_valid, **how):
    return pair_softplus(x, y, scale, bias, row_valid=row_valid, column_valid=column_valid, **how)


KERNELS = pytest.mark.parametrize("kernel", [_rows, _pairs, _softplus])


def _with_gradients(kernel, inputs, **how):
    out = kernel(*inputs, **how)
    weight = torch.linspace(0.5, 2, out.numel(), dtype=out.dtype).reshape(out.shape)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), inputs[:4], allow_unused=True)]


@KERNELS
@pytest.mark.parametrize("block", [1, 2, 3, 5, 64])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_chunked_equals_reference(kernel, block, dtype, atol):
    inputs = _inputs(dtype=dtype)
    found = _with_gradients(kernel, inputs, impl="chunked", block=block)
    expected = _with_gradients(kernel, inputs, impl="reference")
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=atol, rtol=atol)


@KERNELS
def test_gradcheck(kernel):
    *leaves, row_valid, column_valid = _inputs(3, 4, 2, scale=2.0)
    assert torch.autograd.gradcheck(lambda *args: kernel(*args, row_valid, column_valid, block=2), leaves)


@KERNELS
@pytest.mark.parametrize("scale", [0.0, 1000.0])
def test_extreme_scales_stay_finite_and_equal(kernel, scale):
    inputs = _inputs(dtype=torch.float32, scale=scale)
    for a, b in zip(
        _with_gradients(kernel, inputs, block=2), _with_gradients(kernel, inputs, impl="reference"), strict=True
    ):
        if a is not None:
            assert a.isfinite().all()
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@KERNELS
@pytest.mark.parametrize("impl", ["chunked", "reference"])
def test_half_inputs_are_summed_in_fp32(kernel, impl):
    half = _inputs(40, 600, 16, dtype=torch.bfloat16, scale=16.0)
    same = [t.detach().float().requires_grad_() for t in half[:4]]
    expected = kernel(*same, *half[4:], impl="reference")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = kernel(*half, impl=impl, block=16)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


@KERNELS
@pytest.mark.parametrize("impl", ["chunked", "reference"])
def test_nothing_valid_is_zero_with_zero_gradient(kernel, impl):
    *leaves, row_valid, column_valid = _inputs()
    found = _with_gradients(kernel, (*leaves, row_valid & False, column_valid & False), impl=impl, block=2)
    assert all((x == 0).all() for x in found if x is not None)


@KERNELS
def test_memory_does_not_grow_with_the_square(kernel):
    inputs = _inputs(2048, 2048, 8, dtype=torch.float32)
    square = 2048 * 2048 * 4
    assert _largest_allocation(kernel, inputs, impl="chunked", block=32) < square / 16
    assert _largest_allocation(kernel, inputs, impl="reference") >= square


def _largest_allocation(kernel, inputs, **how) -> int:
    """Bytes of the largest single operator's allocation, forward and backward."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as events:
        _with_gradients(kernel, inputs, **how)
    return max(event.self_cpu_memory_usage for event in events.events())


def test_row_logsumexp_without_gradient_keeps_nothing():
    x, y, scale, _, _, valid = _inputs()
    with torch.no_grad():
        found = row_logsumexp(x, y, scale, column_valid=valid, block=2)
    assert not found.requires_grad
    torch.testing.assert_close(found, (scale * x @ y[valid].T).logsumexp(1).detach(), atol=1e-12, rtol=0)
