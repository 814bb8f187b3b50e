"""A user's own folder of pictures: from a model and a folder to records and a report."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from eval.__main__ import app, main
from eval.class_folders import class_places
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
    with pytest.raises(ValueError, match="empty: an empty folder: neither a model nor pictures"):
        sort_words([str(tmp_path / "empty"), "s.yaml"])


SUITE = """
name: mine
benchmarks:
  - name: zeroshot
    dataset: mine
    data: {name: folder, path: my photos}
    names: [red cars, blue birds, green tea]
    templates: ["a photo of {}."]
"""


@pytest.fixture
def told(photos, tmp_path, monkeypatch, capsys):
    """What the command says, and with which status it leaves, started where the pictures and a model lie."""
    torch.manual_seed(0)
    save(Model(arch="vlp-nano").build(), tmp_path / "nano")
    monkeypatch.chdir(tmp_path)

    def run(*words, suite=SUITE):
        (tmp_path / "my.yaml").write_text(suite)
        given = words or ("nano", "my.yaml")
        how = () if given[0] == "check" else ("--device", "cpu", "--no-cache")
        monkeypatch.setattr(sys, "argv", ["vlp eval", *given, *how])
        with pytest.raises(SystemExit) as left:
            main()
        shown = capsys.readouterr()
        return left.value.code, " ".join((shown.out + shown.err).split())

    return run


def test_names_find_their_folders_in_whatever_order(told, tmp_path):
    assert told()[0] == 0
    items = json.loads((tmp_path / "runs/out/eval/nano/eval/mine/items.json").read_text())
    assert items["names"] == ["red cars", "blue birds", "green tea"]
    classes = {key.partition("/")[0]: label for key, label in zip(items["keys"], items["labels"], strict=True)}
    assert classes == {"blue_birds": 1, "green_tea": 2, "red_cars": 0}


@pytest.mark.parametrize(
    ("folders", "names", "places"),
    [
        (["a", "b"], ["b", "a"], [1, 0]),
        (["Red_Car", "blue-bird"], ["blue bird", "red car"], [1, 0]),
        (["a", "c"], ["a", "b", "c"], [0, 2]),  # of b there is no picture
        (["n01", "n02"], ["tench", "shark"], [0, 1]),  # by order
        (["apple", "n02", "pear"], ["apple", "quince", "pear"], [0, 1, 2]),
    ],
)
def test_places_of_class_folders(folders, names, places):
    assert class_places(folders, names, where="d") == places


@pytest.mark.parametrize(
    ("folders", "names", "message"),
    [
        (
            ["apple", "misc", "pear"],
            ["apple", "pear"],
            "no class name for the folder misc of 3 .names without a folder: none",
        ),
        (["a_pear", "zaple"], ["aple", "a pear"], 'folder zaple of 2; did you mean "aple"'),
        (["n01", "n02", "n03", "n04"], ["tench"], "folders n01, n02, n03 and 1 more of 4"),
    ],
)
def test_folders_that_fit_no_names_are_refused(folders, names, message):
    with pytest.raises(DataError, match=message):
        class_places(folders, names, where="d")


def test_what_is_said_of_the_mistakes_that_newcomers_make(told, photos, tmp_path):
    def changed(old, new):
        assert old in SUITE
        return SUITE.replace(old, new)

    own = tmp_path / "my photos"
    shutil.make_archive("photos", "tar", ".", "my photos")
    (tmp_path / "empty").mkdir()
    for number, (words, suite, said) in enumerate(
        [
            (
                (),
                changed("red cars, blue birds, green tea", "blue birds, green tee, red cars"),
                "green_tea is green tee",
            ),
            ((), changed("green tea]", "green tee]"), 'folder green_tea of 3; did you mean "green tee"?'),
            ((), changed(", green tea]", "]"), "no class name for the folder green_tea of 3"),
            ((), changed("green tea]", "red cars]"), 'entry:3: class name "red cars" stands already on line 1'),
            ((), changed("templates", "template"), 'benchmarks.0.template: unknown field; did you mean "templates"?'),
            ((), changed("photo of {}", "photo"), 'no slot {} or {c} in "a photo."'),
            ((), changed('["a photo of {}."]', "phto"), 'unknown template set "phto"; did you mean "photo"?'),
            ((), changed("my photos", "my foto"), 'looked at my foto did you mean "my photos"?'),
            ((), changed("my photos", "photos.tar"), "photos.tar: a file, not a folder: unpack it"),
            ((), changed("{name: folder, path: my photos}", "photos.tar"), "a picture and nothing else (png)"),
            ((), changed("zeroshot", "zero_shot"), 'unknown benchmark "zero_shot"; did you mean "zeroshot"?'),
            (("nano", "photos.tar"), SUITE, "photos.tar: a tar is no model; to measure on it name it in a suite"),
            (("nano", "empty"), SUITE, "empty: an empty folder: neither a model nor pictures"),
            (("nanno", "my.yaml"), SUITE, '--weights FILE; did you mean "nano"?'),
            (
                ("ViT-B-32", "my.yaml"),
                SUITE,
                "ViT-B-32: an architecture without weights; give them too (--weights FILE, in Python weights=FILE)",
            ),
            (("my photos", "my.yaml"), SUITE, "no model was given (my photos holds pictures, no model)"),
            (("nano", "mine.yaml"), SUITE, "no configuration file mine.yaml (in"),
            (("nano", "my photos/red_cars"), SUITE, "nor class folders (a folder for each class"),
        ]
    ):
        code, text = told(*words, suite=suite)
        assert said in text, (number, text)
        assert code == (1 if number else 0), (number, text)
    shutil.rmtree(own / "green_tea")
    shutil.rmtree(own / "red_cars")
    assert 'a single class, "blue birds"' in told("nano", "my photos")[1]
    shutil.rmtree(own / "blue_birds")
    assert "no pictures in it; looked for *.jpg" in told()[1]


def test_pictures_that_cannot_be_read_are_named(told, photos, tmp_path):
    broken = tmp_path / "my photos" / "red_cars" / "1.png"
    broken.write_bytes(b"no picture")
    code, text = told()
    assert code == 0
    assert "left out 1 of 9 pictures: 1 not_image (such as red_cars/1)" in text
    out = tmp_path / "runs/out/eval/nano"
    (skip,) = json.loads((out / "eval/mine/items.json").read_text())["skipped"]
    assert (skip["reason"], skip["key"]) == ("not_image", "red_cars/1")
    assert "<td>red_cars/1</td>" in (out / "report.html").read_text()


def test_a_folder_of_pictures_may_be_a_path_and_is_checked(told, photos):
    assert told(suite=SUITE.replace("{name: folder, path: my photos}", "my photos"))[0] == 0
    code, text = told("check", "my photos")
    assert code == 0
    assert "9 3 folder" in text
    code, text = told("check", "my.yaml", suite=SUITE.replace("green tea]", "tea]"))
    assert (code, "in the order of the folders: green_tea is tea" in text) == (1, False)
    assert "no class name for the folder green_tea" in text
