"""Winoground's three scores against their definition, on samples that share an id and on the released fields."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from eval.winoground import METRICS, Winoground, matched
from tests.eval.colours import write_shard
from tests.eval.test_fine import measure, png, scene
from tests.eval.test_selection import BLUE, RED, pictures
from vlp.data.schema import DataError
from vlp.metrics.interval import of_means

MIXED = (255, 0, 255)


def test_scores_follow_their_definition_and_guessing_reaches_a_quarter_and_a_sixth():
    """All 24 orders of the four scores, in a loop over the paper's inequalities."""
    every = list(itertools.permutations([0.1, 0.2, 0.3, 0.4]))
    found = matched(torch.tensor(every).view(-1, 2, 2), tie=1e-6)
    for (c0i0, c1i0, c0i1, c1i1), got in zip(every, found.tolist(), strict=True):
        text = c0i0 > c1i0 and c1i1 > c0i1
        image = c0i0 > c0i1 and c1i1 > c1i0
        assert got == [text, image, text and image]
    assert found.mean(0).tolist() == pytest.approx([1 / 4, 1 / 4, 1 / 6])
    assert matched(torch.full((1, 2, 2), 0.5), tie=1e-6).tolist() == [[0, 0, 0]]
    assert matched(torch.full((1, 2, 2), torch.nan), tie=1e-6).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("head", ["global", "tokens"])
def test_items_are_samples_with_one_id(tmp_path, head):
    """Both right; a tie of all; captions the wrong way round."""
    rows = [
        ("red", "red", 1), ("blue", "blue", 1), ("red", "red", 2), ("red", "red", 2), ("red", "blue", 3),
        ("blue", "red", 3), ("red", "red", 4), ("red", "red", 5), ("blue", "blue", 5), ("green", "green", 5),
    ]  # fmt: skip
    samples = [scene([c] * 4, caption=text, id=number, tags=["all", f"t{number}"]) for c, text, number in rows]
    shard = write_shard(tmp_path / "a.tar", [*samples, scene(["red"] * 4, caption="red"), scene(["red"] * 4, id=1)])
    found = measure(Winoground(dataset="x", data=str(shard), tag="tags", head=head), shard)
    third = pytest.approx(1 / 3)
    assert [found.metrics[name] for name in METRICS] == [third] * 3
    assert [found.metrics[f"{name}_t1"] for name in METRICS] == [1.0] * 3
    assert [found.metrics[f"{name}_t3"] for name in METRICS] == [0.0] * 3
    assert found.metrics["acc_all"] == third
    assert {name: found.chance[name] for name in METRICS} == {"text_acc": 1 / 4, "image_acc": 1 / 4, "acc": 1 / 6}
    assert found.skips == {"not_two_pictures": 4, "no_id": 1, "no_caption": 1}
    assert found.counts == {"images": 6, "items": 3}
    assert found.ci95["acc"] == of_means(torch.tensor([[1.0], [0], [0]]))[0]
    hits = found.files["winoground_hits.json" if head == "global" else "winoground_hits_tokens.json"]
    assert hits["keys"] == ["1", "2", "3"]
    assert hits["items"][0] == "red | blue"
    assert hits["columns"]["acc"] == [1, 0, 0]
    assert hits["columns"]["acc_t1"] == [1, None, None]
    wrong = found.files["winoground_examples.json" if head == "global" else "winoground_examples_tokens.json"]
    assert (wrong["items"], wrong["wrong"], len(found.shown)) == (3, 2, 4)
    assert wrong["examples"][0]["group"] == "all, t2"
    assert [len(row) for row in wrong["examples"][0]["scores"]] == [2, 2]


def test_items_in_winogrounds_own_fields(tmp_path):
    """The picture that is red and blue prefers neither caption, yet each caption prefers its own picture."""
    colours = {"ex_0_img_0": RED, "ex_0_img_1": BLUE, "ex_1_img_0": RED, "ex_1_img_1": MIXED}
    shard = pictures(tmp_path / "a.tar", {name: {"png": png([colour] * 4)} for name, colour in colours.items()})
    entry = lambda number, c0, c1, **more: {  # noqa: E731
        "id": number,
        "image_0": f"ex_{number}_img_0",
        "image_1": f"ex_{number}_img_1",
        "caption_0": c0,
        "caption_1": c1,
        **more,
    }
    entries = [
        entry(0, "red", "blue", collapsed_tag="Object"),
        entry(1, "red", "blue red blue red", collapsed_tag="Relation"),
        entry(1, "red", "blue", collapsed_tag="Relation"),
        entry(2, "red", "blue"),
        entry(0, "red", ""),
    ]
    (tmp_path / "examples.jsonl").write_text("\n".join(map(json.dumps, entries)))
    found = measure(Winoground(dataset="x", data=str(shard), items="examples.jsonl", tag="collapsed_tag"), shard)
    hits = found.files["winoground_hits.json"]["columns"]
    assert hits["text_acc"] == [1, 1, 0]  # red and blue make the mixed picture tie between "red" and "blue"
    assert hits["image_acc"] == [1, 1, 1]
    assert hits["acc"] == [1, 1, 0]
    assert hits["acc_Relation"] == [None, 1, 0]
    assert found.skips == {"unknown_picture": 1, "no_caption": 1}
    with pytest.raises(DataError, match="two pictures and two captions.*'no_id': 4"):
        measure(Winoground(dataset="x", data=str(shard)), shard)
