from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlp.data.order import EMPTY, SourceOrder, allowed_worlds, keyed_rng, num_streams, permutation, ranks

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) > 0)


def served(order: SourceOrder, epoch: int) -> list[list[int]]:
    """By stream, the indices of one epoch, through the one-by-one access."""
    span = range(epoch * order.places, (epoch + 1) * order.places)
    return [[order.place(o, stream).sample for o in span] for stream in range(order.streams)]


def naive_line(order: SourceOrder, epoch: int) -> list[int]:
    """The epoch's line of samples, written as a loop from the definition."""
    dealt = permutation(len(order.sizes), order.seed, 1, order.source, epoch).tolist()
    line: list[int] = []
    for number, start in enumerate(range(0, len(dealt), order.window)):
        samples = []
        for shard in dealt[start : start + order.window]:
            first = sum(order.sizes[:shard].tolist())
            samples += range(first, first + int(order.sizes[shard]))
        mix = permutation(len(samples), order.seed, 2, order.source, epoch, number)
        line += [samples[i] for i in mix]
    return line


@settings(max_examples=60, deadline=None)
@given(
    sizes=SIZES, batch=st.integers(1, 200), window=st.integers(1, 5), epoch=st.integers(0, 3), seed=st.integers(0, 9)
)
def test_every_sample_exactly_once_an_epoch(sizes: list[int], batch: int, window: int, epoch: int, seed: int) -> None:
    order = SourceOrder(sizes, streams=num_streams(batch), window=window, seed=seed)
    streams = served(order, epoch)
    flat = [i for stream in streams for i in stream if i != EMPTY]
    assert sorted(flat) == list(range(sum(sizes)))
    assert flat == naive_line(order, epoch)
    assert sum(i == EMPTY for stream in streams for i in stream) < order.streams
    assert all(EMPTY not in stream[:-1] for stream in streams), "empty places only at the end of an epoch"


def test_streams_read_neighbouring_shards_only() -> None:
    order = SourceOrder([100] * 64, streams=8, window=4, seed=1)
    for stream, indices in enumerate(served(order, 2)):
        used = {i // 100 for i in indices if i != EMPTY}
        assert used == set(order.shards(2, stream))
        assert len(used) == 8


def test_epochs_and_seeds_and_sources_differ() -> None:
    lines = [
        tuple(SourceOrder([50, 50], streams=4, window=1, seed=seed, source=source).place(o, 0) for o in span)
        for seed, source, span in ((0, 0, range(25)), (0, 0, range(25, 50)), (1, 0, range(25)), (0, 1, range(25)))
    ]
    assert len(set(lines)) == 4


def test_ordinals_go_on_across_epochs() -> None:
    order = SourceOrder([10], streams=4, window=1, seed=0)
    assert order.places == 3
    assert [order.place(o, 0).epoch for o in range(7)] == [0, 0, 0, 1, 1, 1, 2]


def test_access_far_ahead_is_as_quick_as_at_the_start() -> None:
    order = SourceOrder([1000] * 50, streams=16, window=2, seed=0)
    started = time.perf_counter()
    spot = order.place(10**9, 3)
    assert time.perf_counter() - started < 0.5
    assert spot == SourceOrder([1000] * 50, streams=16, window=2, seed=0).place(10**9, 3)
    assert spot.epoch == 10**9 // order.places


def test_a_million_keys_once_each() -> None:
    order = SourceOrder([10_000] * 100, streams=64, window=8, seed=3)
    started = time.perf_counter()
    seen = np.zeros(1_000_000, dtype=np.int64)
    streams = np.repeat(np.arange(64), 125)
    for start in range(0, order.places, 125):
        ordinals = np.tile(np.arange(start, start + 125), 64)
        _, indices = order.many(ordinals, streams)
        np.add.at(seen, indices[indices != EMPTY], 1)
    assert (seen == 1).all()
    assert time.perf_counter() - started < 20


def test_known_numbers_stay() -> None:
    """Golden: a run resumed with a newer version must see the same order."""
    assert permutation(8, 0, 1, 2).tolist() == GOLDEN
    assert keyed_rng(0, 1, 2).bit_generator.state["state"]["key"].shape == (2,)


GOLDEN = [2, 7, 0, 6, 5, 3, 1, 4]


@pytest.mark.parametrize(("batch", "streams"), [(64, 64), (128, 64), (96, 48), (1000, 50), (127, 1), (1, 1), (48, 48)])
def test_number_of_streams(batch: int, streams: int) -> None:
    assert num_streams(batch) == streams


def test_allowed_worlds() -> None:
    assert allowed_worlds(12) == [1, 2, 3, 4, 6, 12]


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(ValueError, match="without samples"):
        SourceOrder([0, 0], streams=2, window=1, seed=0)


def test_equal_bits_keep_their_order() -> None:
    raw = (np.arange(1000, dtype=np.uint64) * 7919) % 10
    assert (ranks(raw) == np.argsort(raw, kind="stable")).all()
