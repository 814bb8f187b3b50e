"""Token-wise similarities in tiles of images x texts, with a backward of their own.

A tile is [texts, tokens, patches, images]: with the images innermost both maxima run along whole vectors. Only the
winners are kept for the backward, a byte each (two where an item has more than 256 tokens), or nothing where that would
be more than KEEP_BYTES; the backward then makes each tile again. It writes the weights of a tile's winners into zeros
and makes both gradients by products: on a CPU gathers of single rows are no faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlp.kernels.late_slots import Slots, slots, winner_type

KEEP_BYTES = 1 << 28  # of winners, between forward and backward
_TILE_NUMBERS = {"cpu": 1 << 20}  # 4 MB of fp32; more would leave the caches, less costs two threads their meetings
_ACCELERATOR = 1 << 24
_IMAGES = 64  # of a tile; whole vectors: 32 and 64 are several times faster than 16 or 50


class Part(NamedTuple):
    """Some items of a side and the slots that the longest of them uses."""

    items: slice
    width: int


class Winners(NamedTuple):
    """First index of each maximum in one tile; None where that direction is not asked for."""

    token: Tensor | None  # [texts, patches, images]
    patch: Tensor | None  # [texts, tokens, images]


def late_chunked(
    x: Tensor, y: Tensor, x_mask: Tensor, y_mask: Tensor, *, want: str, zero: bool, block: int | None
) -> tuple[Tensor | None, Tensor | None]:
    """Rows and columns of `vlp.kernels.late`, each None if not in `want`."""
    images, texts = slots(x_mask, like=x), slots(y_mask, like=x, zero=zero)
    plan = _Plan(images, texts, want != "columns", want != "rows", block, x.device)
    rows, columns = _Late.apply(x, y, plan)
    return rows, columns


class _Plan:
    """How the sides are cut, and what each tile is asked for."""

    def __init__(
        self, images: Slots, texts: Slots, rows: bool, columns: bool, block: int | None, device: torch.device
    ) -> None:
        self.images, self.texts, self.rows, self.columns = images, texts, rows, columns
        numbers = _TILE_NUMBERS.get(device.type, _ACCELERATOR)
        widths = images.widths.tolist()
        self.image_parts = [
            Part(slice(start, start + step), max(widths[start : start + step]))
            for step in [block or _IMAGES]
            for start in range(0, len(widths), step)
        ]
        size = min(block or _IMAGES, len(widths)) * max(widths, default=0)
        self.text_parts = list(_parts(texts.widths.tolist(), max(1, numbers // max(1, size))))

    def winner_bytes(self) -> int:
        """Bytes of all winners."""

        def of(side: Slots, other: Slots) -> int:
            return int(side.widths.sum()) * len(other.order) * winner_type(other.places.shape[1]).itemsize

        return self.rows * of(self.images, self.texts) + self.columns * of(self.texts, self.images)


def _parts(widths: list[int], rows: int) -> Iterator[Part]:
    """Runs of texts, longest first, of at most `rows` slots in all (but one text), none below 7/8 of the longest.

    A run that is half full ends where the length changes, so that large batches multiply no padding at all.
    """
    start = 0
    for stop in range(1, len(widths) + 1):
        longest, num = widths[start], stop - start
        if stop < len(widths):
            width = widths[stop]
            fits = (num + 1) * longest <= rows and 8 * width >= 7 * longest
            if fits and (width == widths[stop - 1] or 2 * num * longest < rows):
                continue
        yield Part(slice(start, stop), longest)
        start = stop


class _Late(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, plan: _Plan) -> tuple[Tensor | None, Tensor | None]:
        ctx.set_materialize_grads(False)
        tiles = _Tiles(x, y, plan)
        keep = any(ctx.needs_input_grad[:2]) and plan.winner_bytes() <= KEEP_BYTES
        shape = (len(plan.texts.order), len(plan.images.order))
        rows, columns = (x.new_empty(shape) if wanted else None for wanted in (plan.rows, plan.columns))
        winners: list[Winners] = []
        for image_part in plan.image_parts:
            tiles.load(image_part)
            for number, text_part in enumerate(plan.text_parts):
                tile = tiles.product(number)
                best = _maxima(tile, plan)
                where = (text_part.items, image_part.items)
                if rows is not None and best[0] is not None:
                    rows[where] = (best[0] * tiles.image_weight).sum(1)
                if columns is not None and best[1] is not None:
                    columns[where] = (best[1] * tiles.text_weight[number]).sum(1)
                if keep:
                    winners.append(tiles.winners(tile, best))
        ctx.save_for_backward(x, y)
        ctx.plan, ctx.winners = plan, winners if keep else None
        return _back_in_order(rows, len(x), len(y), plan), _back_in_order(columns, len(x), len(y), plan)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_rows: Tensor | None, grad_columns: Tensor | None) -> tuple[Tensor | None, ...]:
        (x, y), plan = ctx.saved_tensors, ctx.plan
        tiles, winners = _Tiles(x, y, plan), iter(ctx.winners or ())
        weights = [None if grad is None else _sorted(grad, plan) for grad in (grad_rows, grad_columns)]
        grad_x, packed_grad_y = torch.zeros_like(x), [torch.zeros_like(packed) for packed in tiles.packed]
        for image_part in plan.image_parts:
            tiles.load(image_part)
            part_grad = torch.zeros_like(tiles.patches)
            for number, text_part in enumerate(plan.text_parts):
                won = next(winners) if ctx.winners is not None else tiles.winners_again(number)
                where = (text_part.items, image_part.items)
                share = tiles.shares(number, won, *(None if w is None else w[where] for w in weights))
                part_grad.addmm_(share.T, tiles.packed[number])
                packed_grad_y[number].addmm_(share, tiles.patches)
            plan.images.give(grad_x, part_grad, *image_part, slots_first=True)
        grad_y = torch.zeros_like(y)
        for part, packed in zip(plan.text_parts, packed_grad_y, strict=True):
            plan.texts.give(grad_y, packed, *part)
        return grad_x, grad_y, None


class _Tiles:
    """Makes the tiles of one part of the images after the other, always in the same memory."""

    def __init__(self, x: Tensor, y: Tensor, plan: _Plan) -> None:
        self.x, self.plan = x, plan
        self.packed = [plan.texts.take(y, *part) for part in plan.text_parts]
        self.text_weight = [plan.texts.weight[part.items, : part.width, None] for part in plan.text_parts]
        self.buffers = [x.new_empty(0), x.new_empty(0)]

    def load(self, part: Part) -> None:
        self.patches = self.plan.images.take(self.x, *part, slots_first=True)
        self.image_weight = self.plan.images.weight[part.items, : part.width].T
        self.shape = (part.width, self.image_weight.shape[1])

    def _empty(self, number: int, which: int) -> Tensor:
        part = self.plan.text_parts[number]
        texts = part.items.stop - part.items.start
        shape = (texts, part.width, *self.shape)
        total = texts * part.width * self.shape[0] * self.shape[1]
        if self.buffers[which].numel() < total:
            self.buffers[which] = self.x.new_empty(total)
        return self.buffers[which][:total].view(shape)

    def product(self, number: int) -> Tensor:
        tile = self._empty(number, 0)
        torch.mm(self.packed[number], self.patches.T, out=tile.view(len(self.packed[number]), len(self.patches)))
        return tile

    def winners(self, tile: Tensor, best: tuple[Tensor | None, Tensor | None]) -> Winners:
        scratch = self.buffers[1] if self.buffers[1].numel() >= tile.numel() else tile.new_empty(tile.numel())
        self.buffers[1] = scratch
        return Winners(*(None if b is None else _first(tile, b, dim, scratch) for dim, b in enumerate(best, start=1)))

    def winners_again(self, number: int) -> Winners:
        tile = self.product(number)
        return self.winners(tile, _maxima(tile, self.plan))

    def shares(self, number: int, won: Winners, grad_rows: Tensor | None, grad_columns: Tensor | None) -> Tensor:
        """Gradient of a tile, [texts * tokens, patches * images]: zero but for the winners."""
        tile = self._empty(number, 0).zero_()
        if won.token is not None and grad_rows is not None:
            share = grad_rows[:, None] * self.image_weight
            tile.scatter_(1, won.token.long()[:, None], share[:, None])
        if won.patch is not None and grad_columns is not None:
            share = grad_columns[:, None] * self.text_weight[number]
            tile.scatter_add_(2, won.patch.long()[:, :, None], share[:, :, None])
        return tile.view(len(self.packed[number]), len(self.patches))


def _maxima(tile: Tensor, plan: _Plan) -> tuple[Tensor | None, Tensor | None]:
    """Over tokens [texts, patches, images] and over patches [texts, tokens, images]."""
    return tile.amax(1) if plan.rows else None, tile.amax(2) if plan.columns else None


def _first(tile: Tensor, best: Tensor, dim: int, scratch: Tensor) -> Tensor:
    """First index along `dim` where the tile is `best`.

    Written as floats and with `amax`: comparisons that give booleans, and `max` with indices, are not vectorised.
    """
    size = tile.shape[dim]
    same = torch.eq(tile, best.unsqueeze(dim), out=scratch[: tile.numel()].view(tile.shape))
    countdown = torch.arange(size, 0, -1, dtype=tile.dtype, device=tile.device)
    same.mul_(countdown.view(-1, *[1] * (tile.dim() - dim - 1)))
    return (size - same.amax(dim)).clamp_(max=size - 1).to(winner_type(size))  # none is equal where it is not a number


def _sorted(grad: Tensor, plan: _Plan) -> Tensor:
    """[images, texts] as given to [texts, images] as they are worked on."""
    return grad.T[plan.texts.order[:, None], plan.images.order]


def _back_in_order(part: Tensor | None, num_images: int, num_texts: int, plan: _Plan) -> Tensor | None:
    if part is None:
        return None
    result = part.new_zeros(num_images, num_texts)
    result[plan.images.order[:, None], plan.texts.order] = part.T
    return result
