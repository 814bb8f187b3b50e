"""Scenes: same bytes for same settings, masks and boxes true to the pixels, splits without a caption in common."""

from __future__ import annotations

import io
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from data_tools.scenes import vocabulary
from data_tools.scenes.facts import Scene, Thing, relation
from data_tools.scenes.render import draw
from data_tools.scenes.tool import SceneMaker, Scenes
from data_tools.shards import Raw, find_shards, samples
from data_tools.texts import dataset_captions, normalise
from vlp.data.schema import DataError, read_manifest


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def read(folder: Path) -> list[Raw]:
    return [sample for shard in find_shards([str(folder)]) for sample in samples(shard)]


def facts(sample: Raw) -> dict[str, Any]:
    return json.loads(sample.members["json"])


def pixels(sample: Raw, name: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(sample.members[name])))


def test_same_settings_same_bytes_and_another_seed_other_scenes(tmp_path):
    for name in ("a", "b"):
        Scenes(count=30, shard_size=10).run([], tmp_path / name)
    Scenes(count=30, shard_size=10, seed=1).run([], tmp_path / "c")
    first = contents(tmp_path / "a/train")
    assert set(first) == {f"00000{i}.tar{e}" for i in range(3) for e in ("", ".index")} | {"dataset.json"}
    assert first == contents(tmp_path / "b/train")
    assert first["000000.tar"] != contents(tmp_path / "c/train")["000000.tar"]


@pytest.mark.slow
def test_two_workers_and_two_machines_write_what_one_writes(tmp_path):
    Scenes(count=40, shard_size=10).run([], tmp_path / "one")
    Scenes(count=40, shard_size=10, workers=2).run([], tmp_path / "two")
    half = Scenes(count=40, shard_size=10, shard_range=(0, 2)).run([], tmp_path / "halves")
    assert not half["complete"]
    assert not (tmp_path / "halves/train/dataset.json").exists()
    assert Scenes(count=40, shard_size=10, shard_range=(1, 2)).run([], tmp_path / "halves")["complete"]
    one = contents(tmp_path / "one/train")
    assert one == contents(tmp_path / "two/train") == contents(tmp_path / "halves/train")


def test_a_scene_does_not_depend_on_how_many_there_are(tmp_path):
    few = list(SceneMaker(Scenes(count=4)).items(2, 4))
    many = list(SceneMaker(Scenes(count=400, shard_size=7)).items(2, 4))
    assert few == many


@pytest.mark.parametrize("size", [64, 100])
def test_masks_and_boxes_are_those_of_the_pixels(tmp_path, size):
    Scenes(count=60, size=size, styles=("flat",), format="png").run([], tmp_path)
    checked = 0
    for sample in read(tmp_path / "train"):
        image, mask = pixels(sample, "png"), pixels(sample, "mask.png")
        assert image.shape == (size, size, 3)
        assert mask.shape == (size, size)
        things = facts(sample)["objects"]
        assert set(np.unique(mask)) <= set(range(len(things) + 1))
        background = vocabulary.BACKGROUNDS[facts(sample)["background"]]
        if background.layout == "plain":
            outside = image[~_grown(_grown(mask > 0))]  # the thin tip of a star or arrow is no whole pixel
            assert np.abs(outside.astype(int) - background.first).max() <= 1
        for number, thing in enumerate(things, start=1):
            rows, columns = np.nonzero(mask == number)
            x0, y0, x1, y1 = thing["box"]
            assert x0 <= columns.min()
            assert columns.max() < x1
            assert y0 <= rows.min()
            assert rows.max() < y1
            if thing["visible"] == 1:
                tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert thing["box"] == tight
            if thing["texture"] == "solid":
                inside = image[~_grown(_grown(mask != number))]
                assert len(inside) == 0 or np.abs(inside.astype(int) - vocabulary.COLORS[thing["color"]]).max() <= 1
                checked += len(inside) > 0
    assert checked > 40


