"""Several labels a picture: arrays, names and indices, average precision in loops, worst classes, what is left out."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from eval.data import open_data
from eval.multilabel import MultiLabel
from eval.suite import Suite, run_suite
from eval.view import View
from tests.eval.colours import ColourDual, jpeg, write_shard
from vlp.data.schema import DataError
from vlp.embed import Encoder
from vlp.metrics.ranking import expected_average_precision
from vlp.models import pretrained

NAMES = ("red", "green", "blue")
TRUTH = {"red": [0], "green": [1], "blue": [2], "yellow": [0, 1], "white": [0, 1, 2]}


def array(values):
    data = io.BytesIO()
    np.save(data, np.array(values, dtype=np.float32))
    return data.getvalue()


def multi_hot(places, classes=3):
    return [float(place in places) for place in range(classes)]


def sample(colour, labels, **members):
    return {"jpg": jpeg(colour), "json": json.dumps({"labels": labels}).encode(), **members}


def plain(rgb, labels):
    data = io.BytesIO()
    Image.new("RGB", (8, 8), tuple(rgb)).save(data, "PNG")
    return {"png": data.getvalue(), "json": json.dumps({"labels": labels}).encode()}


def seen(part):
    return View(Encoder(ColourDual(), quiet=True), open_data(part.data), dataset="d")


def measure(shard, *, names=NAMES, label="labels", **more):
    part = MultiLabel(dataset="d", data=str(shard), names=names, label=label, n_boot=50, **more)
    return part.measure(seen(part))


def test_a_folder_of_clip_benchmark_holds_arrays_and_needs_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "weights_hash", lambda dual: "0" * 16)
    samples = [{"jpg": jpeg(colour), "npy": array(multi_hot(places))} for colour, places in TRUTH.items()]
    write_shard(tmp_path / "d" / "test" / "0.tar", samples)
    (tmp_path / "d" / "test" / "nshards.txt").write_text("1\n")
    (tmp_path / "d" / "classnames.txt").write_text("red\ngreen\nblue\n")
    (tmp_path / "d" / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    suite = Suite(name="s", benchmarks=[{"name": "multilabel", "dataset": "d", "data": str(tmp_path / "d")}])
    (row,) = run_suite(Encoder(ColourDual(), quiet=True), suite, out=tmp_path / "out")
    assert (row.task, row.n, row.test_label_reads) == ("zeroshot_classification", 5, 1)
    assert row.metrics == {"mean_average_precision": 1.0}
    assert row.counts == {"images": 5, "classes": 3, "templates": 1, "labels": 8}
    assert row.ci95["mean_average_precision"] == pytest.approx((1.0, 1.0))
    chance = expected_average_precision(candidates=5, positives=torch.tensor([3, 3, 2]))
    assert row.chance["mean_average_precision"] == pytest.approx(chance)
    table = json.loads((tmp_path / "out" / "eval" / "d" / "multilabel.json").read_text())
    assert table["support"] == [3, 3, 2]
    assert table["average_precision"] == [1.0, 1.0, 1.0]


def test_names_and_indices_say_the_same(tmp_path):
    by_index = write_shard(tmp_path / "i.tar", [sample(c, places) for c, places in TRUTH.items()])
    words = [[NAMES[place] for place in places] for places in TRUTH.values()]
    by_name = write_shard(tmp_path / "n.tar", [sample(c, labels) for c, labels in zip(TRUTH, words, strict=True)])
    alone = write_shard(tmp_path / "a.tar", [sample("red", "red"), sample("green", 1), sample("blue", "2")])
    found = measure(by_index), measure(by_name)
    assert found[0].metrics == found[1].metrics == {"mean_average_precision": 1.0}
    assert measure(alone).metrics == {"mean_average_precision": 1.0}


def test_equals_a_loop_over_classes(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.random((24, 3)) < 0.4
    samples = [plain(rng.integers(0, 256, 3), np.flatnonzero(row).tolist()) for row in truth]
    found = measure(write_shard(tmp_path / "r.tar", samples))
    part = MultiLabel(dataset="d", data=str(tmp_path / "r.tar"))
    view = seen(part)
    prompts = view.text_features([f"a photo of a {name}." for name in NAMES])
    scores = (view.image @ normalize(prompts, dim=-1).T).numpy()
    every = []
    for column, right in zip(scores.T, truth.T, strict=True):
        hits, precisions = 0, []
        for rank, place in enumerate(np.argsort(-column), start=1):
            hits += right[place]
            precisions += [hits / rank] if right[place] else []
        every.append(np.mean(precisions))
    assert found.metrics["mean_average_precision"] == pytest.approx(np.mean(every))
    table = found.files["multilabel.json"]
    assert table["average_precision"] == pytest.approx(every)
    low, high = found.ci95["mean_average_precision"]
    assert low < high
    assert [one["average_precision"] for one in table["worst"]] == pytest.approx(sorted(every))


def test_worst_classes_show_what_was_missed_and_what_stood_before_it(tmp_path):
    samples = [sample("red", ["green"]), sample("green", ["green"]), sample("yellow", []), sample("white", ["blue"])]
    found = measure(write_shard(tmp_path / "w.tar", samples))
    table = found.files["multilabel.json"]
    assert table["average_precision"] == [None, pytest.approx((1 + 2 / 4) / 2), 1.0]
    assert found.counts["class_without_a_sample"] == 1
    first = table["worst"][0]
    assert (first["class"], first["missed"][0], first["false"][0]) == (1, 0, 2)
    assert found.shown == {0, 1, 2, 3}


def test_what_has_no_label_is_left_out_and_nothing_is_a_label(tmp_path):
    samples = [
        sample("red", ["red"]),
        sample("white", []),
        sample("green", None),
        sample("green", ["gren"]),
        sample("blue", [7]),
        sample("blue", [1, 0, 1]),
        sample("blue", [True]),
    ]
    found = measure(write_shard(tmp_path / "s.tar", samples))
    assert found.n == 2
    assert found.skips == {"no_label": 1, "bad_label": 4}


def test_errors_say_what_is_wrong(tmp_path):
    wrong = write_shard(tmp_path / "w.tar", [sample("red", ["rad"], npy=array([1.0, 0.0]))])
    with pytest.raises(
        DataError, match=r"no picture shows one of 3 classes.*1 x bad_label.*'rad'; did you mean \"red\""
    ):
        measure(wrong)
    with pytest.raises(DataError, match=r"npy has shape \[2\], \[3\] is wanted"):
        measure(wrong, label="npy")
    with pytest.raises(DataError, match=r"1 x no_label, no kinds"):
        measure(wrong, label="kinds")
    hot = write_shard(tmp_path / "h.tar", [sample("red", [0, 0, 1])])
    with pytest.raises(DataError, match="3 zeros and ones, not indices; store these as an array"):
        measure(hot)
    with pytest.raises(DataError, match="the labels of all 1 are empty"):
        measure(write_shard(tmp_path / "e.tar", [sample("red", [])]))
    with pytest.raises(ValueError, match="no class names"):
        measure(wrong, names=None)
