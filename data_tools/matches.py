"""Pictures of one shard that are, or lie in, or hold pictures of another set: by digests, by hashes, then by pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import nlargest
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_tools.aligned import fit
from data_tools.hashes import Hashes, likeness, near, whole_hashes, window_hashes, windows
from data_tools.sketches import Sketches

WHOLE = 0.96  # a window of more of the area is the whole picture: its edges are found to half a percent
NEAREST = 8  # pictures of the other set that one training picture is compared with, each way
HELD = 1 << 21  # hits held before they are thinned
DOUBTFUL = 0.5  # pairs of at least this detail that break the rule are near misses
MISSES = 24  # near misses kept of one shard
Rows = npt.NDArray[np.int64]


class Rule(NamedTuple):
    """When aligned pictures are the same: correlation of gradients, worst block, largest difference of colours."""

    detail: float = 0.75
    worst: float = 0.7
    colour: float = 16.0


class Match(NamedTuple):
    """One pair of pictures: rows of the training shard and of the other set."""

    train: int
    other: int
    kind: str  # exact, re-encoded, crop
    score: float  # correlation of the aligned gradients; 1 for exact
    inside: str  # whole; train: the training picture lies in the other; evaluation: the other way round
    box: tuple[float, float, float, float]  # where it lies: left, top, right, bottom in parts of the larger picture
    worst: float
    colour: float


class Matches(NamedTuple):
    """What was found, what nearly was, and how many near pairs were left out because others were nearer."""

    found: list[Match]
    misses: list[Match]
    left_out: int


class Candidates(NamedTuple):
    """Pairs to be compared, [p] each, with a guess where the one lies in the other."""

    train: Rows
    other: Rows
    window: Rows  # number of the window
    inside: npt.NDArray[np.bool_]  # the training picture in the other, or the other in the training picture


@dataclass(frozen=True)
class Gallery:
    """The set that training pictures are compared with, with what is computed of it once."""

    sketches: Sketches
    rows: Rows  # those with a perceptual hash
    whole: Hashes
    parts: Hashes  # [n, W]
    digests: dict[bytes, list[int]] = field(repr=False)

    @classmethod
    def of(cls, sketches: Sketches) -> Gallery:
        """The gallery of sketches."""
        rows, parts, digests = np.flatnonzero(sketches.hashed()), window_hashes(sketches.luma), dict[bytes, list[int]]()
        for row in np.flatnonzero(sketches.readable()).tolist():
            digests.setdefault(sketches.pixels_sha256[row], []).append(row)
        return cls(sketches, rows, whole_hashes(sketches.luma), parts, digests)


def matches(train: Sketches, gallery: Gallery, rule: Rule) -> Matches:
    """All pairs of pictures that are the same, once each."""
    exact = list(_exact(train, gallery))
    known = {(match.train, match.other) for match in exact}
    some, left_out = candidates(train, gallery)
    close, misses = compare(train, gallery, some, rule)
    close = [match for match in close if (match.train, match.other) not in known]
    misses = [miss for miss in misses if (miss.train, miss.other) not in known]
    return Matches(exact + close, nlargest(MISSES, misses, key=lambda miss: miss.score), left_out)


def _exact(train: Sketches, gallery: Gallery) -> Iterator[Match]:
    for row in np.flatnonzero(train.readable()).tolist():
        for other in gallery.digests.get(train.pixels_sha256[row], ()):
            yield Match(row, other, "exact", 1.0, "whole", (0.0, 0.0, 1.0, 1.0), 0.0, 0.0)


def candidates(train: Sketches, gallery: Gallery) -> tuple[Candidates, int]:
    """Pairs with near hashes: whole training pictures against windows of the others, and the other way round."""
    rows, whole = np.flatnonzero(train.hashed()), whole_hashes(train.luma)
    count = gallery.parts.bits.shape[1]
    there, back = _Nearest(), _Nearest()
    asked = Hashes(*(words[gallery.rows].ravel() for words in gallery.parts))
    for hit in near(whole.bits[rows], asked):
        there.add(rows[hit.row], gallery.rows[hit.place // count], hit.place % count, hit.chance)
    parts = window_hashes(train.luma[rows])
    for hit in near(gallery.whole.bits[gallery.rows], Hashes(*(words[:, 1:].ravel() for words in parts))):
        number, window = np.divmod(hit.place, count - 1)
        back.add(rows[number], gallery.rows[hit.row], window + 1, hit.chance)
    found = [way.thinned() for way in (there, back)]
    pairs, others, window = (np.concatenate(column) for column in zip(*found))
    inside = np.repeat([True, False], [len(way[0]) for way in found])
    return Candidates(pairs, others, window, inside), there.left_out + back.left_out


class _Nearest:
    """Of each pair its nearest window, and of each training picture the `NEAREST` nearest pairs."""

    def __init__(self) -> None:
        self.parts: list[tuple[Any, ...]] = []
        self.chances: list[Any] = []
        self.held, self.left_out = 0, 0

    def add(self, train: Rows, other: Rows, window: Rows, chance: npt.NDArray[np.float64]) -> None:
        self.parts.append((train, other, window))
        self.chances.append(chance)
        self.held += len(train)
        if self.held > HELD:
            self.thinned()

    def thinned(self) -> tuple[Rows, Rows, Rows]:
        """Training rows, rows of the other set, windows; all else is forgotten, and counted."""
        nothing = np.empty(0, np.int64)
        columns = zip(*self.parts) if self.parts else ((), (), ())
        train, other, window = (np.concatenate([nothing, *column]) for column in columns)
        chance = np.concatenate([np.empty(0), *self.chances])
        order = np.lexsort((chance, other, train))
        new = np.ones(len(order), dtype=bool)
        new[1:] = (np.diff(train[order]) != 0) | (np.diff(other[order]) != 0)
        best = order[new]
        best = best[np.lexsort((chance[best], train[best]))]
        first = np.flatnonzero(np.diff(train[best], prepend=-1))
        place = np.arange(len(best)) - np.repeat(first, np.diff(np.append(first, len(best))))
        kept = best[place < NEAREST]
        self.left_out += len(best) - len(kept)
        self.parts, self.chances, self.held = [(train[kept], other[kept], window[kept])], [chance[kept]], len(kept)
        return self.parts[0]


def guessed(train: Sketches, gallery: Gallery, pairs: tuple[Rows, Rows]) -> Candidates:
    """Given pairs of rows, both ways, each with its nearest window."""
    rows, others = pairs
    there = likeness(whole_hashes(train.luma[rows]).bits[:, None], Hashes(*(words[others] for words in gallery.parts)))
    back = likeness(gallery.whole.bits[others, None], window_hashes(train.luma[rows]))
    window = np.concatenate([there.argmin(axis=1), back.argmin(axis=1)])
    return Candidates(np.tile(rows, 2), np.tile(others, 2), window, np.repeat([True, False], len(rows)))


def compare(train: Sketches, gallery: Gallery, some: Candidates, rule: Rule) -> tuple[list[Match], list[Match]]:
    """Pairs whose pixels are the same after alignment, each the better way round, and those that nearly are."""
    found: dict[tuple[int, int], Match] = {}
    misses: dict[tuple[int, int], Match] = {}
    for match in _compared(train, gallery.sketches, some):
        same = match.score >= rule.detail and match.worst <= rule.worst and match.colour <= rule.colour
        if same or match.score >= DOUBTFUL:
            rows, pair = (found if same else misses), (match.train, match.other)
            if pair not in rows or rows[pair].score < match.score:
                rows[pair] = match
    return list(found.values()), [miss for pair, miss in misses.items() if pair not in found]


def _compared(train: Sketches, other: Sketches, some: Candidates) -> Iterator[Match]:
    guess = windows()[some.window]
    for start in range(0, len(some.train), 4096):
        part = Candidates._make(column[start : start + 4096] for column in some)  # type: ignore[arg-type]
        inside = part.inside[:, None, None]
        luma = train.luma[part.train], other.luma[part.other]
        colour = train.colour[part.train], other.colour[part.other]
        outer = np.where(inside, luma[1], luma[0]), np.where(inside[..., None], colour[1], colour[0])
        inner = np.where(inside, luma[0], luma[1]), np.where(inside[..., None], colour[0], colour[1])
        result = fit(outer, inner, guess[start : start + 4096])
        for i, box in enumerate(result.box.tolist()):
            kind = "re-encoded" if (box[2] - box[0]) * (box[3] - box[1]) >= WHOLE else "crop"
            way = "whole" if kind == "re-encoded" else "train" if part.inside[i] else "evaluation"
            values = (float(column[i]) for column in (result.detail, result.worst, result.colour))
            score, worst, levels = values
            yield Match(int(part.train[i]), int(part.other[i]), kind, score, way, tuple(box), worst, levels)
