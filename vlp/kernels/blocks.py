"""How an N x N job is cut into blocks of rows, and the precision it runs in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

Impl = Literal["auto", "reference", "chunked"]  # auto: chunked
BLOCK = 256  # rows; 256 x 4096 fp32 numbers are 4 MB


def row_blocks(num_rows: int, block: int) -> Iterator[slice]:
    """Slices of at most `block` rows."""
    for start in range(0, num_rows, block):
        yield slice(start, min(start + block, num_rows))


def full(x: Tensor) -> Tensor:
    """`x` in fp32 if it is half; sums over N columns are not exact enough in less."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def no_autocast(x: Tensor) -> torch.autocast:
    """Region in which products keep the precision of their inputs."""
    return torch.autocast(x.device.type, enabled=False)
