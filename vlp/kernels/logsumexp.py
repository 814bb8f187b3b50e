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

from vlp.kernels.blocks import BLOCK, Impl, full, no_autocast, row_blocks


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
    block: int = BLOCK,
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
    block: int = BLOCK,
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
    """Blocks of rows; columns by a running log-sum-exp. Backward makes each block again: 4 products in all."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, scale: Tensor, row_valid: Tensor, column_valid: Tensor, block: int, both: bool
    ) -> tuple[Tensor, Tensor]:
        rows = x.new_empty(len(x))
        columns = x.new_full((len(y) if both else 0,), -torch.inf)
        logits = _Logits(x, y, scale, row_valid, column_valid)
        for part in row_blocks(len(x), block):
            tile = logits.tile(part)
            torch.logsumexp(tile, 1, out=rows[part])
            if both:
                torch.logaddexp(columns, tile.logsumexp(0), out=columns)
        rows, columns = (sums.masked_fill_(sums == -torch.inf, 0.0) for sums in (rows, columns))
        ctx.save_for_backward(x, y, scale, row_valid, column_valid, rows, columns)
        ctx.block = block
        return rows, columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rows: Tensor, grad_columns: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, row_valid, column_valid, rows, columns = ctx.saved_tensors
        grad_x, grad_y = torch.empty_like(x), torch.zeros_like(y)
        logits = _Logits(x, y, scale, row_valid, column_valid)
        for part in row_blocks(len(x), ctx.block):
            tile = logits.tile(part)
            # in place: the tile turns into the gradient of the logits
            share = tile.sub(rows[part, None]).exp_().mul_(grad_rows[part, None]) if len(columns) else None
            if share is None:
                share = tile.sub_(rows[part, None]).exp_().mul_(grad_rows[part, None])
            else:
                share.addcmul_(tile.sub_(columns).exp_(), grad_columns.expand_as(tile))
            torch.mm(share, y, out=grad_x[part])
            grad_y.addmm_(share.T, logits.scaled[part])
        grad_scale = (x * grad_x).sum().reshape(scale.shape)
        return grad_x.mul_(scale), grad_y, grad_scale, None, None, None, None


class _Logits:
    """Tiles of the masked logits: one fused product each."""

    def __init__(self, x: Tensor, y: Tensor, scale: Tensor, row_valid: Tensor, column_valid: Tensor) -> None:
        self.scaled = x * scale
        self.transposed = y.T
        self.column_bias = torch.zeros_like(y[:, 0]).masked_fill_(~column_valid, -torch.inf)
        self.absent = ~row_valid
        # a look at the mask saves a pass over every tile; on an accelerator it would cost a wait
        self.blank_rows = x.device.type != "cpu" or bool(self.absent.any())

    def tile(self, part: slice) -> Tensor:
        tile = torch.addmm(self.column_bias, self.scaled[part], self.transposed)
        return tile.masked_fill_(self.absent[part, None], -torch.inf) if self.blank_rows else tile
