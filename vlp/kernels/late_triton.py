"""Token-wise similarities fused in Triton: products of half or fp32 inputs, sums and maxima in fp32.

The forward holds one image against a few texts. Products of a tile of patches x (texts, tokens) stay in registers,
where a running maximum per patch is taken and, with all patches there, the maximum per token; only the means are
written, and the winners if asked for. The backward needs nothing but winners: their weights are put into a tile of
zeros in registers, and a product makes the gradient. Winners are kept up to KEEP_BYTES, else made again for some images
at a time. There are no atomics, so the same inputs give the same bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton  # type: ignore
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlp.kernels.late_programs import gradients, maxima
from vlp.kernels.late_slots import winner_type

KEEP_BYTES = 1 << 31  # of winners, between forward and backward or at once in the backward
_ALL_PATCHES = 256  # up to here one tile holds all slots of an image, so that one pass makes both maxima
_ITEMS, _SLOTS = 4, 16  # of a tile on the side that is walked along; more of them spill registers


class _Side(NamedTuple):
    """Tokens with each item's real ones first, in their order, and zeros behind them."""

    tokens: Tensor  # [N, L, D]
    real: Tensor  # int32 [N]
    width: Tensor  # int32 [N]; slots that take part in a maximum: one more than real where zeros do
    order: Tensor | None  # long [N]; which item stands where, those with most slots first; None: as given
    places: Tensor | None  # long [N, L]; where its slots stood among [N * L]

    def some(self, items: slice) -> _Side:
        return self._replace(tokens=self.tokens[items], real=self.real[items], width=self.width[items])

    def unpack(self, grads: Tensor, dtype: torch.dtype) -> Tensor:
        if self.places is None:
            return grads.to(dtype)
        flat = torch.empty_like(grads, dtype=dtype).view(-1, grads.shape[-1])
        return flat.index_copy_(0, self.places.reshape(-1), grads.view_as(flat).to(dtype)).view(grads.shape)


def _side(tokens: Tensor, mask: Tensor | None, *, zero: bool = False) -> _Side:
    num, length, _ = tokens.shape
    if mask is None:
        real = torch.full((num,), length, dtype=torch.int32, device=tokens.device)
        return _Side(tokens.contiguous(), real, real, None, None)
    real = mask.sum(1, dtype=torch.int32)
    width = torch.where((real > 0) & (real < length), real + zero, real)
    order = width.argsort(descending=True, stable=True)
    places = (~mask[order]).to(torch.uint8).argsort(dim=1, stable=True) + order[:, None] * length
    packed = tokens.reshape(num * length, -1)[places.reshape(-1)].view_as(tokens)
    packed.masked_fill_((torch.arange(length, device=mask.device) >= real[order, None])[..., None], 0.0)
    return _Side(packed, real[order].contiguous(), width[order].contiguous(), order, places)


class _Result(NamedTuple):
    """Means and winners of some images with all texts, in the order of the sides; None: not asked for."""

    rows: Tensor | None  # [A, M]
    columns: Tensor | None  # [A, M]
    token: Tensor | None  # [A, M, P]
    patch: Tensor | None  # [A, M, T]


