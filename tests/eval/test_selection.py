"""Caption selection in the layouts of SugarCrepe, ARO and CLIP_benchmark, with numbers known beforehand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from data_tools.write import Record, ShardWriter
from eval.data import open_data
from eval.listed import Box, Cutter, Names, find, read_box, read_items
from eval.selection import Selection, macro_interval
from eval.view import View
from tests.eval.colours import ColourDual, jpeg, write_shard
from tests.eval.test_fine import measure, png, scene
from vlp.data.schema import DataError
from vlp.embed import Encoder
from vlp.metrics.interval import of_means
from vlp.types import BadSampleError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def pictures(path, members):
    """A shard of samples by key."""
    with ShardWriter(path) as writer:
        for key, sample in members.items():
            writer.write(Record(key, sample))
    return path


def written(path, content):
    path.write_text(json.dumps(content))
    return path.name


def view_of(path):
    return View(Encoder(ColourDual(), quiet=True), open_data(Selection(dataset="x", data=str(path)).data), dataset="x")


@pytest.mark.parametrize("head", ["global", "tokens"])
def test_items_that_are_samples_and_ties_are_wrong(tmp_path, head):
    shard = write_shard(
        tmp_path / "a.tar",
        [
            scene(["red"] * 4, caption="red", negative_caption="blue"),
            scene(["red"] * 4, caption="a red", negative_caption="red a"),  # other words, the same tokens
            scene(["red"] * 4, caption="green", negative_caption="red"),
            scene(["red"] * 4, true_caption="red", false_caption=["blue", "green", "white"]),
            scene(["red"] * 4, negative_caption="blue"),
            scene(["red"] * 4, caption="red", negative_caption=" "),
            scene(["red"] * 4, caption="red", negative_caption=["blue", 3]),
        ],
    )
    found = measure(Selection(dataset="x", data=str(shard), head=head), shard)
    assert found.metrics == {"acc": 0.5}
    assert found.chance == {"acc": (3 / 2 + 1 / 4) / 4}
    assert found.counts == {"images": 4, "items": 4}
    assert found.skips == {"no_caption": 1, "no_negatives": 1, "caption_not_text": 1}
    assert found.ci95["acc"] == of_means(torch.tensor([[1.0], [0], [0], [1]]))[0]
    hits = found.files["caption_selection_hits.json" if head == "global" else "caption_selection_hits_tokens.json"]
    assert hits["columns"] == {"acc": [1, 0, 0, 1]}
    assert hits["items"][3] == "red | blue | green | white"
    assert hits["keys"] == [f"{shard.name}:s000000{n}" for n in range(4)]


def test_sugarcrepe_is_read_as_it_is_released(tmp_path):
    """Entries by number, pictures by file name; several items of one picture are drawn together."""
    (tmp_path / "val2017").mkdir()
    for name, colour in (("000000000001", "red"), ("000000000002", "blue")):
        (tmp_path / "val2017" / f"{name}.jpg").write_bytes(jpeg(colour))
    (tmp_path / "val2017" / "000000000003.jpg").write_bytes(jpeg("red")[:-200])
    item = lambda number, true, false: {"filename": f"{number:012d}.jpg", "caption": true, "negative_caption": false}  # noqa: E731
    written(tmp_path / "add_att.json", {"0": item(1, "red", "green"), "7": item(1, "blue", "red")})
    swaps = [item(2, "blue", "red"), item(3, "red", "blue"), item(4, "red", "blue"), {"caption": "red"}]
    written(tmp_path / "swap_att.json", {str(n): one for n, one in enumerate(swaps)})
    part = Selection(
        dataset="x",
        data={"name": "folder", "path": str(tmp_path / "val2017"), "layout": "texts"},
        items={"add_att": "add_att.json", "swap_att": "swap_att.json"},
    )
    view = View(Encoder(ColourDual(), quiet=True), open_data(part.data), dataset="x", folders=[tmp_path])
    found = part.measure(view)
    assert found.metrics == {
        "acc": pytest.approx(2 / 3),
        "acc_add_att": 0.5,
        "acc_swap_att": 1.0,
        "macro_acc": 0.75,
    }
    assert set(found.chance.values()) == {0.5}
    assert found.skips == {"unreadable_picture": 1, "unknown_picture": 1, "no_picture": 1}
    assert view.label_reads["scoring"] == 1
    assert found.n == 2
    assert found.ci95["acc"] == of_means(torch.tensor([[1.0], [0], [1]]), groups=torch.tensor([0, 0, 1]))[0]
    hits = found.files["caption_selection_hits.json"]
    assert hits["columns"] == {"acc": [1, 0, 1], "acc_add_att": [1, 0, None], "acc_swap_att": [None, None, 1]}
    assert hits["keys"] == ["val2017:000000000001"] * 2 + ["val2017:000000000002"]


def test_clip_benchmarks_webdatasets_put_the_true_caption_first(tmp_path):
    """`convert_retrieval_dataset` writes the texts of an item as lines of `txt`."""
    lines = [("red", "red\nblue"), ("red", "blue\nred"), ("green", "green\nred\n"), ("green", "green")]
    write_shard(tmp_path / "test" / "0.tar", [{"jpg": jpeg(c), "txt": t.encode()} for c, t in lines])
    (tmp_path / "test" / "nshards.txt").write_text("1")
    part = Selection(dataset="x", data=str(tmp_path), options="txt")
    found = measure(part, tmp_path)
    assert found.metrics == {"acc": pytest.approx(2 / 3)}
    assert found.skips == {"no_negatives": 1}


def test_one_of_five_has_a_chance_of_exactly_a_fifth(tmp_path):
    orders = ["red", "blue", "green", "white", "yellow"]
    shard = write_shard(
        tmp_path / "a.tar",
        [
            scene(["red"] * 4, caption_options=orders),
            scene(["red"] * 4, caption_options=orders[1:] + orders[:1]),
            scene(["red"] * 4, caption_options=["red", "red", "blue", "green", "white"]),
        ],
    )
    found = measure(Selection(dataset="x", data=str(shard), options="caption_options"), shard)
    assert found.chance == {"acc": 1 / 5}
    assert found.metrics["acc"] == pytest.approx(1 / 3)
    assert found.counts["true_among_false"] == 1


def test_aro_cuts_boxes_out_and_averages_over_relations(tmp_path):
    shard = pictures(tmp_path / "a.tar", {"1": {"png": png([RED, BLUE, RED, BLUE])}, "2": {"png": png([RED] * 4)}})
    box = lambda left, width: {"bbox_x": left, "bbox_y": 0, "bbox_w": width, "bbox_h": 8}  # noqa: E731
    item = lambda number, true, relation, where: {  # noqa: E731
        "image_path": f"{number}.jpg",
        "true_caption": true,
        "false_caption": "red" if true == "blue" else "blue",
        "relation_name": relation,
        **where,
    }
    written(
        tmp_path / "relations.json",
        [
            item(1, "blue", "on", box(4, 4)),
            item(1, "red", "on", box(0, 4)),
            item(1, "red", "on", box(4, 4)),
            item(2, "red", ["left", "of"], box(0, 8)),
            item(2, "red", "rare", box(40, 8)),
            item(2, "red", "rare", box(0, 0)),
            item(2, "red", None, box(0, 8)),
        ],
    )
    names = {"items": "relations.json", "group": "relation_name", "box": ("bbox_x", "bbox_y", "bbox_w", "bbox_h")}
    found = measure(Selection(dataset="x", data=str(shard), **names), shard)
    assert found.metrics == {"acc": 0.75, "macro_acc": pytest.approx((2 / 3 + 1) / 2)}
    assert found.skips == {"bad_box": 1, "no_group": 1, "unreadable_crop": 1, "crop_bad_box": 1}
    assert found.counts == {"images": 2, "items": 4, "groups": 2, "small_groups": 0}
    groups = found.files["caption_selection.json"]["groups"]
    assert {name: (one["items"], one["acc"], one["chance"]) for name, one in groups.items()} == {
        "on": (3, pytest.approx(2 / 3), 0.5),
        "left_of": (1, 1.0, 0.5),
    }
    assert groups["left_of"]["ci95"] == [1.0, 1.0]
    (wrong,) = found.files["caption_selection_examples.json"]["examples"]
    assert (wrong["group"], len(wrong["box"]), len(wrong["texts"])) == ("on", 4, 2)
    assert wrong["scores"][0][0] <= wrong["scores"][0][1]
    assert found.files["caption_selection_hits.json"]["keys"] == ["a.tar:1"] * 3 + ["a.tar:2"]
    large = measure(Selection(dataset="x", data=str(shard), min_group=3, **names), shard)
    assert large.metrics["macro_acc"] == pytest.approx(2 / 3)
    assert large.counts["small_groups"] == 1
    with pytest.raises(DataError, match="min_group: 4, but the largest group has 3"):
        measure(Selection(dataset="x", data=str(shard), min_group=4, **names), shard)


def test_the_interval_of_a_macro_average_draws_groups():
    rng = np.random.default_rng(1)
    hits, kinds, groups = (torch.from_numpy(rng.integers(0, n, 40)) for n in (2, 3, 12))
    found = macro_interval(hits.double(), kinds, groups, n_boot=200)
    names, again, means = groups.unique().tolist(), np.random.default_rng(0), []
    for _ in range(200):
        drawn = [names[i] for i in again.integers(0, len(names), len(names))]
        values = {kind: [] for kind in range(3)}
        for name in drawn:
            for hit, kind, group in zip(hits.tolist(), kinds.tolist(), groups.tolist(), strict=True):
                if group == name:
                    values[kind].append(hit)
        means.append(np.mean([np.mean(own) for own in values.values() if own]))
    assert found == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    assert macro_interval(torch.ones(4), torch.zeros(4, dtype=torch.long), torch.arange(4)) == (1.0, 1.0)


def test_pictures_are_found_by_what_items_call_them(tmp_path):
    members = {"dir": ["a", "b"], "other": ["b", "c"]}
    for folder, names in members.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / f"{name}.jpg").write_bytes(jpeg("red"))
    part = Selection(dataset="x", data={"name": "folder", "path": str(tmp_path)})
    names = Names(View(Encoder(ColourDual(), quiet=True), open_data(part.data), dataset="x"))
    called = ("dir/a", "./dir/b.jpg", "other/b.PNG", "c", "elsewhere/c.png")
    assert [names.row(name) for name in called] == [0, 1, 2, 3, 3]
    assert names.row(f"{tmp_path.name}:other/b") == 2
    for name, reason in (("b", "ambiguous_picture"), ("d", "unknown_picture"), (None, "no_picture")):
        with pytest.raises(BadSampleError, match=reason):
            names.row(name)
    numbered = pictures(tmp_path / "n.tar", {"000000000042": {"jpg": jpeg("red")}})
    assert Names(view_of(numbered), "{:012d}").row(42) == 0
    with pytest.raises(DataError, match="cannot be filled with 'red'"):
        Names(view_of(numbered), "{:012d}").row("red")


def test_files_of_items_are_found_and_their_faults_named(tmp_path):
    shard = write_shard(tmp_path / "set" / "a.tar", [scene(["red"] * 4)])
    view, part = view_of(shard), Selection(dataset="x", data=str(shard))
    (tmp_path / "set" / "lines.jsonl").write_text('{"a": 1}\n\n{"a": "x\u2028y"}\n')
    items = read_items({"one": "lines.jsonl"}, part.data, view)
    assert [(item.part, item.fields.find("a")) for item in items] == [("one", 1), ("one", "x\u2028y")]
    (tmp_path / "set" / "broken.jsonl").write_text('{"a": 1}\n{"a"\n')
    with pytest.raises(DataError, match=r"broken\.jsonl, line 2: not JSON"):
        read_items("broken.jsonl", part.data, view)
    for content in ({"filename": "a.jpg"}, [1], [], 3):
        written(tmp_path / "set" / "wrong.json", content)
        with pytest.raises(DataError, match=r"wrong\.json: wanted a list of items"):
            read_items("wrong.json", part.data, view)
    with pytest.raises(DataError, match='no data at "nowhere.json"'):
        find("nowhere.json", part.data, view)
    written(tmp_path / "set" / "items.json", [{"filename": "z.jpg", "caption": "red", "negative_caption": "blue"}])
    with pytest.raises(DataError, match=r"unknown_picture': 1.*a sample's key is s0000000"):
        Selection(dataset="x", data=str(shard), items="items.json").measure(view)


@pytest.mark.parametrize(
    ("cutter", "box", "ends"),
    [
        (Cutter(), Box(1, 2, 3, 4), (1, 4, 2, 6)),
        (Cutter(0.5), Box(4, 4, 4, 2), (2, 10, 3, 7)),
        (Cutter(0.7), Box(0, 0, 10, 20), (0, 17, 0, 12)),  # not beyond the picture
        (Cutter(0.5, "released"), Box(4, 4, 4, 2), (2, 8, 3, 6)),  # to the left and to the top only
        (Cutter(0.5, "released"), Box(0, 0, 4, 2), (0, 6, 0, 3)),
    ],
)
def test_boxes_are_grown_and_stay_inside(cutter, box, ends):
    image = torch.arange(3 * 12 * 20).view(3, 12, 20).to(torch.uint8)
    left, right, top, bottom = ends
    assert torch.equal(cutter.cut(image, box), image[:, top:bottom, left:right])


def test_boxes_are_padded_to_squares():
    image = torch.full((3, 8, 8), 9, dtype=torch.uint8)
    flat, tall = (Cutter(square=True).cut(image, box) for box in (Box(0, 0, 5, 2), Box(0, 0, 2, 5)))
    assert flat.shape == tall.shape == (3, 5, 5)
    assert flat[0, :, 0].tolist() == tall[0, 0].tolist() == [0, 9, 9, 0, 0]  # half of what is left, rounded down, first
    for value in ("1,2,3,4", [1, 2, 3], [1, 2, 0, 4], [1, 2, 3, "4"]):
        with pytest.raises(BadSampleError, match="bad_box"):
            read_box(value)
