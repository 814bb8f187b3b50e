"""A function of many rows in little memory: part by part, each dropped after the forward pass and made again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vlp.kernels.blocks import Impl, no_autocast, row_blocks

R = TypeVar("R", Tensor, tuple[Tensor, ...])


def in_parts(fn: Callable[..., R], parts: Sequence[slice], *rows: Tensor) -> R:
    """`fn(*rows)`: a result, or several, with one entry a row each.

    Of what lies between rows and results only that of one part exists at a time; a single part is kept. `fn` draws
    nothing, and runs in the precision that is in force here.
    """
    if len(parts) < 2:
        return fn(*rows)
    made = [checkpoint(fn, *(x[part] for x in rows), use_reentrant=False, preserve_rng_state=False) for part in parts]
    if isinstance(made[0], Tensor):
        return torch.cat(made)
    return tuple(torch.cat(results) for results in zip(*made, strict=True))


def by_rows(fn: Callable[..., R], *rows: Tensor, num_columns: int, impl: Impl = "auto", block: int | None = None) -> R:
    """`fn(*rows)` in tiles of rows times `num_columns` that suit the device, in the precision of the rows."""
    num_rows, device = len(rows[0]), rows[0].device
    parts = [slice(0, num_rows)]
    if impl != "reference":
        parts = row_blocks(num_rows, num_columns, block=block, device=device)
    with no_autocast(rows[0]):
        return in_parts(fn, parts, *rows)
