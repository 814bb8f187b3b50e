"""Sum over all pairs of softplus(scale * x_i . y_j + bias), without keeping the product.

-log sigmoid(q z) is softplus(z) for negatives and softplus(z) - z for positives; the second part is linear in the
logits and needs no product over all pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from vlp.kernels.blocks import Impl, full, no_autocast, row_blocks

_LINEAR_ABOVE = 40.0  # softplus(z) - z is below 1e-17 there; torch's default of 20 costs 2e-9


def pair_softplus(
    x: Float[Tensor, "B D"],
    y: Float[Tensor, "N D"],
    scale: Float[Tensor, "1"],
    bias: Float[Tensor, "1"],
    *,
    row_valid: Bool[Tensor, "B"],
    column_valid: Bool[Tensor, "N"],
    impl: Impl = "auto",
    block: int | None = None,
) -> Float[Tensor, ""]:
    """Sum of softplus(scale * x_i . y_j + bias) over valid i and j."""
    with no_autocast(x):
        x, y, scale, bias = full(x), full(y), full(scale), full(bias)
        if impl == "reference":
            logits = (scale * x @ y.T + bias).masked_fill(~(row_valid[:, None] & column_valid), -torch.inf)
            return softplus(logits, threshold=_LINEAR_ABOVE).sum()
        return _Softplus.apply(x, y, scale, bias, row_valid, column_valid, block)  # type: ignore[no-any-return]


class _Softplus(torch.autograd.Function):
    """Tiles of rows; the result is one number, so its gradient is made in the forward pass: 3 products in all."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        bias: Tensor,
        row_valid: Tensor,
        column_valid: Tensor,
        block: int | None,
    ) -> Tensor:
        column_bias = bias.expand(len(y)).masked_fill(~column_valid, -torch.inf)
        weight = row_valid.to(x.dtype)  # of rows; it is never spread over a tile
        result, grad_bias, grad_scale = x.new_zeros(()), x.new_zeros(1), x.new_zeros(1)
        grad_x, grad_y = (torch.zeros_like(side) if any(ctx.needs_input_grad) else None for side in (x, y))
        for part in row_blocks(len(x), len(y), block=block, device=x.device):
            rows = x[part] * (scale * weight[part, None])
            tile = torch.addmm(column_bias, x[part] * scale, y.T)
            result += softplus(tile, threshold=_LINEAR_ABOVE).sum(1) @ weight[part]
            if grad_x is None or grad_y is None:
                continue
            share = tile.sigmoid_()
            grad_bias += share.sum(1) @ weight[part]
            grad_y.addmm_(share.T, rows)
            torch.mm(share, y, out=grad_x[part])
            grad_scale += (grad_x[part].mul_(weight[part, None]) * x[part]).sum()
            grad_x[part] *= scale
        ctx.save_for_backward(grad_x, grad_y, grad_scale, grad_bias)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = (saved * grad for saved in ctx.saved_tensors)
        return (*grads, None, None, None)
