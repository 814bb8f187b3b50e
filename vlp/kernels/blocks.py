"""How an N x N job is cut into tiles of rows, and the precision it runs in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

Impl = Literal["auto", "reference", "chunked"]  # auto: chunked
Block = Annotated[
    Annotated[int, Field(ge=1)] | None, Field(description="rows of a tile; null: as many as suit the device")
]

_TILE_NUMBERS = {"cpu": 1 << 20}  # 4 MB of fp32, which a core's cache half holds; rows below 64 make products slow
_ACCELERATOR = 1 << 24


def row_blocks(num_rows: int, num_columns: int, *, block: int | None, device: torch.device) -> list[slice]:
    """Slices of rows, one after the other; a tile is one slice times all columns."""
    numbers = _TILE_NUMBERS.get(device.type, _ACCELERATOR)
    rows = block or max(64, numbers // max(1, num_columns))
    return list(_slices(num_rows, rows))


def _slices(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def full(x: Tensor) -> Tensor:
    """`x` in fp32 if it is half; sums over N columns are not exact enough in less."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def no_autocast(x: Tensor) -> Any:
    """Region in which products keep the precision of their inputs."""
    return torch.autocast(x.device.type, enabled=False)


def surely_all(mask: Tensor) -> bool:
    """Whether a mask is known to be all true. To look costs an accelerator a wait, so there the answer is no."""
    return mask.device.type == "cpu" and bool(mask.all())
