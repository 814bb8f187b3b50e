"""A user's own folder of pictures: from a model and a folder to records and a report."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from eval.__main__ import app
from eval.data import Data, open_data
from eval.own import is_pictures, suite_of_folder
from eval.words import sort_words
from vlp.data.schema import DataError
from vlp.models.model import Model
from vlp.models.pretrained import save


@pytest.fixture
def photos(tmp_path):
    for number, (name, colour) in enumerate((("red_cars", "red"), ("blue_birds", "blue"), ("green_tea", "green"))):
        (tmp_path / "my photos" / name).mkdir(parents=True)
        for i in range(3):
            picture = Image.new("RGB", (40 + i, 36 + number), colour)
            picture.save(tmp_path / "my photos" / name / f"{i}.png")
    return tmp_path / "my photos"


def test_class_folders_become_words(photos):
    assert is_pictures(photos)
    suite = suite_of_folder(photos)
    assert [part.dataset for part in suite.benchmarks] == ["my_photos"]
    assert open_data(suite.benchmarks[0].data).names == ("blue birds", "green tea", "red cars")
    (photos / "classnames.txt").write_text("a bird\ngreen tea\na car\n")
    assert open_data(suite.benchmarks[0].data).names == ("a bird", "green tea", "a car")
    (photos / "classnames.txt").write_text("a bird\na car\n")
    with pytest.raises(DataError, match=r"2 names and there are 3 class folders: one line a folder.*blue_birds"):
        open_data(suite.benchmarks[0].data)


def test_captions_beside_the_pictures_become_retrieval(photos):
    for i in range(3):
        (photos / "red_cars" / f"{i}.txt").write_text(f"a red car number {i}")
    suite = suite_of_folder(photos / "red_cars")
    assert suite.benchmarks[0].captions.fields[0] == "txt"
    assert [type(part).__name__ for part in suite.benchmarks] == ["Retrieval", "Health"]


def test_one_command_from_a_folder_to_a_report(photos, tmp_path):
    torch.manual_seed(0)
    save(Model(arch="vlp-nano").build(), tmp_path / "nano")
    assert not is_pictures(tmp_path / "nano")
    words = [str(tmp_path / "nano"), str(photos), "--out", str(tmp_path / "out"), "--device", "cpu", "--no-cache"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0
    (first,) = map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines())
    assert first["counts"]["classes"] == 3
    assert first["n"] == 9
    assert "blue birds" in (tmp_path / "out" / "report.html").read_text()


def test_a_suite_may_name_the_folder_and_needs_no_names(photos, tmp_path):
    data = Data.model_validate({"source": {"name": "folder", "path": photos.name}})
    assert open_data(data, folders=[tmp_path]).names is not None
    with pytest.raises(DataError, match="no data at"):
        open_data(data, folders=[tmp_path / "elsewhere"])


def test_a_folder_without_pictures_is_a_model(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no suite was given for .*empty"):
        sort_words([str(tmp_path / "empty")])
