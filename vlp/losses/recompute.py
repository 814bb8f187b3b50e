"""A function of many rows in little memory: part by part, each made again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def in_parts(fn: Callable[..., Tensor], parts: Sequence[slice], *rows: Tensor) -> Tensor:
    """fn(*rows) [n]; of all its intermediate values only those of one part exist at a time. `fn` draws nothing."""
    if len(parts) < 2:
        return fn(*rows)
    made = [checkpoint(fn, *(x[part] for x in rows), use_reentrant=False, preserve_rng_state=False) for part in parts]
    return torch.cat(made)
