"""`stats` on a set small enough to count by hand."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from data_tools.scripts import script_of
from data_tools.stats import Stats, quantiles
from data_tools.texts import captions_of, normalise


def picture(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    members = {
        "0.png": picture(10, 20),
        "0.json": json.dumps({"captions": ["A red star.", "the second one here"], "label": 1}).encode(),
        "1.png": picture(10, 20),  # the same bytes as 0
        "1.txt": b"a RED star",
        "2.png": picture(30, 20),
        "2.txt": "红色的星星".encode(),
        "3.png": b"no picture",
        "3.json": b"{}",
    }
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return tmp_path / "s.tar"


def test_numbers_by_hand(shard, tmp_path):
    result = Stats().run([shard], tmp_path / "out")
    assert result["samples"] == 4
    assert result["members"] == {"png": 4, "json": 2, "txt": 2}
    pictures, captions = result["pictures"], result["captions"]
    assert pictures["width"] == {
        "mean": 16.667,
        "p0": 10,
        "p5": 10,
        "p25": 10,
        "p50": 10,
        "p75": 30,
        "p95": 30,
        "p100": 30,
    }
    assert pictures["duplicates"] == 1
    assert pictures["bad"] == {"not_image": 1}
    assert captions["total"] == 4
    assert captions["distinct"] == 3
    assert captions["duplicates"] == 1
    assert captions["samples_without"] == 1
    assert captions["per_sample"]["p100"] == 2
    assert captions["words"]["mean"] == (3 + 4 + 3 + 1) / 4
    assert captions["scripts"] == {"Latin": 3, "Han": 1}
    assert captions["top"] == [["A red star.", 2]]
    assert captions["tokens"]["p0"] >= 5  # "a red star": three words, start and end
    assert result["labels"] == {"classes": 1, "largest": [("1", 1)]}
    assert json.loads((tmp_path / "out/stats.json").read_text())["samples"] == 4
    for name in ("pictures.png", "captions.png"):
        with Image.open(tmp_path / "out" / name) as image:
            assert image.width > 400


def test_captions_above_the_context_are_counted(shard):
    assert Stats(context=5).run([shard])["captions"]["cut_at_context"] == 3  # all but "a RED star" with its two ends
    assert Stats(tokenizer="").run([shard])["captions"]["tokens"] == {}


def test_quantiles_are_values_that_occur():
    assert quantiles(list(range(100)))["p50"] == 50
    assert quantiles([3])["p5"] == quantiles([3])["p100"] == 3
    assert quantiles([]) == {}


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("hello", "Latin"),
        ("привет мир", "Cyrillic"),
        ("一匹の猫です", "Japanese"),
        ("一只猫", "Han"),
        ("नमस्ते", "Devanagari"),
        ("مرحبا", "Arabic"),
        ("고양이", "Hangul"),
        ("123 !?", "none"),
        ("", "none"),
        ("a 红色的星", "Han"),
    ],
)
def test_scripts(text, script):
    assert script_of(text) == script


def test_equal_captions():
    assert normalise("A  Red star!") == normalise("a red, STAR") == "a red star"
    assert normalise("a red star") != normalise("a red stars")


def test_captions_of_nested_fields_and_lists():
    members = {
        "json": json.dumps({"es": {"caption": "uno"}, "captions": ["a", "b", "a", " "], "n": 3}).encode(),
        "txt": b"t",
    }
    assert captions_of(members) == ["a", "b", "t"]
    assert captions_of(members, ("es.caption", "n")) == ["uno"]
    assert captions_of({"json": b"[1]"}) == captions_of({"json": b"{"}) == []