def late_fused(
    x: Tensor, y: Tensor, x_mask: Tensor | None, y_mask: Tensor, *, want: str, zero: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Rows and columns of `vlp.kernels.late`, each None if not in `want`."""
    dtype = torch.promote_types(x.dtype, y.dtype)
    rows, columns = _Late.apply(x.to(dtype), y.to(dtype), x_mask, y_mask, want != "columns", want != "rows", zero)
    return rows, columns


class _Late(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, x_mask: Tensor | None, y_mask: Tensor, rows: bool, columns: bool, zero: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.set_materialize_grads(False)
        images, texts = _side(x, x_mask), _side(y, y_mask, zero=zero)
        keep = any(ctx.needs_input_grad[:2]) and len(x) * _winner_bytes(images, texts, rows, columns) <= KEEP_BYTES
        made = _all_maxima(images, texts, rows=rows, columns=columns, keep=keep)
        ctx.save_for_backward(x, y, x_mask, y_mask, made.token, made.patch)
        ctx.rows, ctx.columns, ctx.zero, ctx.kept = rows, columns, zero, keep
        poison = _poison(images)[:, None] + _poison(texts)
        return tuple(None if part is None else _reorder(part + poison, images, texts) for part in made[:2])  # type: ignore

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rows: Tensor | None, grad_columns: Tensor | None) -> tuple[Tensor | None, ...]:
        x, y, x_mask, y_mask, token, patch = ctx.saved_tensors
        images, texts = _side(x, x_mask), _side(y, y_mask, zero=ctx.zero)
        weights = _weights(grad_rows, grad_columns, images, texts)
        grad_x, grad_y = (torch.zeros_like(side.tokens, dtype=torch.float32) for side in (images, texts))
        if weights is not None:
            rows, columns, largest = weights
            a_time = _winner_bytes(images, texts, ctx.rows, ctx.columns)
            step = len(x) if ctx.kept else max(1, KEEP_BYTES // a_time)
            for start in range(0, len(x), step):
                items = slice(start, start + step)
                some = images.some(items)
                if not ctx.kept:
                    made = _all_maxima(some, texts, rows=rows is not None, columns=columns is not None, keep=True)
                    token, patch = made.token, made.patch
                here = tuple(None if w is None else w[items] for w in (rows, columns))
                _add_gradients(some, texts, token, patch, here, grad_x[items], grad_y)
            grad_x, grad_y = grad_x.mul_(largest), grad_y.mul_(largest)
        return images.unpack(grad_x, x.dtype), texts.unpack(grad_y, y.dtype), None, None, None, None, None


def _poison(side: _Side) -> Tensor:
    """0 for each item, or not a number where a real token is not finite: Triton's maxima pass over those."""
    return side.tokens.sum((1, 2), dtype=torch.float32) * 0


def _winner_bytes(images: _Side, texts: _Side, rows: bool, columns: bool) -> int:
    """Bytes of the winners of one image with all texts."""
    num, tokens, _ = texts.tokens.shape
    patches = images.tokens.shape[1]
    bytes_of_rows = patches * winner_type(tokens).itemsize * rows
    return max(1, num * (bytes_of_rows + tokens * winner_type(patches).itemsize * columns))


def _reorder(part: Tensor, images: _Side, texts: _Side) -> Tensor:
    """[A, M] in the order of the sides, back as given."""
    if texts.order is not None:
        part = torch.empty_like(part).index_copy_(1, texts.order, part)
    return part if images.order is None else torch.empty_like(part).index_copy_(0, images.order, part)


def _weights(
    grad_rows: Tensor | None, grad_columns: Tensor | None, images: _Side, texts: _Side
) -> tuple[Tensor | None, Tensor | None, Tensor] | None:
    """Weight of every winner, in the order of the sides, as shares of the largest: half precision holds those."""
    found = []
    for grad, side, dim in ((grad_rows, images, 1), (grad_columns, texts, 0)):
        if grad is not None:
            grad = grad if images.order is None else grad[images.order]
            grad = grad if texts.order is None else grad[:, texts.order]
            grad = (grad.float() / side.real.clamp(min=1).unsqueeze(dim)).contiguous()
        found.append(grad)
    given = [grad.abs().amax() for grad in found if grad is not None and grad.numel()]
    if not given:
        return None
    largest = torch.stack(given).amax().clamp(min=torch.finfo(torch.float32).tiny)
    rows, columns = (None if grad is None else grad / largest for grad in found)
    return rows, columns, largest


def _all_maxima(images: _Side, texts: _Side, *, rows: bool, columns: bool, keep: bool) -> _Result:
    """Both directions in one pass where a tile holds all patches, else in one pass each."""
    (num, patches, _), (others, tokens, _) = images.tokens.shape, texts.tokens.shape
    new = images.tokens.new_empty
    made = _Result(
        new(num, others, dtype=torch.float32) if rows else None,
        new(num, others, dtype=torch.float32) if columns else None,
        new(num, others, patches, dtype=winner_type(tokens)) if rows and keep else None,
        new(num, others, tokens, dtype=winner_type(patches)) if columns and keep else None,
    )
    if patches <= _ALL_PATCHES:
        _launch_maxima(images, texts, made.rows, made.columns, made.token, made.patch)
        return made
    if rows:
        _launch_maxima(images, texts, made.rows, None, made.token, None)
    if made.columns is not None:
        turned = None if made.patch is None else made.patch.transpose(0, 1)
        _launch_maxima(texts, images, made.columns.T, None, turned, None)
    return made


def _launch_maxima(
    held: _Side, walked: _Side, over: Tensor | None, along: Tensor | None, at: Tensor | None, by: Tensor | None
) -> None:
    """`over`, `at`: mean and winners of each slot of `held` over those of `walked`; `along`, `by`: the other way."""
    (num, slots, width), (others, other_slots, _) = held.tokens.shape, walked.tokens.shape
    if not num or not others:
        return
    tile = max(16, min(_ALL_PATCHES if along is not None else 128, _power(slots)))
    nothing = held.real  # stands for what is not asked for: a pointer that is not followed
    strides = [s for t in (over, along) for s in ((0, 0) if t is None else t.stride())]
    index_strides = [s for t in (at, by) for s in ((0, 0) if t is None else t.stride()[:2])]
    maxima[(num, triton.cdiv(others, _ITEMS))](
        held.tokens, walked.tokens, held.real, walked.real, walked.width,
        *(nothing if t is None else t for t in (over, along, at, by)),
        others, slots, other_slots, width, *strides, *index_strides,
        OVER=over is not None, ALONG=along is not None, AT=at is not None, BY=by is not None,
        TILE=tile, ITEMS=_ITEMS, SLOTS=_SLOTS, WIDTH=_width(held, width), PRECISION=_precision(held),
        num_warps=8 if tile > 64 else 4, num_stages=2,
    )  # fmt: skip


def _add_gradients(
    images: _Side,
    texts: _Side,
    token: Tensor | None,
    patch: Tensor | None,
    weights: tuple[Tensor | None, ...],
    grad_x: Tensor,
    grad_y: Tensor,
) -> None:
    rows, columns = weights
    turned = [None if t is None else t.transpose(0, 1) for t in (rows, columns, token, patch)]
    patches = max(16, _power(images.tokens.shape[1]))
    held, walked, few = (1, min(128, patches)), (1, min(64, patches)), (_ITEMS, _SLOTS)
    _launch_gradients(images, texts, rows, columns, token, patch, grad_x, held, few)
    _launch_gradients(texts, images, turned[1], turned[0], turned[3], turned[2], grad_y, few, walked)


def _launch_gradients(
    side: _Side,
    other: _Side,
    over: Tensor | None,
    along: Tensor | None,
    at: Tensor | None,
    by: Tensor | None,
    grad: Tensor,
    tile: tuple[int, int],
    other_tile: tuple[int, int],
) -> None:
    """Adds to `grad` of a side: `over`, `at` are weights and winners of its own slots, `along`, `by` of the other's."""
    (num, slots, width), (others, other_slots, _) = side.tokens.shape, other.tokens.shape
    if not num or not others:
        return
    over, at = (None, None) if over is None or at is None else (over, at)
    along, by = (None, None) if along is None or by is None else (along, by)
    strides = [s for t in (over, along) for s in ((0, 0) if t is None else t.stride())]
    index_strides = [s for t in (at, by) for s in ((0, 0) if t is None else t.stride()[:2])]
    columns = min(128 if side.tokens.element_size() == 2 else 64, max(16, _power(width)))
    gradients[(triton.cdiv(num, tile[0]), triton.cdiv(slots, tile[1]), triton.cdiv(width, columns))](
        other.tokens, grad, side.real, other.real, other.width,
        *(side.real if t is None else t for t in (over, along, at, by)),
        num, others, slots, other_slots, width, *strides, *index_strides,
        OVER=over is not None, ALONG=along is not None,
        ITEMS=tile[0], SLOTS=tile[1], OTHERS=other_tile[0], OTHER_SLOTS=other_tile[1],
        WIDTH=columns, PRECISION=_precision(side), num_warps=8 if tile[0] * tile[1] > 64 else 4, num_stages=2,
    )  # fmt: skip


def _width(side: _Side, width: int) -> int:
    """Columns of a step of the products: half of them in fp32."""
    return max(16, min(64 if side.tokens.element_size() == 2 else 32, _power(width)))


def _precision(side: _Side) -> str:
    """Of fp32 products: three tf32 products for one, which is as good as fp32, unless torch's own are rounded too."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"


def _power(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()