def _grown(on: np.ndarray) -> np.ndarray:
    """One pixel more on every side."""
    padded = np.pad(on, 1)
    height, width = on.shape
    return np.any([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)


def test_visible_share_of_a_half_covered_square():
    under = Thing("square", "red", "large", "solid", 0.5, 0.5, 0.2, 0.0)
    over = Thing("square", "blue", "large", "solid", 0.67, 0.5, 0.2, 0.0)  # its left edge is at 0.5
    drawn = draw(Scene((under, over), "white", "flat"), 100, random.Random(0))
    assert drawn.visible[1] == 1
    assert abs(drawn.visible[0] - 0.5) < 0.04
    assert drawn.boxes[0] == (33, 33, 67, 67)


def test_every_style_and_shape_can_be_drawn_and_styles_differ():
    things = [
        Thing(shape, "red", "large", texture, 0.5, 0.5, 0.3, 0.0)
        for shape in vocabulary.SHAPES
        for texture in vocabulary.TEXTURES
    ]
    rng = random.Random
    for thing in things:
        drawn = draw(Scene((thing,), "white", "flat"), 64, rng(0))
        assert (drawn.mask == 1).sum() > 64 * 64 * 0.05, thing.shape
    seen = {draw(Scene((things[0],), "navy", style), 64, rng(0)).image.tobytes() for style in vocabulary.STYLES}
    assert len(seen) == len(vocabulary.STYLES) >= 5


def test_things_stand_out_and_do_not_hide_each_other(tmp_path):
    Scenes(count=300).run([], tmp_path)
    counts = set()
    for sample in read(tmp_path / "train"):
        scene = facts(sample)
        counts.add(len(scene["objects"]))
        names = [(thing["color"], thing["shape"]) for thing in scene["objects"]]
        assert len(set(names)) == len(names)
        assert all(thing["visible"] > 0.6 for thing in scene["objects"])
        for thing in scene["objects"]:
            assert thing["color"] in vocabulary.VISIBLE[scene["background"]]
    assert counts == {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("x", "y", "word"),
    [
        (-9, 1, "left"),
        (9, 1, "right"),
        (1, -9, "above"),
        (1, 9, "below"),
        (-5, -5, "above left"),
        (5, 5, "below right"),
    ],
)
def test_relations(x, y, word):
    ring = Thing("ring", "red", "large", "solid", 0.5, 0.5, 0.25, 0.0)
    other = Thing("star", "blue", "small", "solid", 0.5 + x / 30, 0.5 + y / 30, 0.1, 0.0)
    assert relation(other, ring) == word
    assert relation(Thing("star", "blue", "small", "solid", 0.5, 0.5, 0.1, 0.0), ring) == "inside"


def test_held_out_scenes_share_no_caption_and_have_none_twice(tmp_path):
    """One style, so that captions do come again, and the tool has to draw scenes anew."""
    Scenes(count=500, styles=("flat",)).run([], tmp_path)
    again = Scenes(
        split="again", count=100, seed=0, styles=("flat",), unique_captions=False, exclude=(tmp_path / "train",)
    )
    assert again.run([], tmp_path)["redrawn"] == 100  # the same seed draws the same captions: all must be drawn anew
    result = Scenes(split="test", count=200, seed=1, exclude=(tmp_path / "train",)).run([], tmp_path)
    train = {normalise(text) for text in dataset_captions(tmp_path / "train")}
    test = [normalise(text) for text in dataset_captions(tmp_path / "test")]
    assert result["samples"] == 200
    assert len(set(test)) == len(test) >= 1000
    assert not train & set(test)


def test_too_many_unique_captions_end_with_a_message(monkeypatch):
    from data_tools.scenes import tool

    monkeypatch.setattr(tool, "MAX_REDRAWS", 3)
    scenes = Scenes(count=2, seed=0, unique_captions=True)
    forbidden = {tool.fingerprint(text) for attempt in range(3) for text in scenes.scene(0, attempt)[1].captions}
    with pytest.raises(DataError, match="scene 0: 3 draws"):
        tool.find_redraws(scenes, forbidden)


def test_labelled_scenes_show_the_class_they_name(tmp_path):
    result = Scenes(split="zeroshot", variant="labelled", count=200, seed=3).run([], tmp_path)
    folder = Path(result["folder"])
    classes = json.loads((folder / "classes.json").read_text())["names"]
    assert len(classes) == len(set(classes)) >= 20
    assert (folder / "classnames.txt").read_text().split("\n")[:-1] == classes
    assert all("{c}" in line for line in (folder / "zeroshot_classification_templates.txt").read_text().splitlines())
    seen = set()
    for sample in read(folder):
        scene = facts(sample)
        main, *others = scene["objects"]
        assert sample.members["cls"] == str(scene["label"]).encode()
        assert scene["class"] == classes[scene["label"]] == f"{main['color']} {main['shape']}"
        assert all(thing["radius"] < main["radius"] / 2 for thing in others)
        assert all((thing["color"], thing["shape"]) != (main["color"], main["shape"]) for thing in others)
        seen.add(scene["label"])
    assert len(seen) >= 20


def test_the_manifest_says_how_it_was_made(tmp_path):
    Scenes(count=5, workers=1).run([], tmp_path)
    manifest = read_manifest(tmp_path / "train")
    assert manifest.samples == 5
    assert manifest.made_by["settings"]["seed"] == 0
    assert "workers" not in manifest.made_by["settings"]
    assert {"jpg", "json", "txt", "mask.png", "json.captions", "json.hard_negatives"} <= set(manifest.fields)


def test_an_unknown_style_names_the_nearest():
    with pytest.raises(ValidationError, match='did you mean "crayon"'):
        Scenes(styles=("crayons",))


def test_other_settings_do_not_mix_into_a_folder(tmp_path):
    Scenes(count=20, shard_size=10).run([], tmp_path)
    with pytest.raises(DataError, match="--overwrite"):
        Scenes(count=10, shard_size=10, seed=1).run([], tmp_path)
    Scenes(count=10, shard_size=10, seed=1, overwrite=True).run([], tmp_path)
    assert sorted(path.name for path in (tmp_path / "train").glob("*.tar")) == ["000000.tar"]


def test_commands_that_the_pages_show_are_right():
    """Splits and variants of every `vlp data scenes` in pages, run scripts and configurations."""
    root = Path(__file__).parents[2]
    files = [root / "README.md", *(root / "docs").glob("*.md"), *(root / "configs").rglob("*.yaml")]
    shown = [
        (file.name, dict(re.findall(r"--(split|variant) ([\w-]+)", command)))
        for file in files
        for command in re.findall(r"vlp data scenes [^`\n\"]*", file.read_text(encoding="utf-8"))
    ]
    assert {name for name, words in shown if "split" in words} >= {"README.md", "scenes.yaml"}
    for name, words in shown:
        assert Scenes(**words).split.isidentifier(), name
