"""The order of samples as pure functions of (seed, source, position). No state, no torch.

C canonical streams, frozen for a run. In each epoch the shards of a source are permuted, the samples inside each
window of shards are permuted, and the resulting line of n samples is cut into C contiguous runs of L or L - 1 places
(L = ceil(n / C)), one a stream: every sample exactly once an epoch, fewer than C empty places at its end, and a rank,
which serves C / W neighbouring streams, reads its own shards only (its windows at the borders are shared).
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.random.bit_generator import ISeedSequence

Indices = npt.NDArray[np.int64]
EMPTY = -1
MAX_STREAMS = 64
_SHARDS, _WINDOW = 1, 2  # first key of a generator: what its numbers are for
_CACHED_WINDOWS = 128


def keyed_rng(seed: int, *keys: int) -> np.random.Generator:
    """A generator whose numbers are a pure function of its keys: Philox, keyed by a hash of them."""
    packed = struct.pack(f"<{len(keys) + 1}q", seed, *keys)
    key = np.frombuffer(hashlib.blake2b(packed, digest_size=16).digest(), "<u8").astype(np.uint64)
    return np.random.Generator(np.random.Philox(_Key(key)))  # type: ignore[arg-type]  # its stub knows SeedSequence only


class _Key(ISeedSequence):
    """A key for Philox as it stands: with `Philox(key=...)` numpy makes a seed first that it then drops, 20 us."""

    def __init__(self, key: npt.NDArray[np.uint64]) -> None:
        self.key = key

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> npt.NDArray[np.uint64]:
        """The key; Philox asks for two words of 64 bits."""
        return self.key


def branch(rng: np.random.Generator, number: int) -> np.random.Generator:
    """Another generator for each number from 1 on, a pure function of the state of `rng`, which stays as it is."""
    return np.random.Generator(rng.bit_generator.jumped(number))  # type: ignore[attr-defined]


def permutation(n: int, seed: int, *keys: int) -> Indices:
    """A permutation of range(n) from raw Philox bits, so it is the same in every version of numpy."""
    raw = keyed_rng(seed, *keys).bit_generator.random_raw(n)  # type: ignore[attr-defined]
    return ranks(np.asarray(raw, dtype=np.uint64))


def ranks(raw: npt.NDArray[np.uint64]) -> Indices:
    """Places of the values in rising order, equal ones in the order they came, as a stable sort gives them [n]."""
    order = np.argsort(raw)  # five times as fast as a stable sort, and the same where no two values are equal
    dealt = raw[order]
    if bool((dealt[1:] == dealt[:-1]).any()):
        order = np.argsort(raw, kind="stable")
    return order.astype(np.int64)


def num_streams(batch_size: int, *, at_most: int = MAX_STREAMS) -> int:
    """C, the largest divisor of the global batch that is not above `at_most`."""
    return next(c for c in range(min(batch_size, at_most), 0, -1) if batch_size % c == 0)


def allowed_worlds(streams: int) -> list[int]:
    """Every number of processes that can serve C streams."""
    return [w for w in range(1, streams + 1) if streams % w == 0]


class Spot(NamedTuple):
    """Where an ordinal of a stream falls: the source's epoch, and the sample, EMPTY at the end of a short stream."""

    epoch: int
    sample: int


class SourceOrder:
    """The order of one source of shards with `sizes` samples, dealt to `streams` streams; positions in O(1)."""

    def __init__(
        self, sizes: Sequence[int] | Indices, *, streams: int, window: int, seed: int, source: int = 0
    ) -> None:
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.streams, self.window, self.seed, self.source = streams, window, seed, source
        self.num_samples = int(self.sizes.sum())
        if self.num_samples < 1:
            raise ValueError("a source without samples has no order")
        self.places = -(-self.num_samples // streams)  # L
        self.first = np.concatenate([[0], np.cumsum(self.sizes)])  # index of the first sample of each shard
        self.cuts = np.arange(streams + 1, dtype=np.int64) * self.num_samples // streams  # streams' runs on the line
        self._epochs: OrderedDict[int, tuple[Indices, Indices]] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int], Indices] = OrderedDict()

    def place(self, ordinal: int, stream: int) -> Spot:
        """The sample at `ordinal` of `stream`; ordinals go on through the epochs."""
        epoch, indices = self.many(np.array([ordinal]), np.array([stream]))
        return Spot(int(epoch[0]), int(indices[0]))

    def many(self, ordinals: Indices, streams: Indices) -> tuple[Indices, Indices]:
        """Epochs and sample indices (EMPTY where there is none) of many places at once, same shape as the inputs."""
        epochs, places = ordinals // self.places, ordinals % self.places
        starts = self.cuts[streams]
        real = places < self.cuts[streams + 1] - starts
        indices = np.full(ordinals.shape, EMPTY, dtype=np.int64)
        for epoch in np.unique(epochs[real]).tolist():
            chosen = real & (epochs == epoch)
            indices[chosen] = self._on_line(epoch, (starts + places)[chosen])
        return epochs, indices

    def shards(self, epoch: int, stream: int) -> list[int]:
        """Shards that may be read for one stream in one epoch."""
        dealt, ends = self._epoch(epoch)
        if self.cuts[stream] == self.cuts[stream + 1]:
            return []
        first, last = np.searchsorted(ends, [self.cuts[stream], self.cuts[stream + 1] - 1], side="right").tolist()
        return [int(s) for s in dealt[first * self.window : (last + 1) * self.window]]

    def _on_line(self, epoch: int, positions: Indices) -> Indices:
        """Sample indices at positions of the epoch's line of all samples."""
        _, ends = self._epoch(epoch)
        window = np.searchsorted(ends, positions, side="right")
        result = np.empty(positions.shape, dtype=np.int64)
        for w in np.unique(window).tolist():
            chosen = window == w
            start = int(ends[w - 1]) if w else 0
            result[chosen] = self._samples(epoch, w)[positions[chosen] - start]
        return result

    def _epoch(self, epoch: int) -> tuple[Indices, Indices]:
        """The shards as dealt in an epoch, and where on the line each window ends."""
        if epoch not in self._epochs:
            dealt = permutation(len(self.sizes), self.seed, _SHARDS, self.source, epoch)
            lasts = np.minimum(np.arange(self.window, len(dealt) + self.window, self.window), len(dealt)) - 1
            self._epochs[epoch] = dealt, np.cumsum(self.sizes[dealt])[lasts]
            if len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _samples(self, epoch: int, window: int) -> Indices:
        """Sample indices of one window, permuted."""
        key = (epoch, window)
        if key in self._windows:
            self._windows.move_to_end(key)
            return self._windows[key]
        dealt, _ = self._epoch(epoch)
        shards = dealt[window * self.window : (window + 1) * self.window]
        line = np.concatenate([np.arange(self.first[s], self.first[s + 1]) for s in shards])
        mixed = line[permutation(len(line), self.seed, _WINDOW, self.source, epoch, window)]
        self._windows[key] = mixed.astype(np.uint32) if self.num_samples < 1 << 32 else mixed
        if len(self._windows) > _CACHED_WINDOWS:
            self._windows.popitem(last=False)
        return self._windows[key]
