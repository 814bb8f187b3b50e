"""Parts in a terminal: settings as YAML writes them, and lines as wide as there is room."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field

from tests.test_config import Leaf, Tree
from vlp import config, listing
from vlp.registry import Named, Part


class Wood(Part):
    """A wood."""

    tree: Tree
    leaves: tuple[Annotated[Leaf, Named("tests.test_config:TABLE")], ...] = (Leaf(), Leaf(size=5))
    kind: Literal["oak", "ash"] = "oak"
    height: float | None = Field(None, description="of the tallest")
    sides: tuple[str, ...] = ("north", "south")
    seeds: list[int] = Field(default_factory=lambda: [1, 2])


def test_settings_are_shown_as_yaml_writes_them() -> None:
    assert [tuple(setting) for setting in listing.settings(Wood)] == [
        ("tree", "required", ""),
        ("leaves", "[{}, {size: 5}]", ""),
        ("kind", "oak", "oak | ash"),
        ("height", "null", "of the tallest"),
        ("sides", "[north, south]", ""),
        ("seeds", "[1, 2]", ""),
    ]
    shown = {setting.name: setting.default for setting in listing.settings(Tree)}
    assert shown == {"name": "required", "leaf": "{}", "loss": "leaf"}
    for setting in listing.settings(Wood)[2:]:
        assert config.parse_yaml(setting.default) == Wood(tree=Tree(name="t")).model_dump(mode="json")[setting.name]


def test_lines_are_broken_behind_the_names_and_only_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("a", "one two three four"), ("long", "five")]
    monkeypatch.delenv("COLUMNS", raising=False)
    assert listing.one_line_each(rows) == ["a     one two three four", "long  five"]
    monkeypatch.setenv("COLUMNS", "16")
    assert listing.one_line_each(rows) == ["a     one two\n      three four", "long  five"]
    shown = listing.with_settings("wood", listing.paragraphs(Wood), listing.settings(Wood)[3:4])
    assert shown == ["wood", "  A wood.", "    height =\n        null\n        (of the\n        tallest)"]
