"""GeneCIS: ties are lost wherever the right picture stands, boxes are cut out, and templates are asked whole."""

from __future__ import annotations

import pytest
import torch

from eval.conditional import Conditional
from eval.data import open_data
from eval.view import View
from tests.eval.colours import ColourDual, jpeg
from tests.eval.test_composed import COLOURS, Constant
from tests.eval.test_fine import measure, png
from tests.eval.test_selection import BLUE, RED, pictures, written
from vlp.data.schema import DataError
from vlp.embed import Encoder
from vlp.metrics.interval import of_means


@pytest.fixture
def shard(tmp_path):
    numbered = {f"{n:012d}": {"png": png([rgb] * 4)} for n, rgb in enumerate(COLOURS.values())}
    return pictures(tmp_path / "a.tar", {**numbered, "000000000009": {"jpg": jpeg("red")[:-200]}})


def template(reference, condition, target, gallery, field="val_image_id"):
    name = lambda colour: {field: list(COLOURS).index(colour) if colour in COLOURS else colour}  # noqa: E731
    return {
        "reference": name(reference),
        "condition": condition,
        "target": name(target),
        "gallery": [name(colour) for colour in gallery],
    }


def test_equal_scores_are_lost_though_the_right_picture_stands_first(tmp_path, shard):
    """Oracle 21: the released code, which takes the first of equal scores, gives such a model 100 %."""
    written(tmp_path / "t.json", [template("red", "blue", "magenta", ["green", "yellow", "cyan"])] * 2)
    part = Conditional(dataset="x", data=str(shard), templates="t.json", key="{:012d}")
    found = measure(part, shard, Constant())
    assert {found.metrics[f"recall@{k}_{how}"] for k in (1, 2, 3) for how in ("image", "text", "mean")} == {0.0}
    assert [found.chance[f"recall@{k}_mean"] for k in (1, 2, 3)] == [0.25, 0.5, 0.75]
    scores = torch.ones(1, 4)
    assert int(scores.argmax()) == 0  # what that code would have found


def test_object_tasks_take_whole_pictures(tmp_path, shard):
    written(
        tmp_path / "change.json",
        [
            template("red", "blue", "magenta", ["green", "yellow", "blue", "magenta"]),
            template("red", "green", "magenta", ["yellow", "cyan", "green"]),
            template("red", "blue", "magenta", ["green", 9]),
            template("red", "blue", "magenta", ["green", 77]),
            template("red", "", "magenta", ["green"]),
            template("red", "blue", "magenta", []),
        ],
    )
    written(tmp_path / "focus.json", [template("blue", "green", "cyan", ["magenta", "red"])])
    part = Conditional(
        dataset="x",
        data=str(shard),
        templates={"change": "change.json", "focus": "focus.json"},
        key="{:012d}",
    )
    view = View(Encoder(dual := ColourDual(), quiet=True), open_data(part.data), dataset="x")
    found = part.measure(view)
    assert found.metrics["recall@1_mean"] == pytest.approx(2 / 3)
    assert found.metrics["recall@1_mean_change"] == 0.5
    assert found.metrics["recall@1_mean_focus"] == 1.0
    assert found.metrics["macro_recall@1_mean"] == 0.75
    assert found.metrics["recall@1_text_change"] == 0.0  # the picture of that colour alone is nearer
    assert found.chance["recall@1_mean"] == pytest.approx((1 / 4 + 1 / 4 + 1 / 3) / 3)
    assert found.skips == {"unreadable_picture": 1, "unknown_picture": 1, "no_condition": 1, "no_gallery": 1}
    assert found.counts == {"images": 6, "templates": 3, "crops": 0}
    assert view.label_reads["scoring"] == 1
    assert [kind for kind, _ in dual.calls].count("image") == 1  # nothing is encoded twice
    hits = found.files["conditional_hits.json"]
    assert hits["columns"]["recall@1_mean"] == [1, 0, 1]
    assert hits["keys"] == ["a.tar:000000000000"] * 2 + ["a.tar:000000000001"]
    assert hits["items"] == ["blue", "green", "green"]
    values, groups = torch.tensor([[1.0], [0], [1]]), torch.tensor([0, 0, 1])
    assert found.ci95["recall@1_mean"] == of_means(values, groups=groups)[0]


@pytest.mark.parametrize(("sides", "expected"), [("all", 0.0), ("released", 1.0)])
def test_attribute_tasks_cut_their_boxes_out(tmp_path, sides, expected):
    """Left half blue, right half red: a box that ends in the middle sees red only if it grows to the right as well."""
    rival = png([(64, 0, 255)] * 4, size=16)
    shard = pictures(tmp_path / "a.tar", {"5": {"png": png([BLUE, RED] * 2, size=16)}, "6": {"png": rival}})
    part = lambda number, *box: {"image_id": number, "instance_bbox": list(box)}  # noqa: E731
    entry = {
        "reference": part(5, 1, 2, 3, 4),
        "condition": "blue",
        "target": part(5, 5, 4, 3, 4),
        "gallery": [part(6, 0, 0, 16, 16), part(5, 9, 4, 3, 4)],
    }
    bad = [{**entry, "target": part(5, 50, 50, 2, 2)}, {**entry, "target": part(5, 1, 1, 0, 2)}]
    written(tmp_path / "t.json", [entry, *bad])
    found = measure(Conditional(dataset="x", data=str(shard), templates="t.json", sides=sides), shard, ColourDual())
    assert found.metrics["recall@1_text"] == expected
    assert found.metrics["recall@2_text"] == 1.0
    assert found.counts == {"images": 2, "templates": 1, "crops": 4}
    assert found.skips == {"unreadable_crop": 1, "crop_bad_box": 1, "bad_box": 1}
    assert found.files["conditional_hits.json"]["keys"] == ["a.tar:5"]


def test_pictures_may_be_called_by_their_names_alone(tmp_path, shard):
    keys = [f"{number:012d}" for number in range(6)]
    plain = {"reference": keys[0], "condition": "blue", "target": keys[3], "gallery": [keys[2], keys[4]]}
    written(tmp_path / "t.json", [plain])
    assert measure(Conditional(dataset="x", data=str(shard), templates="t.json"), shard, ColourDual()).metrics[
        "recall@1_mean"
    ] == 1.0  # fmt: skip
    written(tmp_path / "t.json", [template("red", "blue", "magenta", ["green"])])
    with pytest.raises(DataError, match=r"'unknown_picture': 1.*key is 000000000000.*by key: \"\{\}\""):
        measure(Conditional(dataset="x", data=str(shard), templates="t.json"), shard, ColourDual())
