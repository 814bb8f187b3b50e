"""Crops of given boxes named by words, and by prompts learned from proposals around boxes of other pictures."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from data_tools.scenes.tool import Scenes
from eval.data import open_data
from eval.regions import RegionClasses
from eval.view import View
from tests.adapters.prompt_towers import clip
from tests.eval.colours import COLOURS, ColourDual, write_shard
from vlp.data.schema import DataError
from vlp.embed import Encoder

NAMES = ("red", "green", "blue")


def two_halves(left, right, **facts):
    """Two coloured halves of a picture of 16 x 8, each with its box."""
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, :8], pixels[:, 8:] = COLOURS[left], COLOURS[right]
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    objects = [{"color": left, "box": [0, 0, 8, 8]}, {"color": right, "box": [8, 0, 16, 8]}]
    return {"png": data.getvalue(), "json": json.dumps({"objects": objects, **facts}).encode()}


def measure(part, dual=None):
    view = View(Encoder(dual or ColourDual(), quiet=True), open_data(part.data), dataset="x")
    return part.measure(view), view


PLAIN = {"dataset": "x", "names": NAMES, "templates": ("{}",), "object_class": "{color}", "n_boot": 20}


def test_every_box_is_seen_by_itself(tmp_path):
    wrong = two_halves("red", "green", objects=[{"color": "blue", "box": [0, 0, 8, 8]}])
    shard = write_shard(tmp_path / "a.tar", [two_halves("red", "green"), two_halves("blue", "white"), wrong])
    found, view = measure(RegionClasses(data=str(shard), **PLAIN))
    assert found.metrics == {"acc1": 0.75}
    assert found.counts == {"images": 3, "regions": 4, "classes": 3}
    assert found.skips == {"other_class": 1}
    assert found.chance["acc1"] == pytest.approx(1 / 3)
    assert found.files["regions_hits.json"]["columns"]["acc1"] == [1, 1, 1, 0]
    assert dict(view.label_reads) == {"scoring": 1}


def test_what_is_no_box_is_counted(tmp_path):
    bad = [{"color": "red"}, {"color": "red", "box": [5, 0, 5, 8]}, "red"]
    shard = write_shard(
        tmp_path / "a.tar",
        [two_halves("red", "green"), two_halves("red", "red", objects=bad), two_halves("red", "red", objects=3)],
    )
    found, _ = measure(RegionClasses(data=str(shard), **PLAIN))
    assert found.skips == {"bad_object": 2, "bad_box": 1, "no_objects": 1}
    assert found.metrics["acc1"] == 1.0
    none = write_shard(tmp_path / "b.tar", [two_halves("white", "white")])
    with pytest.raises(DataError, match=r"no box of a known class in objects: \{'other_class': 2\}"):
        measure(RegionClasses(data=str(none), **PLAIN))


def test_detpro_learns_from_proposals_of_some_classes(tmp_path):
    for seed, split in enumerate(("train", "test")):
        Scenes(split=split, count=8, seed=seed, size=32, styles=("flat",), unique_captions=False).run([], tmp_path)
    shapes = ("circle", "square", "star", "heart", "ring", "arrow")
    part = RegionClasses(
        dataset="x",
        data=str(tmp_path / "test"),
        train=str(tmp_path / "train"),
        names=shapes,
        templates=("a {}.",),
        learned=shapes[:4],
        adapter={"name": "detpro", "epochs": 1, "context": 2, "batch": 32},
        proposals=4,
        n_boot=10,
    )
    found, view = measure(part, clip())
    assert found.head == "detpro"
    assert {"acc1", "acc1_learned", "acc1_new"} <= set(found.metrics)
    assert found.selection["train_regions"] >= 20
    assert dict(view.beside(part.train).label_reads) == {"learning": 1}
    assert measure(part, clip())[0].metrics == found.metrics
    with pytest.raises(ValueError, match='learned: "hart" is no class; did you mean "heart"'):
        measure(part.model_copy(update={"learned": ("hart", "ring")}), clip())
    with pytest.raises(DataError, match="train are the pictures of data"):
        measure(part.model_copy(update={"train": part.data}), clip())


def test_what_cannot_be_is_refused():
    with pytest.raises(ValidationError, match="linear_patches scores pixels; of regions are detpro"):
        RegionClasses(data="x", adapter="linear_patches", train="y", **PLAIN)
    with pytest.raises(ValidationError, match="train and learned teach an adapter"):
        RegionClasses(data="x", learned=("red",), **PLAIN)
