"""Token-wise similarities of all pairs (late interaction), without keeping the products of all tokens.

FILIP (Yao et al. 2022), equations 3 to 5. An image's similarity with a text is the mean over its patches of the best
token's, a text's with an image the mean over its real tokens of the best patch's; neither is the other's transpose.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vlp.kernels.blocks import full, no_autocast
from vlp.kernels.late_chunked import late_chunked

LateImpl = Literal["auto", "reference", "chunked", "triton"]  # auto: triton where it can run, else chunked
Want = Literal["both", "rows", "columns"]
PadMax = Literal["exclude", "zero"]


class Late(NamedTuple):
    """Similarities of A images with M texts, fp32 at least; None if not asked for, 0 where a side has no real token."""

    rows: Tensor | None  # [A, M] image to text
    columns: Tensor | None  # [A, M] text to image


def late_similarity(
    x: Float[Tensor, "A P D"],
    y: Float[Tensor, "M T D"],
    *,
    x_mask: Bool[Tensor, "A P"] | None,
    y_mask: Bool[Tensor, "M T"],
    want: Want = "both",
    pad_max: PadMax = "exclude",
    impl: LateImpl = "auto",
    block: int | None = None,
) -> Late:
    """Mean over real patches of the best token's product, and mean over real tokens of the best patch's, [A, M] each.

    The gradient of a maximum goes to its first winner. With `pad_max="zero"` the padding of a text counts as a vector
    of zeros in the maximum of `rows`, as in the authors' weights; a text that fills all T has none. `block` is the
    number of images of a tile.
    """
    chosen = _choose(impl, x, y)
    with no_autocast(x):
        if chosen == "triton":
            from vlp.kernels.late_triton import late_fused  # here: not every platform has Triton

            return Late(*late_fused(x, y, x_mask, y_mask, want=want, zero=pad_max == "zero"))
        x_mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if x_mask is None else x_mask
        x, y = full(x), full(y)
        if chosen == "reference":
            return _reference(x, y, x_mask, y_mask, want=want, pad_max=pad_max)
        return Late(*late_chunked(x, y, x_mask, y_mask, want=want, zero=pad_max == "zero", block=block))


def _choose(impl: LateImpl, x: Tensor, y: Tensor) -> LateImpl:
    if impl == "auto":
        return "triton" if x.is_cuda and not _refusal(x, y) else "chunked"
    if impl == "triton" and (reason := _refusal(x, y)):
        raise ValueError(f'impl "triton": {reason}; use "auto" or "chunked"')
    return impl


def _refusal(x: Tensor, y: Tensor) -> str:
    """Why the Triton form cannot take these; empty if it can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return f"it runs on CUDA, and the tokens are on {x.device.type}"
    if torch.float64 in (x.dtype, y.dtype):
        return "it sums in fp32, and the tokens are fp64"
    return ""


def _reference(x: Tensor, y: Tensor, x_mask: Tensor, y_mask: Tensor, *, want: Want, pad_max: PadMax) -> Late:
    """As the equations are written: all products at once, [A, P, M, T]."""
    x, y = (side.masked_fill(~mask[..., None], 0.0) for side, mask in ((x, x_mask), (y, y_mask)))
    products = torch.einsum("apd,mtd->apmt", x, y)
    some = x_mask.any(1)[:, None] & y_mask.any(1)
    rows = columns = None
    if want != "columns":
        best = products.masked_fill(~y_mask, -torch.inf).max(3).values
        if pad_max == "zero":
            best = best.masked_fill((best < 0) & ~y_mask.all(1), 0.0)  # at 0 the token wins, as in all forms
        rows = _mean(best, x_mask[:, :, None], 1, some)
    if want != "rows":
        best = products.masked_fill(~x_mask[:, :, None, None], -torch.inf).max(1).values
        columns = _mean(best, y_mask, 2, some)
    return Late(rows, columns)


def _mean(best: Tensor, mask: Tensor, dim: int, some: Tensor) -> Tensor:
    """Mean over real ones; 0, also in the gradient, for a pair without any."""
    real = mask & some.unsqueeze(dim)
    return best.masked_fill(~real, 0.0).sum(dim) / real.sum(dim).clamp(min=1)
