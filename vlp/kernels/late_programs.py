# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def"
"""The two Triton programs of `vlp.kernels.late_triton`.

A side is [items, slots, columns], real tokens first; its `real` counts them, its `width` also the zeros that take part
in a maximum. Winners are numbers of slots. What OVER, ALONG, AT and BY switch off may be any pointer.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _products(
    x, x_row, x_there, y, y_row, y_there, width, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Products of some rows of x with some of y, fp32; those that are not there are zeros."""
    tile = tl.zeros([x_row.shape[0], y_row.shape[0]], tl.float32)
    for first in range(0, width, WIDTH):
        d = first + tl.arange(0, WIDTH)
        left = tl.load(x + x_row[:, None] * width + d, mask=x_there[:, None] & (d < width), other=0.0)
        right = tl.load(y + y_row * width + d[:, None], mask=y_there & (d < width)[:, None], other=0.0)
        tile = tl.dot(left, right, tile, input_precision=PRECISION)
    return tile


@triton.jit
def maxima(
    held, walked, held_real, walked_real, walked_width, over, along, at, by,
    others, slots, other_slots, width,
    over_held, over_walked, along_held, along_walked, at_held, at_walked, by_held, by_walked,
    OVER: tl.constexpr, ALONG: tl.constexpr, AT: tl.constexpr, BY: tl.constexpr,
    TILE: tl.constexpr, ITEMS: tl.constexpr, SLOTS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One item of `held` with ITEMS of `walked`.

    OVER: mean over held slots of the maximum over walked slots, with AT its winners [held, walked, slots]. ALONG: mean
    over walked slots of the maximum over held slots, with BY its winners; TILE holds all slots of an item then.
    """
    item = tl.program_id(0).to(tl.int64)
    other = tl.program_id(1).to(tl.int64) * ITEMS + tl.arange(0, ITEMS)
    there = other < others
    real = tl.load(held_real + item)
    other_width = tl.load(walked_width + other, mask=there, other=0)
    other_real = tl.load(walked_real + other, mask=there, other=0)
    longest = tl.max(other_width, 0)
    lane = tl.arange(0, ITEMS * SLOTS)
    lane_item = tl.program_id(1).to(tl.int64) * ITEMS + lane // SLOTS
    lane_width = tl.load(walked_width + lane_item, mask=lane_item < others, other=0)
    lane_real = tl.load(walked_real + lane_item, mask=lane_item < others, other=0)
    over_sum = tl.zeros([ITEMS], tl.float32)
    along_sum = tl.zeros([ITEMS], tl.float32)
    for first in range(0, real, TILE):
        slot = first + tl.arange(0, TILE)
        best = tl.full([TILE, ITEMS], float("-inf"), tl.float32)
        winner = tl.zeros([TILE, ITEMS], tl.int32)
        for other_first in range(0, longest, SLOTS):
            lane_slot = other_first + lane % SLOTS
            left, right = item * slots + slot, lane_item * other_slots + lane_slot
            left_real, right_real = slot < real, lane_slot < lane_width
            tile = _products(held, left, left_real, walked, right, right_real, width, WIDTH, PRECISION)
            tile = tl.where(left_real[:, None] & right_real[None, :], tile, float("-inf"))
            if OVER:
                value, where = tl.max(tl.reshape(tile, [TILE, ITEMS, SLOTS]), 2, return_indices=True)
                winner = tl.where(value > best, other_first + where, winner)
                best = tl.maximum(value, best)
            if ALONG:
                value, where = tl.max(tile, 0, return_indices=True)
                value = tl.where(lane_slot < lane_real, value, 0.0)
                along_sum += tl.sum(tl.reshape(value, [ITEMS, SLOTS]), 1)
                if BY:
                    to = by + item * by_held + lane_item * by_walked + lane_slot
                    tl.store(to, where.to(by.dtype.element_ty), mask=right_real)
        if OVER:
            over_sum += tl.sum(tl.where((slot < real)[:, None], best, 0.0), 0)
            if AT:
                to = at + item * at_held + other[None, :] * at_walked + slot[:, None]
                tl.store(to, winner.to(at.dtype.element_ty), mask=(slot < real)[:, None] & there[None, :])
    some = (real > 0) & (other_real > 0)
    if OVER:
        mean = tl.where(some, over_sum / tl.maximum(real, 1), 0.0)
        tl.store(over + item * over_held + other * over_walked, mean, mask=there)
    if ALONG:
        mean = tl.where(some, along_sum / tl.maximum(other_real, 1), 0.0)
        tl.store(along + item * along_held + other * along_walked, mean, mask=there)


@triton.jit
def gradients(
    tokens, grad, side_real, other_real, other_width, over, along, at, by,
    num, others, slots, other_slots, width,
    over_side, over_other, along_side, along_other, at_side, at_other, by_side, by_other,
    OVER: tl.constexpr, ALONG: tl.constexpr,
    ITEMS: tl.constexpr, SLOTS: tl.constexpr, OTHERS: tl.constexpr, OTHER_SLOTS: tl.constexpr,
    WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds to WIDTH columns of the gradient of SLOTS slots of ITEMS items of a side what all others give them.

    OVER: weights of the winners `at` of its own slots. ALONG: of the winners `by` of the other side's slots.
    """
    item = tl.program_id(0).to(tl.int64) * ITEMS + tl.arange(0, ITEMS)
    slot = tl.program_id(1) * SLOTS + tl.arange(0, SLOTS)
    d = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    row = tl.arange(0, ITEMS * SLOTS)
    row_item = tl.program_id(0).to(tl.int64) * ITEMS + row // SLOTS
    row_slot = tl.program_id(1) * SLOTS + row % SLOTS
    row_there = row_slot < tl.load(side_real + row_item, mask=row_item < num, other=0)
    if tl.max(row_there.to(tl.int32), 0) == 0:
        return
    total = tl.zeros([ITEMS * SLOTS, WIDTH], tl.float32)
    for first in range(0, others, OTHERS):
        other = first + tl.arange(0, OTHERS)
        there = other < others
        longest = tl.max(tl.load(other_width + other, mask=there, other=0), 0)
        lane = tl.arange(0, OTHERS * OTHER_SLOTS)
        lane_item = (first + lane // OTHER_SLOTS).to(tl.int64)
        lane_real = tl.load(other_real + lane_item, mask=lane_item < others, other=0)
        lane_width = tl.load(other_width + lane_item, mask=lane_item < others, other=0)
        if OVER:
            real = row_there[:, None] & there[None, :]
            own = tl.load(over + row_item[:, None] * over_side + other[None, :] * over_other, mask=real, other=0.0)
            place = at + row_item[:, None] * at_side + other[None, :].to(tl.int64) * at_other + row_slot[:, None]
            own_winner = tl.load(place, mask=real, other=0).to(tl.int32)
        for other_first in range(0, longest, OTHER_SLOTS):
            lane_slot = other_first + lane % OTHER_SLOTS
            share = tl.zeros([ITEMS * SLOTS, OTHERS * OTHER_SLOTS], tl.float32)
            if OVER:
                won = own_winner[:, :, None] == (other_first + tl.arange(0, OTHER_SLOTS))[None, None, :]
                gift = tl.where(won, own[:, :, None], 0.0)
                share += tl.reshape(gift, [ITEMS * SLOTS, OTHERS * OTHER_SLOTS])
            if ALONG:
                lane_there = (item < num)[:, None] & (lane_slot < lane_real)[None, :]
                pair = along + item[:, None] * along_side + lane_item[None, :] * along_other
                theirs = tl.load(pair, mask=lane_there, other=0.0)
                their_place = by + item[:, None] * by_side + lane_item[None, :] * by_other + lane_slot[None, :]
                their_winner = tl.load(their_place, mask=lane_there, other=0).to(tl.int32)
                hit = their_winner[:, None, :] == slot[None, :, None]
                part = tl.where(hit, theirs[:, None, :], 0.0)
                share += tl.reshape(part, [ITEMS * SLOTS, OTHERS * OTHER_SLOTS])
            right = tl.load(
                tokens + (lane_item * other_slots + lane_slot)[:, None] * width + d[None, :],
                mask=(lane_slot < lane_width)[:, None] & (d < width)[None, :], other=0.0,
            )  # fmt: skip
            total = tl.dot(share.to(right.dtype), right, total, input_precision=PRECISION)
    to = grad + (row_item * slots + row_slot)[:, None] * width + d[None, :]
    ok = row_there[:, None] & (d < width)[None, :]
    tl.store(to, tl.load(to, mask=ok, other=0.0) + total, mask=ok)
