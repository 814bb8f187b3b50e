"""Anomalies by words and by normal pictures, by hand: scores, maps, masks, objects, what is counted and refused."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from eval.anomaly import Anomaly
from eval.anomaly_words import ANOMALOUS_STATES, NORMAL_STATES, TEMPLATES
from eval.data import open_data
from eval.suite import Suite, run_suite
from eval.view import View
from tests.eval.colours import COLOURS, write_shard
from tests.eval.test_fine import PatchDual, png
from vlp.data.schema import DataError
from vlp.embed import Encoder
from vlp.models import pretrained
from vlp.text.templates import fill

WORDS = {"normal_states": ("green {}",), "anomalous_states": ("red {}",), "templates": ("{}",)}
SCALE = 10.0  # of PatchDual


def item(colours, label, *, mask=None, **facts):
    members = {"png": png([COLOURS[c] for c in colours])}
    if mask is not None:
        members["mask.png"] = png([[value] for value in mask], mode="L")
    return {**members, "json": json.dumps({"class": label, **facts}).encode()}


def flawed(quarter, label="scratch", *, masked=True, **facts):
    """Green, but for a red quarter."""
    colours, mask = ["green"] * 4, [0] * 4
    colours[quarter], mask[quarter] = "red", 255
    return item(colours, label, mask=mask if masked else None, **facts)


def sound(**facts):
    return item(["green"] * 4, "good", **facts)


def measure(shard, **settings):
    part = Anomaly(**{"dataset": "d", "data": str(shard), "n_boot": 30, **WORDS, **settings})
    view = View(Encoder(PatchDual(), quiet=True), open_data(part.data), dataset="d")
    found = part.measure(view)
    assert view.label_reads == {"scoring": 1}
    return found


def unit(*rgb, add=0.01):
    return normalize(torch.tensor(rgb, dtype=torch.float64) / 255 + add, dim=0)


def by_hand(*rgb):
    """Softmax of two cosines, of a picture or patch of this mean colour."""
    normal, anomalous = unit(0, 255, 0, add=0.011), unit(255, 0, 0, add=0.011)
    cosine = [float(unit(*rgb) @ words) for words in (normal, anomalous)]
    exponents = [math.exp(SCALE * value) for value in cosine]
    return exponents[1] / sum(exponents)


def test_the_words_are_winclips():
    assert len(set(TEMPLATES)) == 22
    assert {"a cropped photo of the {}.", "a photo of a small {}.", "a photo of the {} for visual inspection."} < {
        *TEMPLATES
    }
    filled = {fill(template, fill(state, "bottle")) for template in TEMPLATES for state in NORMAL_STATES}
    assert "a bright photo of a bottle without flaw." in filled
    assert len(filled) == 22 * 7
    assert "damaged {}" in ANOMALOUS_STATES


def test_scores_are_the_softmax_over_both_lists_of_words(tmp_path):
    shard = write_shard(tmp_path / "a.tar", [sound(), flawed(0), flawed(3), sound()])
    found = measure(shard)
    table = found.files["anomaly.json"]
    mixed = by_hand(255 / 4, 255 * 3 / 4, 0)
    assert table["scores"] == pytest.approx([by_hand(0, 255, 0), mixed, mixed, by_hand(0, 255, 0)], abs=1e-5)
    assert table["anomalous"] == [False, True, True, False]
    assert found.metrics == {"image_auroc": 1.0, "image_average_precision": 1.0, "image_f1_max": 1.0}
    assert found.chance["image_auroc"] == 0.5
    assert found.chance["image_f1_max"] == pytest.approx(2 / 3)
    assert set(found.ci95) == set(found.metrics)
    assert found.counts == {"images": 4, "anomalous": 2, "objects": 1}
    assert found.head == "global"
    assert table["grid"] is None
    blind = measure(shard, anomalous_states=("green {}",))  # says the same of every picture
    assert blind.metrics["image_auroc"] == 0.5


def test_several_prompts_are_averaged_as_unit_features(tmp_path):
    shard = write_shard(tmp_path / "a.tar", [sound(), flawed(0)])
    found = measure(shard, anomalous_states=("red {}", "red yellow {}"), templates=("{}", "white {}"))
    encoder = Encoder(PatchDual(), quiet=True)
    normal = normalize(encoder.texts(["green", "white green"]).mean(0), dim=0)
    anomalous = normalize(encoder.texts(["red", "white red", "red yellow", "white red yellow"]).mean(0), dim=0)
    picture = unit(255 / 4, 255 * 3 / 4, 0).float()
    logits = SCALE * torch.stack([picture @ normal, picture @ anomalous])
    assert found.files["anomaly.json"]["scores"][1] == pytest.approx(float(logits.softmax(0)[1]), abs=1e-5)


def test_maps_find_the_quarter_that_the_mask_marks(tmp_path):
    shard = write_shard(tmp_path / "a.tar", [sound(), *(flawed(quarter) for quarter in range(4))])
    found = measure(shard, mask="mask.png")
    for name in ("pixel_auroc", "pixel_average_precision", "pixel_f1_max", "pixel_aupro"):
        assert found.metrics[name] == pytest.approx(1.0)
    assert found.chance["pixel_aupro"] == pytest.approx(0.15)
    table = found.files["anomaly.json"]
    assert table["grid"] == [2, 2]
    example = next(one for one in table["examples"] if one["row"] == 2)
    assert example["map"] == pytest.approx([by_hand(*COLOURS[c]) for c in ("green", "red", "green", "green")], abs=1e-3)
    wrong = write_shard(tmp_path / "w.tar", [sound(), item(["red", *["green"] * 3], "x", mask=[0, 0, 0, 1])])
    assert measure(wrong, mask="mask.png").metrics["pixel_auroc"] < 0.5


def test_masks_are_brought_to_size_as_pictures_are(tmp_path):
    mask = np.zeros((8, 16), dtype=np.uint8)
    mask[:, 13:] = 1  # in the part that the model does not see
    picture = np.zeros((8, 16, 3), dtype=np.uint8)
    picture[..., 1] = 255
    picture[:, 13:] = (255, 0, 0)
    files = []
    for values in (picture, mask):
        data = io.BytesIO()
        Image.fromarray(values).save(data, "PNG")
        files.append(data.getvalue())
    wide = {"png": files[0], "mask.png": files[1], "json": b'{"class": "stain"}'}
    shard = write_shard(tmp_path / "a.tar", [sound(), flawed(0), wide])
    assert measure(shard, mask="mask.png").skips == {"mask_not_seen": 1}
    whole = measure(shard, mask="mask.png", data={"path": str(shard), "resize_mode": "squash"})
    assert whole.skips == {}
    assert whole.metrics["pixel_auroc"] > 0.8


def test_normal_pictures_say_how_far_the_nearest_patch_is(tmp_path):
    shard = write_shard(tmp_path / "a.tar", [sound(), flawed(1)])
    normal = write_shard(tmp_path / "n.tar", [sound(), item(["green", "white", "green", "green"], "good")])
    found = measure(shard, normal=str(normal), mask="mask.png")
    far = (1 - max(float(unit(255, 0, 0) @ unit(*COLOURS[c])) for c in ("green", "white"))) / 2
    scores = found.files["anomaly_reference.json"]["scores"]
    words = by_hand(255 / 4, 255 * 3 / 4, 0)
    assert scores == pytest.approx([by_hand(0, 255, 0) / 2, (words + far) / 2], abs=1e-3)
    shown = next(one for one in found.files["anomaly_reference.json"]["examples"] if one["row"] == 1)
    assert shown["map"][1] == pytest.approx((by_hand(255, 0, 0) + far) / 2, abs=1e-3)
    assert found.head == "global and nearest normal patch"
    assert set(found.selection) == {"split", "normal_hash"}
    with pytest.raises(DataError, match="normal are the pictures of data"):
        measure(shard, normal=str(shard))


def test_objects_have_prompts_and_numbers_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "weights_hash", lambda dual: "0" * 16)
    swapped = [item(["red"] * 4, "good", kind="blue"), item(["green"] * 4, "scratch", kind="blue")]
    shard = write_shard(tmp_path / "a.tar", [sound(kind="white"), flawed(0, kind="white"), *swapped, sound()])
    suite = Suite(
        name="s",
        benchmarks=[
            {
                "name": "anomaly",
                "dataset": "d",
                "data": str(shard),
                "object_field": "kind",
                "n_boot": 20,
                **WORDS,
            }
        ],
    )
    (row,) = run_suite(Encoder(PatchDual(), quiet=True), suite, out=tmp_path / "out")
    assert (row.task, row.n, row.skips) == ("anomaly_detection", 4, {"no_label": 1})
    assert (row.metrics["image_auroc_white"], row.metrics["image_auroc_blue"]) == (1.0, 0.0)
    assert row.metrics["image_auroc"] == row.chance["image_auroc"] == 0.5
    assert row.ci95["image_auroc"] == (0.5, 0.5)
    assert row.counts["objects"] == 2
    assert (tmp_path / "out" / "eval" / "d" / "anomaly.json").is_file()
    only = write_shard(tmp_path / "n.tar", [sound(kind="white")])
    with pytest.raises(DataError, match=r'normal: has no picture of "blue", only of \[\'white\'\]'):
        measure(shard, object_field="kind", normal=str(only))


@pytest.mark.parametrize("values", [("good", "bent"), ("Normal", "anomaly"), (0, 1), (False, True)])
def test_labels_may_be_words_numbers_or_truths(tmp_path, values):
    samples = [item(["green"] * 4, values[0]), item(["red"] * 4, values[1]), item(["red"] * 4, None)]
    found = measure(write_shard(tmp_path / "a.tar", samples))
    assert found.files["anomaly.json"]["anomalous"] == [False, True]
    assert found.skips == {"no_label": 1}


def test_what_cannot_be_measured_says_so(tmp_path):
    normal_only = write_shard(tmp_path / "n.tar", [sound(), sound()])
    with pytest.raises(DataError, match="d: object: 2 normal and 0 anomalous pictures"):
        measure(normal_only)
    with pytest.raises(DataError, match=r"no picture has a label in kind: \{'no_label': 2\}"):
        measure(normal_only, label="kind")
    unmarked = write_shard(tmp_path / "u.tar", [sound(), flawed(0, masked=False)])
    with pytest.raises(DataError, match=r"no anomalous picture of object has a mask .*'no_mask': 1"):
        measure(unmarked, mask="mask.png")
    partly = write_shard(tmp_path / "p.tar", [sound(), flawed(0), flawed(1, masked=False)])
    assert measure(partly, mask="mask.png").skips == {"no_mask": 1}
