"""Exact and perceptual hashes of pictures, and the search for near ones: nothing is learned.

A picture is kept as its sketch, 64 x 64 luminances with 16 x 16 colours. The perceptual hash is the signs of its lowest
cosine coefficients (Zauner 2010, pHash; ours are 64, in order of frequency, cut at zero, not at the median). Any window
of the sketch has such a hash too, from the same pixels: so one picture's windows find another that was cut out of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from math import comb
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlp.data.decode import Limits, decode

SIDE, COLOUR_SIDE = 64, 16
BITS = 64
STEP, MARGINS = 0.08, 4  # windows lose up to 4 margins of 8 % of a side: down to 71 % of the area, 68 % along one side
STABLE = 6.0  # a coefficient below this (of an orthonormal transform of 64 x 64 levels) may change its sign by coding
LEAST_BITS = 24  # a picture with fewer stable signs has no perceptual hash
CHANCE = 1e-6  # share of pairs of unrelated hashes that pass for near, if their bits were coins
BLOCK = 1 << 17  # pairs compared at once: they stay in the cache of a core
Array = npt.NDArray[Any]


class Sketch(NamedTuple):
    """What is kept of a picture."""

    bytes_sha256: bytes
    pixels_sha256: bytes  # of the size and the decoded RGB values
    width: int
    height: int
    luma: npt.NDArray[np.uint8]  # [64, 64]
    colour: npt.NDArray[np.uint8]  # [2, 16, 16], Cb and Cr


class Hashes(NamedTuple):
    """Signs of 64 coefficients as the bits of a word, and which of them are far enough from zero to be trusted."""

    bits: npt.NDArray[np.uint64]  # [n] or [n, W]
    stable: npt.NDArray[np.uint64]


class Near(NamedTuple):
    """Pairs of near hashes: rows of the one side, places of the other, and how likely coins were to be as near."""

    row: npt.NDArray[np.int64]
    place: npt.NDArray[np.int64]
    chance: npt.NDArray[np.float64]


def sketch(data: bytes, limits: Limits | None = None) -> Sketch:
    """The sketch of an encoded picture, squashed to a square; BadSampleError as `vlp.data.decode.decode`."""
    pixels = np.ascontiguousarray(decode(data, limits).permute(1, 2, 0).numpy())
    height, width = pixels.shape[:2]
    exact = hashlib.sha256(f"{width}x{height}\n".encode())
    exact.update(pixels.tobytes())
    small = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BILINEAR).convert("YCbCr")
    planes = np.asarray(small).transpose(2, 0, 1)
    step = SIDE // COLOUR_SIDE
    colour = planes[1:].reshape(2, COLOUR_SIDE, step, COLOUR_SIDE, step).mean(axis=(2, 4)).round().astype(np.uint8)
    return Sketch(hashlib.sha256(data).digest(), exact.digest(), width, height, planes[0].copy(), colour)


def _intervals() -> list[tuple[int, int]]:
    """Margins cut off at both ends of a side, in steps; the whole side first."""
    ends = range(MARGINS + 1)
    return sorted(((low, high) for low in ends for high in ends if low + high <= MARGINS), key=sum)


def _chosen() -> list[tuple[int, int]]:
    """Places in `_intervals` of every window, down and across; the whole picture first."""
    places = [(sum(cut), number) for number, cut in enumerate(_intervals())]
    return sorted(((y, x) for m, y in places for k, x in places if m + k <= MARGINS), key=lambda w: (sum(w), w))


def _basis() -> npt.NDArray[np.float32]:
    """[intervals, frequencies, 64]: orthonormal cosines over each interval of a row of pixels, integrated exactly."""
    rows = []
    for low, high in _intervals():
        start, stop = low * STEP * SIDE, SIDE - high * STEP * SIDE
        edges = np.clip(np.arange(SIDE + 1), start, stop) - start
        length = stop - start
        turns = np.pi * np.arange(1, _LARGEST + 1)[:, None] / length
        waves = np.diff(np.sin(turns * edges) / turns) * np.sqrt(2)
        rows.append(np.concatenate([np.diff(edges)[None], waves]) * (np.sqrt(SIDE) / length))
    return np.stack(rows).astype(np.float32)


def _lowest() -> Array:
    """[64, 2]: the 64 lowest frequencies down and across, without the mean."""
    all_ = [(v, u) for v in range(BITS) for u in range(BITS)]
    return np.array(sorted(all_, key=lambda f: (f[0] ** 2 + f[1] ** 2, f))[1 : BITS + 1])


_FREQUENCIES = _lowest()
_LARGEST = int(_FREQUENCIES.max())
_WINDOWS = np.array(_chosen())  # [W, 2]
_BASIS = _basis()
_POWERS = np.left_shift(np.uint64(1), np.arange(BITS, dtype=np.uint64))


def windows() -> npt.NDArray[np.float64]:
    """[W, 4]: left, top, right, bottom of every window in parts of the picture; the whole picture first."""
    cuts = np.array(_intervals()) * STEP
    down, across = cuts[_WINDOWS[:, 0]], cuts[_WINDOWS[:, 1]]
    return np.stack([across[:, 0], down[:, 0], 1 - across[:, 1], 1 - down[:, 1]], axis=1)


def whole_hashes(luma: npt.NDArray[np.uint8]) -> Hashes:
    """Hashes [n] of whole pictures, luma [n, 64, 64]."""
    return _signs(_coefficients(luma, _BASIS[:1], np.zeros((1, 2), dtype=np.int64))[:, 0])


def window_hashes(luma: npt.NDArray[np.uint8]) -> Hashes:
    """Hashes [n, W] of all `windows` of pictures, luma [n, 64, 64]; column 0 is `whole_hashes`."""
    parts = [_signs(_coefficients(luma[i : i + 64], _BASIS, _WINDOWS)) for i in range(0, len(luma), 64)]
    empty = np.empty((0, len(_WINDOWS)), np.uint64)
    return Hashes(*(np.concatenate([empty, *column]) for column in (zip(*parts) if parts else ((), ()))))


def _coefficients(luma: Array, basis: Array, chosen: Array) -> npt.NDArray[np.float32]:
    """[n, windows, 64]: one product with all intervals gives the coefficients of all windows."""
    count, size = basis.shape[:2]
    waves = basis.reshape(count * size, SIDE).T
    rows = luma.astype(np.float32).reshape(-1, SIDE) @ waves  # two large products: small ones make BLAS threads spin
    columns = rows.reshape(-1, SIDE, count * size).transpose(0, 2, 1).reshape(-1, SIDE) @ waves
    grid = columns.reshape(len(luma), count, size, count, size)
    down, across = _FREQUENCIES.T
    return np.asarray(grid[:, chosen[:, 1:], across, chosen[:, :1], down], dtype=np.float32)


def _signs(values: npt.NDArray[np.float32]) -> Hashes:
    bits = ((values > 0) * _POWERS).sum(axis=-1, dtype=np.uint64)
    return Hashes(bits, ((np.abs(values) > STABLE) * _POWERS).sum(axis=-1, dtype=np.uint64))


def chances() -> npt.NDArray[np.float64]:
    """[65, 65]: chance that of so many bits at most so many differ, if they were coins; 1 for too few bits."""
    table = np.ones((BITS + 1, BITS + 1))
    for bits in range(LEAST_BITS, BITS + 1):
        table[bits, : bits + 1] = np.cumsum([comb(bits, k) / 2**bits for k in range(bits + 1)])
    return table


_CHANCES = chances()
_RADIUS = (_CHANCES <= CHANCE).sum(axis=1) - 1  # most bits that may differ, by the number of stable ones; -1: none


def hashed(hashes: Hashes) -> npt.NDArray[np.bool_]:
    """Which of the pictures (or windows) have stable bits enough for a perceptual hash."""
    return np.asarray(_RADIUS[np.bitwise_count(hashes.stable)] >= 0)


def likeness(bits: npt.NDArray[np.uint64], asked: Hashes) -> npt.NDArray[np.float64]:
    """Chance that coins differ in as few of the stable bits of `asked`; shapes as they broadcast."""
    apart = np.bitwise_count((bits ^ asked.bits) & asked.stable)
    return np.asarray(_CHANCES[np.bitwise_count(asked.stable), apart])


def near(bits: npt.NDArray[np.uint64], asked: Hashes) -> Iterator[Near]:
    """Pairs of `bits` [n] and `asked` [m] that differ in few of the stable bits of `asked`, block by block.

    Never more than `BLOCK` pairs are held; what a block finds is handed on before the next.
    """
    count = np.bitwise_count(asked.stable)
    places = np.flatnonzero(_RADIUS[count] >= 0)
    reach = _RADIUS.clip(0).astype(np.uint8)[count]
    across = min(max(1, len(places)), 1 << 12)
    down = max(1, BLOCK // across)
    for start in range(0, len(places), across):
        some = places[start : start + across]
        for top in range(0, len(bits), down):
            apart = np.bitwise_count((bits[top : top + down, None] ^ asked.bits[some]) & asked.stable[some])
            hit = np.flatnonzero(apart <= reach[some])
            if len(hit):
                row, column = np.divmod(hit, len(some))
                place = some[column]
                yield Near(row + top, place, _CHANCES[count[place], apart[row, column]])
