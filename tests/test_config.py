"""Configuration: YAML scalars, overrides, and errors that name the path and the nearest name."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import Field

from vlp import config
from vlp.registry import Named, Part, Table


class Leaf(Part):
    """A leaf."""

    size: int = Field(3, ge=1)
    rate: float = 0.1


class Tree(Part):
    """A tree."""

    name: str
    leaf: Leaf = Leaf()
    loss: Annotated[Leaf, Named("tests.test_config:TABLE")] = Leaf()


TABLE = Table("leaf", {"leaf": "tests.test_config:Leaf"})


@pytest.mark.parametrize(
    ("text", "value"),
    [("5e-4", 5e-4), ("no", "no"), ("12:30", "12:30"), ("00012", "00012"), ("1_000", 1000), ("-.5", -0.5), ("~", None),
     ("true", True), ("'5'", "5"), ("1.", 1.0), (".inf", float("inf"))],
)  # fmt: skip
def test_scalars(text: str, value: object) -> None:
    assert config.parse_yaml(text) == value


def test_aliases_and_depth_are_refused() -> None:
    with pytest.raises(config.ConfigError, match="line 2: YAML aliases"):
        config.parse_yaml("a: &x 1\nb: *x")
    with pytest.raises(config.ConfigError, match="deeper"):
        config.parse_yaml("[" * 40 + "]" * 40)
    with pytest.raises(config.ConfigError, match="tag !!python.* is not allowed"):
        config.parse_yaml("a: !!python/object/apply:os.system [ls]")


def test_overrides_reach_lists_and_new_mappings() -> None:
    values = config.apply_overrides({"a": [{"b": 1}, {"b": 2}], "c": {}}, ["a.1.b=5e-4", "c.d.e=[1, x]", "f=no"])
    assert values == {"a": [{"b": 1}, {"b": 5e-4}], "c": {"d": {"e": [1, "x"]}}, "f": "no"}
    with pytest.raises(config.ConfigError, match="no item of a list of 2"):
        config.apply_overrides({"a": [1, 2]}, ["a.2=3"])
    with pytest.raises(config.ConfigError, match=r'list "a" is not set; give it whole: a=\[\{\.\.\.\}\]'):
        config.apply_overrides({}, ["a.0.b=1"])
    with pytest.raises(config.ConfigError, match="key=value"):
        config.apply_overrides({}, ["lonely"])


def test_every_fault_is_named_with_its_path_and_remedy() -> None:
    with pytest.raises(config.ConfigError) as caught:
        config.validate(Tree, {"leaf": {"siz": 1, "rate": "fast"}, "loss": {"name": "leaf", "rat": 1}}, where="x.yaml")
    text = str(caught.value)
    assert "x.yaml: 4 fault(s)" in text
    assert "name: required" in text
    assert 'leaf.siz: unknown field; did you mean "size"?' in text
    assert "leaf.rate:" in text
    assert "'fast'" in text
    assert 'loss.rat: unknown field; did you mean "rate"?' in text


def test_unknown_part_suggests_the_nearest() -> None:
    with pytest.raises(config.ConfigError, match='loss: unknown leaf "laef"; did you mean "leaf"'):
        config.validate(Tree, {"name": "t", "loss": "laef"}, where="x")


def test_missing_file_names_a_near_one(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "scenes.yaml").write_text("name: t\nloss: {name: leaf, size: 7}\n")
    with pytest.raises(config.ConfigError, match=r'scene\.yaml .*did you mean "scenes\.yaml"'):
        config.read_yaml(tmp_path / "scene.yaml")
    tree = config.load(Tree, tmp_path / "scenes.yaml", ["leaf.rate=2"])
    assert (tree.loss.size, tree.leaf.rate) == (7, 2.0)
    (tmp_path / "again.yaml").write_text(config.to_yaml(tree))
    assert config.load(Tree, tmp_path / "again.yaml") == tree


class House(Part):
    """A house."""

    tree: Tree = Tree(name="oak")
    shed: Leaf | None = None
    sheds: tuple[Leaf, ...] = ()
    ages: tuple[int, ...] = Field((1,), min_length=1)


def faults(**values: object) -> str:
    with pytest.raises(config.ConfigError) as caught:
        config.validate(House, values, where="x")
    return str(caught.value)


def test_a_field_of_a_part_below_is_suggested_with_its_path() -> None:
    assert 'leaf: unknown field; did you mean "tree.leaf"?' in faults(leaf=1)
    assert 'rate: unknown field; did you mean "tree.leaf.rate" or "tree.loss.rate" or "shed.rate"?' in faults(rate=1)
    assert 'tree.rate: unknown field; did you mean "tree.leaf.rate" or' in faults(tree={"name": "t", "rate": 1})
    assert 'trees: unknown field; did you mean "tree"?' in faults(trees=1)
    assert "wood: unknown field; known: ages, shed, sheds, tree" in faults(wood=1)


def test_a_value_in_place_of_settings_and_an_empty_list_are_said_plainly() -> None:
    assert "tree: wanted settings such as {name: oak} (got 'oak')" in faults(tree="oak")
    assert "tree.leaf: wanted settings such as {size: 3} (got 3)" in faults(tree={"name": "t", "leaf": 3})
    assert "tree.leaf: wanted settings, {field: value} of size, rate (got 'x')" in faults(
        tree={"name": "t", "leaf": "x"}
    )
    assert "ages: give at least one (got [])" in faults(ages=[])
