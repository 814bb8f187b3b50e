"""`vlp losses`: every loss, what it needs, and defaults that could stand in a configuration."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from vlp import cli
from vlp.losses import LOSSES


@pytest.fixture(scope="module")
def rows() -> dict[str, list[list[str]]]:
    """Loss -> rows of field, default and text, of a table wide enough for all of them."""
    shown = CliRunner().invoke(cli.app, ["losses"], env={"COLUMNS": "400"})
    assert shown.exit_code == 0, shown.output
    found: dict[str, list[list[str]]] = {}
    name = ""
    for line in shown.output.splitlines():
        if line.startswith("│"):
            first, *rest = (cell.strip() for cell in line.strip("│").split(" │ "))
            name = first or name
            found.setdefault(name, []).append(rest)
    return found


def test_every_loss_is_there_and_nothing_is_left_to_python(rows: dict[str, list[list[str]]]) -> None:
    assert set(rows) == {"every loss", *LOSSES.names()}
    defaults = [row[1] for name in rows for row in rows[name] if row[0]]
    assert not [text for text in defaults if "Pydantic" in text or "=" in text or text in ("None", "True", "False", "")]


def test_required_needs_and_nested_fields(rows: dict[str, list[list[str]]]) -> None:
    assert ["", "", "needs image_tokens, text_tokens"] in rows["filip"]
    assert ["", "", "needs bias"] in rows["sigmoid"]
    assert not any("needs" in row[2] for row in rows["infonce"])
    fields = {row[0]: row[1:] for row in rows["matryoshka"]}
    assert fields["of"][0] == fields["widths"][0] == "required"
    assert fields["shares"] == ["null", "weight of each width; default: the mean"]
    assert {row[0]: row[1] for row in rows["distill"]}["image_column"] == "teacher/image"
    assert {row[0]: row[1] for row in rows["koleo"]}["sides"] == "[image, text]"
    assert {row[0]: row[2] for row in rows["feature_distill"]}["kind"] == "mse | cosine"
