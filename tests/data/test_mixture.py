from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlp.data.mixture import Schedule, share_out


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(st.floats(0.2, 5), min_size=1, max_size=4),
    slots=st.integers(1, 5),
    block=st.integers(40, 70),
    single=st.booleans(),
)
def test_ordinals_equal_a_naive_count(weights: list[float], slots: int, block: int, single: bool) -> None:
    schedule = Schedule(weights, slots=slots, seed=5, block=block, single_source=single)
    taken: Counter[int] = Counter()
    for step in range(2 * block + 7):
        row = schedule.row(step)
        assert len(row.source) == slots
        assert not single or len(set(row.source.tolist())) == 1
        for source, ordinal in zip(row.source.tolist(), row.ordinal.tolist()):
            assert ordinal == taken[source]
            taken[source] += 1
        if (step + 1) % block == 0:
            scale = slots if single else 1
            periods = (step + 1) // block
            assert [taken[k] for k in range(len(weights))] == (schedule.counts * scale * periods).tolist()


def test_any_step_at_once() -> None:
    whole = Schedule([1, 2], slots=3, seed=0)
    rows = [whole.row(step) for step in range(1000)]
    late = Schedule([1, 2], slots=3, seed=0).row(999)
    assert np.array_equal(late.source, rows[999].source)
    assert np.array_equal(late.ordinal, rows[999].ordinal)


def test_blocks_are_permuted_differently() -> None:
    schedule = Schedule([1, 1], slots=1, seed=0, block=64)
    first, second = ([int(schedule.row(s + k).source[0]) for s in range(64)] for k in (0, 64))
    assert sorted(first) == sorted(second)
    assert first != second


def test_shares_are_exact_and_near() -> None:
    assert share_out([1, 1, 2], 8).tolist() == [2, 2, 4]
    assert share_out([0.37, 0.63], 100).tolist() == [37, 63]
    assert share_out([1, 1, 1], 8).sum() == 8


@pytest.mark.parametrize("weights", [[1.0, 0.0], [1.0, -1.0], [float("nan")], []])
def test_bad_weights(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        share_out(weights, 10)


def test_a_weight_too_small_for_the_block() -> None:
    with pytest.raises(ValueError, match="mixture_block"):
        share_out([1.0, 1e-6], 10)
