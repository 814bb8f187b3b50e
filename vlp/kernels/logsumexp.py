"""Row and column log-sum-exps of scale * x @ y.T, without keeping the product.

Everything else in a softmax loss is linear in the logits and needs no product over all pairs: the term of the positives
is x_i times the mean of its positives, that of label smoothing x_i times the mean of all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlp.kernels.blocks import Impl, full, no_autocast, row_blocks, surely_all


class Both(NamedTuple):
    """Log-sum-exps of one matrix of logits; 0 for a row or column that is not valid."""

    rows: Tensor  # [B]
    columns: Tensor  # [N]


def row_logsumexp(
    x: Float[Tensor, "B D"],
    y: Float[Tensor, "N D"],
    scale: Float[Tensor, "1"],
    *,
    column_valid: Bool[Tensor, "N"],
    impl: Impl = "auto",
    block: int | None = None,
) -> Float[Tensor, "B"]:
    """Log of the sum over valid j of exp(scale * x_i . y_j), [B]; 0 where no column is valid."""
    with no_autocast(x):
        x, y, scale = full(x), full(y), full(scale)
        if impl == "reference":
            logits = (scale * x @ y.T).masked_fill(~column_valid, -torch.inf)
            return _zero_if_empty(logits.logsumexp(1), column_valid.any())
        everyone = torch.ones(len(x), dtype=torch.bool, device=x.device)
        rows, _ = _LogSumExp.apply(x, y, scale, everyone, column_valid, block, False)
        return rows  # type: ignore[no-any-return]


def pair_logsumexp(
    x: Float[Tensor, "B D"],
    y: Float[Tensor, "N D"],
    scale: Float[Tensor, "1"],
    *,
    row_valid: Bool[Tensor, "B"],
    column_valid: Bool[Tensor, "N"],
    impl: Impl = "auto",
    block: int | None = None,
) -> Both:
    """Log-sum-exps over valid columns for each row, and over valid rows for each column, of one product."""
    with no_autocast(x):
        x, y, scale = full(x), full(y), full(scale)
        if impl == "reference":
            logits = (scale * x @ y.T).masked_fill(~(row_valid[:, None] & column_valid), -torch.inf)
            some = row_valid.any() & column_valid.any()
            return Both(
                _zero_if_empty(logits.logsumexp(1), row_valid & some),
                _zero_if_empty(logits.logsumexp(0), column_valid & some),
            )
        return Both(*_LogSumExp.apply(x, y, scale, row_valid, column_valid, block, True))


def _zero_if_empty(sums: Tensor, filled: Tensor) -> Tensor:
    return torch.where(filled, sums, 0.0)


class _LogSumExp(torch.autograd.Function):
    """Tiles of rows; columns by a running log-sum-exp. Backward makes each tile again: 4 products in all.

    A single tile (small N) is kept instead: 3 products.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        row_valid: Tensor,
        column_valid: Tensor,
        block: int | None,
        both: bool,
    ) -> tuple[Tensor, Tensor]:
        rows = x.new_empty(len(x))
        columns = x.new_full((len(y) if both else 0,), -torch.inf)
        parts = row_blocks(len(x), len(y), block=block, device=x.device)
        tiles = _Tiles(x, y, scale, row_valid, column_valid)
        tile = x.new_empty(0)
        for part in parts:
            tile = tiles(part)
            torch.logsumexp(tile, 1, out=rows[part])
            if both:
                torch.logaddexp(columns, tile.logsumexp(0), out=columns)
        rows, columns = (sums.masked_fill_(sums == -torch.inf, 0.0) for sums in (rows, columns))
        ctx.save_for_backward(x, y, scale, row_valid, column_valid, rows, columns)
        ctx.parts, ctx.only_tile = parts, tile if len(parts) == 1 and any(ctx.needs_input_grad) else None
        return rows, columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rows: Tensor, grad_columns: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, row_valid, column_valid, rows, columns = ctx.saved_tensors
        grad_x, grad_y, grad_scale = torch.empty_like(x), torch.zeros_like(y), torch.zeros_like(scale)
        tiles = _Tiles(x, y, scale, row_valid, column_valid)
        for part in ctx.parts:
            tile = tiles(part) if ctx.only_tile is None else ctx.only_tile
            share = _shares(tile, rows[part, None], grad_rows[part, None])
            if len(columns):
                share += _shares(tile, columns, grad_columns)
            torch.mm(share, y, out=grad_x[part])
            grad_y.addmm_(share.T, x[part] * scale)
            grad_scale += (x[part] * grad_x[part]).sum()
        return grad_x.mul_(scale), grad_y, grad_scale, None, None, None, None


def _shares(tile: Tensor, sums: Tensor, grad: Tensor) -> Tensor:
    """Softmax of a tile, whose log-sum-exps are known, times the gradient of these."""
    return (tile - sums).exp_().mul_(grad)


class _Tiles:
    """Tiles of the masked logits: one fused product each."""

    def __init__(self, x: Tensor, y: Tensor, scale: Tensor, row_valid: Tensor, column_valid: Tensor) -> None:
        self.x, self.scale, self.transposed = x, scale, y.T
        self.column_bias = torch.zeros_like(y[:, 0]).masked_fill_(~column_valid, -torch.inf)
        self.absent = None if surely_all(row_valid) else ~row_valid

    def __call__(self, part: slice) -> Tensor:
        tile = torch.addmm(self.column_bias, self.x[part] * self.scale, self.transposed)
        return tile if self.absent is None else tile.masked_fill_(self.absent[part, None], -torch.inf)
