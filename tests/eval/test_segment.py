"""Zero-shot segmentation with a model that knows colours: every number is known beforehand."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from eval.data import open_data
from eval.masks import IGNORED, Mask, Masks
from eval.overlays import overlay, side_by_side
from eval.segment import Segmentation
from eval.view import View
from eval.windows import assembled, layout
from tests.eval.colours import COLOURS, write_shard
from tests.eval.test_fine import PatchDual, measure
from tests.models.tiny import make_dual
from vlp.data.schema import DataError
from vlp.embed import Encoder
from vlp.report.heat import COLOURS as SHOWN

NAMES = ("red", "green")
PLAIN = {"names": NAMES, "templates": ("{}",), "how": "tokens", "dataset": "x"}


def png(values):
    data = io.BytesIO()
    Image.fromarray(np.asarray(values, dtype=np.uint8)).save(data, "PNG")
    return data.getvalue()


def striped(colours, mask=None, *, height=8, **facts):
    """A picture whose columns have these colours, and a mask whose columns have these values."""
    picture = np.repeat(np.array([COLOURS[c] for c in colours], dtype=np.uint8)[None], height, axis=0)
    found = {"png": png(picture), "json": json.dumps(facts).encode()}
    return found | ({} if mask is None else {"mask.png": png(np.repeat(np.array([mask]), height, axis=0))})


HALVES = ["red"] * 4 + ["green"] * 4


def test_mean_iou_by_hand(tmp_path):
    shard = write_shard(
        tmp_path / "a.tar",
        [
            striped(HALVES, [0] * 6 + [1] * 2),
            striped(HALVES),  # no mask
            striped(HALVES, [0] * 7 + [9]),
            {**striped(HALVES), "mask.png": striped(HALVES)["png"]},
            {**striped(HALVES), "mask.png": b"nothing"},
        ],
    )
    found = measure(Segmentation(data=str(shard), **PLAIN), shard)
    assert found.metrics["mean_iou"] == pytest.approx((32 / 48 + 16 / 32) / 2)
    assert found.metrics["pixel_accuracy"] == pytest.approx(48 / 64)
    assert found.metrics["mean_class_accuracy"] == pytest.approx((32 / 48 + 1) / 2)
    assert found.chance["pixel_accuracy"] == 0.5
    assert found.skips == {"no_mask": 1, "mask_value_unknown": 1, "mask_not_indices": 1, "bad_mask": 1}
    assert (found.n, found.head, found.counts["classes"]) == (1, "tokens", 2)
    assert set(found.ci95) == set(found.metrics)
    file = found.files["segmentation_tokens.json"]
    assert file["iou"] == {"red": pytest.approx(2 / 3), "green": 0.5}
    assert [one["row"] for one in file["overlays"]] == [0]
    assert file["overlays"][0]["pixel_accuracy"] == 0.75
    assert Image.open(io.BytesIO(base64.b64decode(file["overlays"][0]["png"]))).size == (20, 8)


@pytest.mark.parametrize(
    ("resize", "colours"),
    [("slide", ["red"] * 8 + ["green"] * 8 + ["red"] * 16), ("squash", ["green"] * 16 + ["red"] * 16)],
)
@pytest.mark.parametrize("shrunk", [1, 2])
def test_pixels_of_wide_pictures_are_those_of_their_masks(tmp_path, resize, colours, shrunk):
    """A model of 8 x 8 on 16 x 32; the mask may be smaller than the picture."""
    values = [NAMES.index(colour) for colour in colours]
    mask = png(np.repeat(np.array([values[::shrunk]]), 16 // shrunk, axis=0))
    right = {**striped(colours, height=16), "mask.png": mask}
    turned = {**striped(colours, height=16), "mask.png": png(np.zeros((32, 16)))}
    shard = write_shard(tmp_path / "a.tar", [right, turned])
    found = measure(Segmentation(data=str(shard), resize=resize, **PLAIN), shard)
    assert found.metrics["mean_iou"] == 1.0
    assert found.skips == {"mask_shape": 1}
    wrong = {**right, "mask.png": png(np.repeat(np.array([values[::-1]]), 16, axis=0))}
    shard = write_shard(tmp_path / "b.tar", [wrong])
    assert measure(Segmentation(data=str(shard), resize=resize, **PLAIN), shard).metrics["mean_iou"] < 0.5


def test_windows_cover_all_and_overlap_is_averaged():
    found = layout((16, 40), (8, 8), resize="slide")
    assert found.canvas == (8, 20)
    assert found.corners == ((0, 0), (0, 4), (0, 8), (0, 12))
    assert layout((30, 40), (8, 8), resize="squash").corners == ((0, 0),)
    assert len(layout((30, 40), (8, 8), resize="squash", zoom=2, overlap=0).corners) == 4
    scores = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 1, 2, 2)
    assert assembled(scores, found, (8, 8), (8, 20))[0, 0].tolist() == pytest.approx(
        [0] * 4 + [0.5] * 4 + [1.5] * 4 + [2.5] * 4 + [3] * 4
    )


def test_background_has_a_name_or_texts_or_a_threshold_of_validation(tmp_path):
    held = write_shard(
        tmp_path / "v.tar", [striped(["blue"] * 4 + ["red"] * 4, [0] * 4 + [1] * 4), striped(HALVES), {"png": b"bad"}]
    )
    shard = write_shard(tmp_path / "a.tar", [striped(["red"] * 4 + ["blue"] * 4, [1] * 4 + [0] * 3 + [255])])
    names = {**PLAIN, "names": ("background", *NAMES), "data": str(shard)}
    by_text = measure(Segmentation(**names, background={"name": "background", "texts": ("blue", "yellow")}), shard)
    assert by_text.metrics["mean_iou"] == 1.0
    part = Segmentation(**names, background={"name": "background", "candidates": (0.3, 0.7, 0.8)}, validation=str(held))
    view = View(Encoder(PatchDual(), quiet=True), open_data(part.data), dataset="x")
    found = part.measure(view)
    assert found.metrics == {
        "mean_iou": 1.0,
        "mean_iou_foreground": 1.0,
        "pixel_accuracy": 1.0,
        "mean_class_accuracy": 1.0,
    }
    assert found.selection["background_threshold"] == "0.7"
    assert (found.selection["split"], found.selection["candidates"]) == ("validation", 3)
    assert found.counts["pixels_ignored"] == 8
    assert found.skips == {"validation_not_image": 1, "validation_no_mask": 1}
    assert dict(view.label_reads) == {"scoring": 1}
    low = measure(Segmentation(**names, background={"name": "background", "threshold": 0.3}), shard)
    assert low.metrics["pixel_accuracy"] == pytest.approx(32 / 56)
    with pytest.raises(DataError, match="same pictures"):
        measure(Segmentation(**names, background={"name": "background"}, validation=str(shard)), shard)
    with pytest.raises(ValueError, match='"backgroun" is no class; did you mean "background"'):
        measure(Segmentation(**names, background={"name": "backgroun"}), shard)
    with pytest.raises(ValidationError, match="one of `texts`, `threshold`"):
        Segmentation(**names, background={"name": "background", "texts": ("sky",), "threshold": 0.2})
    with pytest.raises(ValidationError, match="say which class"):
        Segmentation(**names, validation=str(held))
    part = Segmentation(
        **{**names, "names": ("background", "red")}, background={"name": "background", "threshold": 0.5}
    )
    with pytest.raises(ValueError, match="the only class with words"):
        measure(part, shard)


def test_masks_of_objects_and_files_of_masks(tmp_path):
    objects = [{"color": "green"}, {"color": "red"}, {"color": "white"}]
    scene = striped(HALVES, [2] * 4 + [1] * 3 + [3], objects=objects)
    shard = write_shard(tmp_path / "a.tar", [scene, striped(HALVES, [1] * 8)])
    masks = {"objects": "objects", "object_class": "{color}"}
    found = measure(Segmentation(data=str(shard), masks=masks, **PLAIN), shard)
    assert found.metrics["pixel_accuracy"] == 1.0
    assert (found.counts["pixels_ignored"], found.skips) == (8, {"no_objects": 1})
    Image.fromarray(np.repeat(np.array([[7] * 4 + [8] * 3 + [0]], dtype=np.uint8), 8, axis=0)).save(
        tmp_path / "s0000000.png"
    )
    part = Segmentation(data=str(shard), masks={"member": str(tmp_path / "{key}.png"), "first": 7}, **PLAIN)
    found = measure(part, shard)
    assert found.metrics["mean_iou"] == 1.0
    assert found.skips == {"no_mask": 1}
    own = Masks(values=(255, 0))
    assert own.classes(Mask(np.array([[0, 255]])), NAMES).tolist() == [[1, 0]]
    assert Masks().classes(Mask(np.array([[1, 255]])), NAMES).tolist() == [[1, IGNORED]]
    with pytest.raises(ValueError, match=r"masks.values has 2 values, and there are 3"):
        own.classes(Mask(np.array([[0]])), ("a", "b", "c"))


@pytest.mark.parametrize(
    "options", [{}, {"residual": False}, {"key_smoothing": 1.0}, {"prompt_denoising": 0.5, "key_smoothing": 0.9}]
)
def test_maskclip_on_a_model_of_open_clip(tmp_path, options):
    rng = np.random.default_rng(0)
    samples = [
        {"png": png(rng.integers(0, 255, (40, 32, 3))), "mask.png": png(rng.integers(0, 2, (40, 32)))} for _ in range(3)
    ]
    shard = write_shard(tmp_path / "a.tar", samples)
    part = Segmentation(**{**PLAIN, "how": "maskclip"}, data=str(shard), batch=2, n_boot=10, **options)
    found = measure(part, shard, make_dual())
    assert (found.n, found.head) == (3, "maskclip")
    assert 0 <= found.metrics["mean_iou"] <= 1
    assert set(found.files) == {"segmentation.json"}


def test_overlays_show_classes_and_leave_the_background():
    picture = Image.new("RGB", (4, 2), (100, 100, 100))
    classes = torch.tensor([[0, 0, 1, IGNORED]]).repeat(2, 1)
    shown = np.asarray(overlay(picture, classes, plain=0, strength=1.0))
    assert shown[0, 0].tolist() == [100, 100, 100]
    assert shown[1, 2].tolist() == list(SHOWN[1])
    assert shown[0, 3].tolist() == [150, 150, 150]
    assert side_by_side(picture, [classes, classes]).size == (12, 2)
