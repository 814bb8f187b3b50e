"""`vlp losses`: every loss in a line, and of those named what they need, and defaults that could stand in YAML."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from vlp import cli
from vlp.losses import LOSSES


def shown(*words: str, columns: int = 400) -> str:
    found = CliRunner().invoke(cli.app, ["losses", *words], env={"COLUMNS": str(columns)}, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.output


@pytest.fixture(scope="module")
def blocks() -> dict[str, list[str]]:
    """Loss -> its lines in `vlp losses all`, on a terminal wide enough for all of them."""
    found = (block.splitlines() for block in shown("all").strip().split("\n\n"))
    return {first: rest for first, *rest in found}


def fields(lines: list[str]) -> dict[str, tuple[str, str]]:
    found = [re.fullmatch(r"    (\w+) = (.*?)(?:  \((.*)\))?", line) for line in lines]
    return {one[1]: (one[2], one[3] or "") for one in found if one}


def test_without_a_name_there_is_a_line_for_each_loss() -> None:
    lines = shown().splitlines()
    assert [line.split()[0] for line in lines[: len(LOSSES.names())]] == LOSSES.names()
    assert "vlp losses NAME" in lines[-1]
    (filip,) = (line for line in lines if line.startswith("filip "))
    assert filip.endswith("section 3.1). Needs image_tokens, text_tokens.")
    assert max(map(len, shown(columns=60).splitlines())) <= 60


def test_every_loss_is_there_and_nothing_is_left_to_python(blocks: dict[str, list[str]]) -> None:
    assert set(blocks) == {"every loss", *LOSSES.names()}
    defaults = [default for lines in blocks.values() for default, _ in fields(lines).values()]
    assert len(defaults) > 100
    assert not [text for text in defaults if "Pydantic" in text or "=" in text or text in ("None", "True", "False", "")]


def test_required_needs_and_nested_fields(blocks: dict[str, list[str]]) -> None:
    assert "  Needs image_tokens, text_tokens." in blocks["filip"]
    assert "  Needs bias." in blocks["sigmoid"]
    assert "  Needs what its settings say." in blocks["matryoshka"]
    assert not any(line.startswith("  Needs") for line in blocks["infonce"])
    found = fields(blocks["matryoshka"])
    assert found["of"][0] == found["widths"][0] == "required"
    assert found["shares"] == ("null", "weight of each width; default: the mean")
    assert "weight" not in found
    assert fields(blocks["every loss"]) == {"weight": ("1.0", "in the sum of the run's losses")}
    assert fields(blocks["distill"])["image_column"][0] == "teacher/image"
    assert fields(blocks["koleo"])["sides"][0] == "[image, text]"
    assert fields(blocks["feature_distill"])["kind"][1] == "mse | cosine"


def test_named_losses_are_shown_alone_and_a_misspelt_one_has_a_near_name(blocks: dict[str, list[str]]) -> None:
    found = [block.splitlines() for block in shown("filip", "koleo").strip().split("\n\n")]
    assert [block[0] for block in found] == ["every loss", "filip", "koleo"]
    assert found[1][1:] == blocks["filip"]
    with pytest.raises(ValueError, match='unknown loss "filp"; did you mean "filip"'):
        shown("filp")


def test_the_version_is_said_with_that_of_torch() -> None:
    import torch

    from vlp import __version__

    found = CliRunner().invoke(cli.app, ["--version"])
    assert found.exit_code == 0
    where = r"( \(commit [0-9a-f]{12}\))?"
    assert re.fullmatch(
        rf"vlp {re.escape(__version__)}{where}, torch {re.escape(torch.__version__.split('+')[0])}.*\n", found.output
    )
