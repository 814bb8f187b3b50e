"""A few hundred examples of every fuzz target; `python -m tests.faults.fuzz --minutes 10` runs them for longer."""

from __future__ import annotations

import pytest

from tests.faults.fuzz import TARGETS, run

ROWS = {"fuzz"}  # of docs/faults.md

EXAMPLES = {"config_tree": 40, "tar": 150, "side_index": 150, "yaml_text": 150}


@pytest.mark.parametrize("name", TARGETS)
def test_only_its_own_words(name: str) -> None:
    examples = EXAMPLES.get(name, 100)
    assert run(name, examples=examples) >= examples // 2
