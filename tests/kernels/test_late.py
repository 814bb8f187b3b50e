"""Token-wise similarities: loops, and the chunked form beside the reference: values, gradients, ties, masks, memory."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.nn.functional import normalize
from torch.profiler import ProfilerActivity, profile

from vlp.kernels import late_chunked
from vlp.kernels.late import late_similarity

SHAPES = [(5, 7, 9, 6, 4), (3, 1, 4, 1, 2), (70, 5, 33, 9, 8), (4, 300, 3, 5, 8), (3, 5, 4, 300, 8)]  # A P M T D
IMPLS = pytest.mark.parametrize("impl", ["chunked", "reference"])


def inputs(images=5, patches=7, texts=9, tokens=6, width=4, *, dtype=torch.float64, integers=False, seed=0):
    """Unit tokens, or integers, whose products often tie; ragged masks with empty items, and NaN where they say no."""
    rng = torch.Generator().manual_seed(seed)
    x, y = (
        torch.randn(*shape, width, generator=rng, dtype=torch.float64) for shape in ((images, patches), (texts, tokens))
    )
    x, y = (side.round() if integers else normalize(side, dim=-1) for side in (x, y))
    x_mask, y_mask = (torch.rand(side.shape[:2], generator=rng) < 0.6 for side in (x, y))
    x_mask[1], y_mask[0] = False, False
    x[~x_mask], y[~y_mask] = torch.nan, torch.nan
    return x.to(dtype).requires_grad_(), y.to(dtype).requires_grad_(), x_mask, y_mask


def run(x, y, x_mask, y_mask, **how):
    """What was asked for, then both gradients."""
    found = [part for part in late_similarity(x, y, x_mask=x_mask, y_mask=y_mask, **how) if part is not None]
    rng = torch.Generator().manual_seed(1)
    total = sum((part * torch.randn(part.shape, generator=rng).to(part.dtype)).sum() for part in found)
    return [*(part.detach() for part in found), *torch.autograd.grad(total, (x, y))]


def assert_same(found, expected, *, atol=1e-12):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b, atol=atol, rtol=atol)


def by_loops(x, y, x_mask, y_mask, *, zero=False):
    rows, columns = x.new_zeros(len(x), len(y)), x.new_zeros(len(x), len(y))
    for i in range(len(x)):
        for j in range(len(y)):
            patches = [p for p in range(x.shape[1]) if x_mask[i, p]]
            tokens = [t for t in range(y.shape[1]) if y_mask[j, t]]
            if not patches or not tokens:
                continue
            padding = [x.new_zeros(())] if zero and len(tokens) < y.shape[1] else []
            for p in patches:
                rows[i, j] += max([x[i, p] @ y[j, t] for t in tokens] + padding) / len(patches)
            for t in tokens:
                columns[i, j] += max(x[i, p] @ y[j, t] for p in patches) / len(tokens)
    return rows, columns


@IMPLS
@pytest.mark.parametrize("pad_max", ["exclude", "zero"])
def test_equals_loops(impl, pad_max):
    x, y, x_mask, y_mask = inputs()
    y_mask[2] = True  # a text without padding
    y = torch.where(y.isnan() & y_mask[..., None], 0.5, y.detach())
    with torch.no_grad():
        found = late_similarity(x, y, x_mask=x_mask, y_mask=y_mask, pad_max=pad_max, impl=impl)
        expected = by_loops(x, y, x_mask, y_mask, zero=pad_max == "zero")
    assert_same(found, expected)


@pytest.mark.parametrize("keep", [late_chunked.KEEP_BYTES, 0])
@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("pad_max", ["exclude", "zero"])
@pytest.mark.parametrize("want", ["both", "rows", "columns"])
def test_chunked_equals_reference(monkeypatch, keep, integers, pad_max, want):
    monkeypatch.setattr(late_chunked, "KEEP_BYTES", keep)
    for shape in SHAPES:
        given = inputs(*shape, integers=integers)
        expected = run(*given, want=want, pad_max=pad_max, impl="reference")
        for block in (None, 2):
            assert_same(run(*given, want=want, pad_max=pad_max, impl="chunked", block=block), expected)


@IMPLS
def test_only_what_is_wanted(impl):
    x, y, x_mask, y_mask = inputs()
    for want, at in (("rows", 1), ("columns", 0)):
        found = late_similarity(x, y, x_mask=x_mask, y_mask=y_mask, want=want, impl=impl)
        assert [part is None for part in found] == [at == 0, at == 1]


def test_gradient_of_one_direction_alone_of_both():
    x, y, x_mask, y_mask = inputs()
    for at in (0, 1):
        grads = [
            torch.autograd.grad(
                late_similarity(x, y, x_mask=x_mask, y_mask=y_mask, impl=impl)[at].square().sum(), (x, y)
            )
            for impl in ("chunked", "reference")
        ]
        assert_same(*grads)


def test_gradcheck():
    x, y, x_mask, y_mask = inputs(3, 4, 3, 5, 3)
    x, y = (torch.nan_to_num(side.detach(), nan=0.3).requires_grad_() for side in (x, y))
    assert torch.autograd.gradcheck(lambda x, y: late_similarity(x, y, x_mask=x_mask, y_mask=y_mask, block=2), (x, y))


@IMPLS
def test_tie_goes_to_the_first(impl):
    x = torch.tensor([[[1.0, 0], [1, 0]]], requires_grad=True)
    y = torch.tensor([[[0.0, 9], [2, 0], [2, 0]]], requires_grad=True)
    mask = torch.tensor([[False, True, True]])
    found = late_similarity(x, y, x_mask=None, y_mask=mask, impl=impl)
    grad_x, grad_y = torch.autograd.grad(found.rows.sum() + 10 * found.columns.sum(), (x, y))
    assert grad_y[0].tolist() == [[0, 0], [1 + 5, 0], [5, 0]]  # both patches take the first real token
    assert grad_x[0].tolist() == [[1 + 20, 0], [1, 0]]  # both tokens take the first patch


@IMPLS
def test_at_zero_the_token_wins_over_padding(impl):
    x = torch.tensor([[[1.0, 0]]], requires_grad=True)
    y = torch.tensor([[[0.0, 1], [0, 0]], [[-1.0, 0], [0, 0]]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, False]])
    rows, _ = late_similarity(x, y, x_mask=None, y_mask=mask, pad_max="zero", impl=impl)
    assert rows.tolist() == [[0, 0]]
    assert torch.autograd.grad(rows.sum(), y)[0].tolist() == [[[1, 0], [0, 0]], [[0, 0], [0, 0]]]


@IMPLS
def test_padding_changes_nothing(impl):
    x, y, x_mask, y_mask = inputs(dtype=torch.float64)
    short = run(x, y, x_mask, y_mask, impl=impl)
    long_x, long_y = (torch.cat([side.detach(), torch.full_like(side, torch.nan)], 1) for side in (x, y))
    masks = [torch.cat([mask, torch.zeros_like(mask)], 1) for mask in (x_mask, y_mask)]
    padded = run(long_x.requires_grad_(), long_y.requires_grad_(), *masks, impl=impl)
    assert_same([*padded[:2], padded[2][:, :7], padded[3][:, :6]], short)
    assert (padded[2][:, 7:] == 0).all()
    assert (padded[3][:, 6:] == 0).all()


@IMPLS
def test_nothing_real_is_zero_with_zero_gradient(impl):
    x, y, x_mask, y_mask = inputs()
    for masks in ((x_mask & False, y_mask), (x_mask, y_mask & False)):
        assert all((part == 0).all() for part in run(x, y, *masks, impl=impl))


@IMPLS
def test_not_a_number_is_not_hidden(impl):
    x, y, x_mask, y_mask = inputs(dtype=torch.float32)
    y_mask[3, 2] = True
    with torch.no_grad():
        y[3, 2] = torch.nan
    found = run(x, y, x_mask, y_mask, impl=impl)
    assert found[0][0, 3].isnan()
    assert found[1][0, 3].isnan()


@IMPLS
def test_half_inputs_give_fp32(impl):
    x, y, x_mask, y_mask = inputs(8, 9, 8, 6, 32, dtype=torch.bfloat16)
    same = [side.detach().float().requires_grad_() for side in (x, y)]
    expected = run(*same, x_mask, y_mask, impl="reference")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(x, y, x_mask, y_mask, impl=impl)
    assert [part.dtype for part in found] == [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16]
    assert_same(found[:2], expected[:2], atol=1e-6)
    assert_same([grad.float() for grad in found[2:]], expected[2:], atol=2e-2)


def test_texts_are_cut_where_little_padding_is_multiplied():
    parts = list(late_chunked._parts([32] * 3 + [31] * 2 + [20, 19, 18, 5, 4], 100))
    assert [(part.items.start, part.items.stop, part.width) for part in parts] == [
        (0, 3, 32),  # another would be more than 100 rows
        (3, 5, 31),
        (5, 8, 20),  # 18 is above 7/8 of 20
        (8, 9, 5),
        (9, 10, 4),
    ]
    assert list(late_chunked._parts([], 10)) == []
    assert [part.width for part in late_chunked._parts([300, 300], 10)] == [300, 300]


def test_memory_does_not_grow_with_all_products():
    x, y, x_mask, y_mask = inputs(128, 16, 128, 16, 8, dtype=torch.float32)
    given = x, y, x_mask | True, y_mask | True
    products = 128 * 128 * 16 * 16 * 4
    assert _largest_allocation(*given, impl="chunked", block=16) < products / 4
    assert _largest_allocation(*given, impl="reference") >= products


def _largest_allocation(*given, **how) -> int:
    """Bytes of the largest single operator's allocation, forward and backward."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as events:
        run(*given, **how)
    return max(event.self_cpu_memory_usage for event in events.events())


def test_triton_is_refused_where_it_cannot_run(monkeypatch):
    given = inputs(dtype=torch.float32)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match='on CUDA, and the tokens are on cpu; use "auto" or "chunked"'):
        run(*given, impl="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match="fp64"):
        run(*inputs(), impl="triton")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="triton is not installed"):
        run(*given, impl="triton")


def test_auto_on_a_cpu_is_chunked_and_loads_no_triton(monkeypatch):
    given = inputs()
    loaded = "vlp.kernels.late_triton" in sys.modules
    assert_same(run(*given), run(*given, impl="chunked"), atol=0)
    assert ("vlp.kernels.late_triton" in sys.modules) == loaded
