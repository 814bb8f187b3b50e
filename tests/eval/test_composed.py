"""Composed queries in the layouts of CIRR and FashionIQ, against loops and with numbers known beforehand."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import normalize

from eval import composed
from eval.composed import Composed, gallery_ranks, listed_ranks
from eval.composers import ComposedPart, Composer, Mean, Recalls
from eval.data import open_data
from eval.view import View
from tests.eval.colours import ColourDual
from tests.eval.test_fine import measure, png
from tests.eval.test_selection import pictures, view_of, written
from vlp.data.schema import DataError
from vlp.embed import Encoder
from vlp.metrics.interval import of_means

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0), "magenta": (255, 0, 255),
           "yellow": (255, 255, 0), "cyan": (0, 255, 255)}  # fmt: skip


class Constant(ColourDual):
    """Sees and reads the same everywhere."""

    def encode_image(self, image):
        return torch.ones(len(image), 3)

    def encode_text(self, ids, mask=None):
        return torch.ones(len(ids), 3)


@pytest.fixture
def shard(tmp_path):
    return pictures(tmp_path / "a.tar", {name: {"png": png([rgb] * 4)} for name, rgb in COLOURS.items()})


def rank_in_a_loop(query, gallery, target, left_out):
    own = float(query.double() @ gallery[target].double())
    others = [row for row in range(len(gallery)) if row not in (target, left_out)]
    return 1 + sum(not own - 1e-6 > float(query.double() @ gallery[row].double()) for row in others)


@pytest.mark.parametrize("block", [3, 256])
def test_ranks_equal_those_of_a_loop(block, monkeypatch):
    monkeypatch.setattr(composed, "BLOCK", block)
    torch.manual_seed(0)
    query, gallery = (normalize(torch.randn(n, 4), dim=-1) for n in (8, 12))
    gallery[5] = gallery[3]  # a copy ties
    target, left_out = torch.tensor([3, 1, 5, 0, 11, 2, 3, 7]), torch.tensor([-1, 0, 3, 4, -1, 1, 5, 6])
    pairs = list(zip(target.tolist(), left_out.tolist(), strict=True))
    expected = [rank_in_a_loop(one, gallery, *pair) for one, pair in zip(query, pairs, strict=True)]
    assert gallery_ranks(query, gallery, target, left_out).tolist() == expected
    wrong = [[row for row in range(12) if row not in pair] for pair in pairs]
    assert listed_ranks(query, gallery, target.tolist(), wrong).tolist() == expected
    few = [own[: number % 4] for number, own in enumerate(wrong)]
    for got, q, right, own in zip(listed_ranks(query, gallery, target.tolist(), few), query, target, few, strict=True):
        assert got == rank_in_a_loop(q, gallery[[int(right), *own]], 0, -1)


def test_cirr_takes_the_reference_out_and_asks_in_subsets(tmp_path, shard):
    query = lambda reference, caption, target, members: {  # noqa: E731
        "reference": reference,
        "target_hard": target,
        "caption": caption,
        "img_set": {"id": 1, "members": members},
    }
    written(
        tmp_path / "cap.json",
        [
            query("red", "blue", "magenta", ["red", "magenta", "green", "yellow"]),
            query("red", "green", "yellow", ["red", "yellow", "gone"]),
            query("blue", "red", "cyan", ["blue", "cyan", "magenta", "green"]),
            query("blue", "red", "gone", []),
            query("blue", "", "red", []),
            query("blue", "red", "blue", []),
        ],
    )
    fields = {"queries": "cap.json", "target": "target_hard", "subset": "img_set.members", "k": (1, 2)}
    part = Composed(dataset="x", data=str(shard), **fields)
    found = measure(part, shard, ColourDual())
    assert found.metrics["recall@1_mean"] == pytest.approx(2 / 3)
    assert found.metrics["recall@1_text"] == 0.0  # the text's own colour comes first
    assert found.metrics["recall@1_image"] == 0.0  # two pictures share half of the reference's colour: a tie
    assert found.metrics["recall@2_image"] == 1.0
    assert found.metrics["recall_subset@1_mean"] == 0.5
    assert found.metrics["recall_subset@2_mean"] == 1.0
    assert found.chance["recall@1_mean"] == pytest.approx(1 / 5)
    assert found.chance["recall_subset@1_mean"] == pytest.approx(1 / 3)
    assert found.skips == {"subset_incomplete": 1, "unknown_picture": 1, "no_caption": 1, "target_is_reference": 1}
    assert (found.n, found.counts) == (2, {"images": 6, "queries": 3, "gallery": 6})
    hits = found.files["composed_hits.json"]
    assert hits["columns"]["recall@1_mean"] == [1, 1, 0]
    assert hits["columns"]["recall_subset@1_mean"] == [1, None, 0]
    assert hits["keys"] == ["a.tar:red", "a.tar:red", "a.tar:blue"]
    groups = torch.tensor([0, 0, 1])
    assert found.ci95["recall@1_mean"] == of_means(torch.tensor([[1.0], [1], [0]]), groups=groups)[0]


def test_fashioniq_searches_each_category_and_keeps_the_reference(tmp_path, shard):
    query = lambda candidate, target, *captions: {"candidate": candidate, "target": target, "captions": captions}  # noqa: E731
    written(tmp_path / "cap.dress.json", [query("red", "magenta", "blue", "blue"), query("red", "cyan", "blue")])
    written(tmp_path / "cap.shirt.json", [query("blue", "green", "green")])
    written(tmp_path / "split.dress.json", ["red", "magenta", "yellow", "lost"])
    written(tmp_path / "split.shirt.json", {"blue": "./blue.png", "green": "./green.png"})
    fields = {
        "queries": {"dress": "cap.dress.json", "shirt": "cap.shirt.json"},
        "gallery": {"dress": "split.dress.json", "shirt": "split.shirt.json"},
        "reference": "candidate",
        "caption": "captions",
        "compose": ["image", {"name": "mean", "weight": 0.3}, {"name": "text"}],
        "k": (1,),
    }
    found = measure(Composed(dataset="x", data=str(shard), reference_in_gallery="kept", **fields), shard, ColourDual())
    assert found.files["composed_hits.json"]["items"] == ["blue and blue", "green"]
    assert found.skips == {"gallery_unknown_picture": 1, "target_not_in_gallery": 1}
    assert found.metrics["recall@1_image"] == 0.0  # the reference itself is nearest
    assert found.metrics["recall@1_text_dress"] == found.metrics["recall@1_text_shirt"] == 1.0
    assert found.metrics["recall@1_mean0.3_shirt"] == 0.0
    assert found.metrics["macro_recall@1_mean0.3"] == 0.5
    assert found.chance["recall@1_text_dress"] == pytest.approx(1 / 3)
    assert found.chance["macro_recall@1_text"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    removed = measure(Composed(dataset="x", data=str(shard), **fields), shard, ColourDual())
    assert removed.metrics["recall@1_image_shirt"] == 1.0 == removed.chance["recall@1_image_shirt"]
    assert removed.chance["recall@1_text_dress"] == 0.5


def test_a_model_that_knows_nothing_finds_nothing(tmp_path, shard):
    written(tmp_path / "q.json", [{"reference": "red", "caption": "blue", "target": "magenta"}])
    found = measure(Composed(dataset="x", data=str(shard), queries="q.json", k=(1, 4, 5)), shard, Constant())
    assert [found.metrics[f"recall@{k}_mean"] for k in (1, 4, 5)] == [0.0, 0.0, 1.0]
    assert found.contains_chance()["recall@1_mean"]


def test_composers_are_unit_vectors_between_picture_and_text(shard):
    view = view_of(shard)
    image, text = view.image[:2], view.text_features(["blue", "red"])
    found = Mean(weight=0.25).queries(view, image, ["blue", "red"])
    expected = torch.stack([0.75 * i + 0.25 * t for i, t in zip(image, text, strict=True)])
    torch.testing.assert_close(found, expected / expected.norm(dim=1, keepdim=True))
    with pytest.raises(NotImplementedError):
        Composer().queries(view, image, ["blue", "red"])


def test_settings_that_cannot_be_are_refused(tmp_path, shard):
    some = {"dataset": "x", "data": str(shard), "queries": "q.json"}
    with pytest.raises(ValidationError, match='"mean" stands there twice'):
        Composed(**some, compose=["mean", {"name": "mean", "weight": 0.5}])
    with pytest.raises(ValidationError, match='unknown composer "meen"; did you mean "mean"'):
        Composed(**some, compose=["meen"])
    with pytest.raises(ValidationError, match="names of `queries`"):
        Composed(**some, gallery={"dress": "split.json"})
    written(tmp_path / "q.json", [{"reference": "red", "caption": "blue"}])
    with pytest.raises(DataError, match=r"'no_picture': 1.*a sample's key is red, and queries need reference, caption"):
        measure(Composed(**some), shard, ColourDual())
    assert Composed.model_validate(some).model_dump(mode="json")["compose"] == [
        {"name": "image"},
        {"name": "text"},
        {"name": "mean", "weight": 0.5},
    ]
    assert issubclass(Composed, ComposedPart)


def test_what_was_not_asked_has_no_number():
    recalls = Recalls([None, None], torch.tensor([0, 1]), n_boot=10)
    recalls.add("subset", "mean", torch.tensor([0, 0]), torch.tensor([1, 1]), (1,))
    assert recalls.found.metrics == {}


def test_a_whole_run_reads_the_triplets_once(tmp_path, shard):
    written(tmp_path / "q.json", [{"reference": "red", "caption": "blue", "target": "magenta"}])
    part = Composed(dataset="x", data=str(shard), queries="q.json")
    view = View(Encoder(ColourDual(), quiet=True), open_data(part.data), dataset="x")
    part.measure(view)
    assert view.label_reads["scoring"] == 1
    assert part.run(ColourDual())["recall@1_mean"] == 1.0
