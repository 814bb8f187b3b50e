"""Log-sum-exps over rows of N logits some of which are not seen, in tiles of rows: memory is one tile, not N x N."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vlp.kernels.blocks import Impl, full
from vlp.kernels.recompute import by_rows


class Limit(NamedTuple):
    """Columns j with rows_i . columns_j above limit_i are left out; no gradient goes here."""

    rows: Tensor  # [B, E]
    columns: Tensor  # [N, E]
    limit: Tensor  # [B]


class Masked(NamedTuple):
    """Log-sum-exps over the columns that each row sees, and how many these are; 0 and 0 where there is none."""

    sums: Tensor  # [B]
    counts: Tensor  # [B], floats


def masked_logsumexp(
    x: Float[Tensor, "B D"],
    y: Float[Tensor, "N D"],
    scale: Float[Tensor, "1"],
    *,
    row_group: Int[Tensor, "B"],
    column_group: Int[Tensor, "N"],
    column_valid: Bool[Tensor, "N"],
    same: bool = False,
    limit: Limit | None = None,
    impl: Impl = "auto",
    block: int | None = None,
) -> Masked:
    """Log of the sum of exp(scale * x_i . y_j) over the valid j of other groups than i's, or with `same` of i's own."""
    x, y, scale = full(x), full(y), full(scale)

    def tile(x: Tensor, group: Tensor, *judged: Tensor) -> tuple[Tensor, Tensor]:
        seen = ((group[:, None] == column_group) == same) & column_valid
        if limit is not None:
            seen &= judged[0] @ limit.columns.T <= judged[1][:, None]
        return sums_over(scale * x @ y.T, seen)

    judged = (limit.rows, limit.limit) if limit is not None else ()
    return Masked(*by_rows(tile, x, row_group, *judged, num_columns=len(y), impl=impl, block=block))


@torch.no_grad()
def masked_nearest(
    x: Float[Tensor, "B D"],
    y: Float[Tensor, "N D"],
    *,
    row_group: Int[Tensor, "B"],
    column_group: Int[Tensor, "N"],
    column_valid: Bool[Tensor, "N"],
    impl: Impl = "auto",
    block: int | None = None,
) -> tuple[Int[Tensor, "B"], Bool[Tensor, "B"]]:
    """Index of the largest x_i . y_j over the valid j of other groups than i's, and whether there is one."""
    x, y = full(x), full(y)

    def tile(rows: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
        seen = (group[:, None] != column_group) & column_valid
        return (rows @ y.T).masked_fill(~seen, -torch.inf).argmax(1), seen.any(1)

    place, some = by_rows(tile, x, row_group, num_columns=len(y), impl=impl, block=block)
    return place, some


def sums_over(logits: Float[Tensor, "B N"], seen: Bool[Tensor, "B N"]) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over what is seen of each row, and how much that is; 0 and 0 for a row that sees nothing."""
    counts = seen.sum(1)
    some = counts > 0
    # -inf in whole rows would make NaN gradients; such a row keeps its logits, and is left out afterwards
    sums = logits.masked_fill(~seen & some[:, None], -torch.inf).logsumexp(1)
    return torch.where(some, sums, 0.0), counts.to(logits.dtype)
