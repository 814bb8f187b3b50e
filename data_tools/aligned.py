"""Is one picture a part of another? Candidates with a guessed window: the window is fitted, then the pixels compared.

The fit is Lucas-Kanade with four unknowns, the window's edges (Baker and Matthews 2004, additive form), on luminances
of zero mean and unit length, so that brightness and contrast do not count.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

COARSE = (12, 12, 12, 24, 24, 24, 24)  # points along a side in every step of the fit: first a blurred picture
FINE, BLOCKS = 48, 12  # points along a side of the comparison, and blocks
PARTS = 8  # parts along a side in which colours are compared
NOISE = 16.0  # levels that coding may add to a block without any contrast
LARGEST_STEP = 0.03  # of an edge in one step, in parts of the side
SHORTEST = 0.5  # least side of a fitted window
BATCH = 256  # candidates fitted at once: 30 MB
Array = npt.NDArray[np.float32]


class Fit(NamedTuple):
    """What was found for each candidate [n]."""

    box: Array  # [n, 4]: left, top, right, bottom of the window in parts of the outer picture
    luma: Array  # correlation of the luminances
    detail: Array  # correlation of their gradients
    worst: Array  # largest difference in one of 12 x 12 blocks, in parts of the block's contrast
    colour: Array  # largest difference of Cb or Cr in one of 8 x 8 parts, in levels


def fit(outer: tuple[Any, Any], inner: tuple[Any, Any], guess: npt.NDArray[Any]) -> Fit:
    """`outer` and `inner` are luma [n, 64, 64] and colour [n, 2, 16, 16], `guess` [n, 4] where inner lies in outer."""
    parts = []
    for start in range(0, len(guess), BATCH):
        some = slice(start, start + BATCH)
        large, small = (tuple(plane[some].astype(np.float32) for plane in side) for side in (outer, inner))
        box = _fitted(large[0], small[0], guess[some].astype(np.float32))
        parts.append(Fit(box, *_compared(large, small, box)))
    if not parts:
        nothing = np.empty(0, np.float32)
        return Fit(np.empty((0, 4), np.float32), nothing, nothing, nothing, nothing)
    return Fit(*(np.concatenate(column) for column in zip(*parts)))


def _fitted(outer: Array, inner: Array, guess: Array) -> Array:
    """The window of the best correlation on the way: [b, 4]."""
    outer, inner = (picture.reshape(len(picture), 32, 2, 32, 2).mean(axis=(2, 4)) for picture in (outer, inner))
    whole, box, best = _whole(len(inner)), guess, guess
    score = np.full(len(guess), -np.inf, np.float32)
    for number, count in enumerate(COARSE):
        if number == 0 or count != COARSE[number - 1]:
            target = _unit(_sample(inner, whole, count).reshape(len(inner), -1))
        box = _moved(box, _sample(outer, box, count), target)
        if count == COARSE[-1]:
            now = (_unit(_sample(outer, box, count).reshape(len(box), -1)) * target).sum(axis=1)
            best = np.where((now > score)[:, None], box, best)
            score = np.maximum(now, score)
    return best


def _moved(box: Array, seen: Array, target: Array) -> Array:
    """One Gauss-Newton step of all four edges."""
    count = seen.shape[1]
    t = (np.arange(count, dtype=np.float32) + 0.5) / count
    across = np.gradient(seen, axis=2) * (count / (box[:, 2] - box[:, 0]))[:, None, None]
    down = np.gradient(seen, axis=1) * (count / (box[:, 3] - box[:, 1]))[:, None, None]
    slopes = [across * (1 - t), down * (1 - t)[:, None], across * t, down * t[:, None]]
    rows = seen.reshape(len(box), -1)
    jacobian = np.stack(slopes, axis=1).reshape(len(box), 4, -1)
    jacobian = (jacobian - jacobian.mean(axis=2, keepdims=True)) / _spread(rows)[:, None]
    normal = jacobian @ jacobian.transpose(0, 2, 1)
    damping = 1e-3 * np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-6
    missing = (target - _unit(rows))[:, :, None]
    step = np.linalg.solve(normal + damping * np.eye(4, dtype=np.float32), jacobian @ missing)[..., 0]
    moved = box + np.clip(step, -LARGEST_STEP, LARGEST_STEP)
    low = np.clip(moved[:, :2], 0, 1 - SHORTEST)
    return np.concatenate([low, np.clip(moved[:, 2:], low + SHORTEST, 1)], axis=1)


def _compared(outer: tuple[Any, ...], inner: tuple[Any, ...], box: Array) -> tuple[Array, Array, Array, Array]:
    whole = _whole(len(box))
    seen, target = _sample(outer[0], box, FINE), _sample(inner[0], whole, FINE)
    flat, wanted = seen.reshape(len(box), -1), target.reshape(len(box), -1)
    luma = (_unit(flat) * _unit(wanted)).sum(axis=1)
    detail = (_unit(_gradients(seen)) * _unit(_gradients(target))).sum(axis=1)
    return luma, detail, _worst(flat, wanted), _recoloured(outer[1], inner[1], box)


def _recoloured(outer: Array, inner: Array, box: Array) -> Array:
    """[b]: by the worst part, since one object of another colour is another picture."""
    apart = [
        np.abs(_sample(outer[:, plane], box, PARTS) - _sample(inner[:, plane], _whole(len(box)), PARTS))
        for plane in (0, 1)
    ]
    return np.asarray(np.maximum(*apart).reshape(len(box), -1).max(axis=1))


def _worst(seen: Array, wanted: Array) -> Array:
    """[b]: brightness and contrast made equal, the block with the largest mean difference by its lesser contrast.

    A letter that only one of them has is in a block that is empty in the other: coding changes no block so much.
    """
    levels = np.minimum(_spread(seen), _spread(wanted))
    blocks = [_blocks(_unit(picture) * levels) for picture in (seen, wanted)]
    contrast = np.minimum(*(block.std(axis=2) for block in blocks))
    return np.asarray((np.abs(blocks[0] - blocks[1]).mean(axis=2) / (contrast + NOISE)).max(axis=1))


def _blocks(rows: Array) -> Array:
    side = FINE // BLOCKS
    grid = rows.reshape(-1, BLOCKS, side, BLOCKS, side).transpose(0, 1, 3, 2, 4)
    return grid.reshape(len(rows), BLOCKS * BLOCKS, side * side)


def _whole(count: int) -> Array:
    return np.tile(np.array([0, 0, 1, 1], np.float32), (count, 1))


def _gradients(picture: Array) -> Array:
    return np.concatenate([np.gradient(picture, axis=axis).reshape(len(picture), -1) for axis in (1, 2)], axis=1)


def _unit(values: Array) -> Array:
    """Rows of zero mean and unit length; a row without any spread is zero and correlates with nothing."""
    return np.asarray((values - values.mean(axis=1, keepdims=True)) / _spread(values))


def _spread(values: Array) -> Array:
    """[b, 1]: length of the rows after their mean is taken off."""
    middle = values - values.mean(axis=1, keepdims=True)
    return np.asarray(np.maximum(np.linalg.norm(middle, axis=1, keepdims=True), 1e-3))


def _sample(picture: Array, box: Array, count: int) -> Array:
    """[b, count, count]: the window of each picture [b, s, s], every point a small tent of its pixels."""
    side = picture.shape[-1]
    down, across = (_tents(box[:, axis], box[:, axis + 2], count, side) for axis in (1, 0))
    return np.asarray(down @ picture @ across.transpose(0, 2, 1), dtype=np.float32)


def _tents(low: Array, high: Array, count: int, side: int) -> Array:
    """[b, count, side]: weights of the pixels along one side; a tent is a point wide, and a pixel at least."""
    length = (high - low)[:, None]
    middle = (low[:, None] + (np.arange(count, dtype=np.float32) + 0.5) / count * length) * side - 0.5
    width = np.maximum(length * side / count, 1)[..., None]
    weights = np.maximum(0, 1 - np.abs(middle[..., None] - np.arange(side, dtype=np.float32)) / width)
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))
