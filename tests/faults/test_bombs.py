"""Bombs: refused, or opened, within a second of CPU and 500 MB each, with what a user reads."""

from __future__ import annotations

import re

import pytest

from tests.faults.bombs import BOMBS, MAX_MB, MAX_SECONDS, Seen, open_all

ROWS = {"scans", "caption"}  # of docs/faults.md, with others beside them

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seen() -> dict[str, Seen]:
    """One process opens them all; what it takes to make them does not count."""
    return dict(open_all(list(BOMBS)))


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_small_change(name: str, seen: dict[str, Seen]) -> None:
    assert name in seen, f"the process died at this one, after {len(seen)} others"
    said, seconds, mb = seen[name]
    print(f"{name}: {seconds:.2f} s, {mb:.0f} MB, {said[:200]}")
    assert re.search(BOMBS[name][1], said, re.S), said
    assert seconds <= MAX_SECONDS
    assert mb <= MAX_MB
