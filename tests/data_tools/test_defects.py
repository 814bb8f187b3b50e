"""Planted defects: off by default to the byte, marked where the picture changed, the same for the same settings."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import pytest
from PIL import Image

from data_tools.scenes.defects import KINDS, LEAST, MOST
from data_tools.scenes.tool import SceneMaker, Scenes
from data_tools.shards import find_shards, samples


def pixels(sample, name):
    return np.asarray(Image.open(io.BytesIO(sample.members[name])))


def records(**settings):
    return list(SceneMaker(Scenes(**{"count": 60, "format": "png", **settings})).items(0, settings.get("count", 60)))


def test_without_the_option_scenes_are_what_they_were(tmp_path):
    Scenes(count=6, size=32, shard_size=6).run([], tmp_path)
    digest = hashlib.sha256()
    for sample in samples(find_shards([str(tmp_path / "train")])[0]):
        assert set(sample.members) == {"jpg", "json", "txt", "mask.png"}
        assert not {"condition", "defect"} & set(json.loads(sample.members["json"]))
        digest.update(sample.members["json"] + sample.members["mask.png"])
    assert digest.hexdigest() == DEFAULT
    made_by = json.loads((tmp_path / "train/dataset.json").read_text())["made_by"]
    assert "defects" not in made_by["settings"]


DEFAULT = "842221d40ec1679a25de168536a54411c691752a038dd7d5170d8b92e138fc98"


@pytest.mark.parametrize("variant", ["captions", "labelled"])
@pytest.mark.parametrize("style", ["flat", "night", "outline"])
def test_a_defect_changes_the_picture_where_its_mask_says(variant, style):
    settings = {"variant": variant, "styles": (style,), "size": 96}
    kinds = set()
    for plain, flawed in zip(records(**settings), records(defects=0.8, **settings)):
        facts = json.loads(flawed.members["json"])
        marked = pixels(flawed, "defect.png")
        changed = (pixels(plain, "png").astype(int) != pixels(flawed, "png")).any(axis=2)
        assert set(np.unique(marked)) <= {0, 255}
        whole = pixels(plain, "mask.png")
        if facts["condition"] == "normal":
            assert facts["defect"] is None
            assert not marked.any()
            assert plain.members["png"] == flawed.members["png"]
            continue
        kinds.add(facts["defect"]["kind"])
        number = facts["defect"]["object"] + 1
        assert (whole[marked > 0] == number).all()
        share = (marked > 0).sum() / (whole == number).sum()
        assert share == pytest.approx(facts["defect"]["share"], abs=1e-3)
        assert LEAST / 2 < share < MOST + 0.1
        assert changed[~_grown(marked > 0)].sum() <= 2  # slivers between the middles of pixels
        assert changed[marked > 0].mean() > 0.6  # a white scratch on white stripes is seen between them
        missing = facts["defect"]["kind"] == "missing"
        assert (pixels(flawed, "mask.png") == np.where(missing & (marked > 0), 0, whole)).all()
        assert facts["objects"] == json.loads(plain.members["json"])["objects"]
        if variant == "labelled":
            assert number == 1
    assert kinds == set(KINDS)


def _grown(on):
    """One pixel more on every side: a pixel is a mean over nine."""
    padded = np.pad(on, 1)
    height, width = on.shape
    return np.any([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)


def test_a_share_of_the_pictures_has_one_and_the_same_ones_whatever_the_count():
    made = records(defects=0.5, count=200, size=32)
    conditions = [json.loads(one.members["json"])["condition"] for one in made]
    assert 70 < conditions.count("defect") < 130
    assert records(defects=0.5, count=20, size=32) == made[:20]
    other = [json.loads(one.members["json"])["condition"] for one in records(defects=0.5, count=50, size=32, seed=1)]
    assert other != conditions[:50]
    settings = Scenes(count=1, defects=0.5)._provenance([])[0]["settings"]
    assert settings["defects"] == 0.5
