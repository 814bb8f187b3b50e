"""The command line of the data tools: help that teaches, exit codes that tell, messages in one line."""

from __future__ import annotations

import pytest
from PIL import Image
from typer.testing import CliRunner

from data_tools import TOOLS
from data_tools.__main__ import app


def run(*words: str) -> object:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("name", ["scenes", "build", "index", "verify", "stats", "teach", "contamination"])
def test_every_tool_has_a_command_with_an_example(name):
    assert name in TOOLS.names()
    result = run(name, "--help")
    assert result.exit_code == 0
    assert "python -m data_tools" in result.output


def test_scenes_verify_stats_and_back(tmp_path):
    sheet = tmp_path / "sheet.png"
    result = run("scenes", tmp_path, "--count", 12, "--shard-size", 5, "--styles", "flat,night", "--sheet", sheet)
    assert result.exit_code == 0, result.output
    assert "samples: 12" in result.output
    with Image.open(sheet) as image:
        assert image.width > 1000
    assert run("verify", tmp_path / "train", "--deep").exit_code == 0
    result = run("stats", tmp_path / "train", "--out", tmp_path / "stats")
    assert "12 samples in 3 shards" in result.output
    (tmp_path / "train/000001.tar").unlink()
    result = run("verify", tmp_path / "train")
    assert result.exit_code == 1
    assert "missing_shard" in result.output
    assert "readable 7, missing 5" in result.output


def test_faults_in_options_are_one_line(tmp_path):
    result = run("scenes", tmp_path, "--styles", "flta")
    assert result.exit_code == 2
    assert '--styles: unknown style "flta"; did you mean "flat"?' in result.output
    assert run("scenes", tmp_path, "--shard-range", "3/2").exit_code == 2
    result = run("stats", tmp_path / "none-*.tar")
    assert result.exit_code == 1
    assert "no shard matches" in result.output
