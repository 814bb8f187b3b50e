"""Retrieval by label: captions, class prompts and pictures against loops, what is left out, what is shown."""

from __future__ import annotations

import io
import json
from statistics import mean

import numpy as np
import pytest
from PIL import Image

from eval.data import open_data
from eval.hits import read_hits
from eval.identity import LabelRetrieval
from eval.suite import Suite, run_suite
from eval.view import View
from tests.eval.colours import COLOURS, ColourDual, colour_shard, write_shard
from vlp.data.schema import DataError
from vlp.embed import Encoder
from vlp.metrics.recall import TIE
from vlp.models import pretrained

WORDS = ["red", "green blue", "blue white", "yellow", "green", "white red"]


def picture(rgb, **facts):
    data = io.BytesIO()
    Image.new("RGB", (8, 8), tuple(int(value) for value in rgb)).save(data, "PNG")
    return {"png": data.getvalue(), "json": json.dumps(facts).encode()}


def people(path, *, pictures=18, identities=5, seed=0):
    """Pictures of persons in no order, two captions each."""
    rng = np.random.default_rng(seed)
    return write_shard(
        path,
        [
            picture(
                rng.integers(0, 256, 3),
                id=f"p{rng.integers(identities)}",
                captions=[str(word) for word in rng.choice(WORDS, 2, replace=False)],
            )
            for _ in range(pictures)
        ],
    )


def view_of(part):
    return View(Encoder(ColourDual(), quiet=True), open_data(part.data), dataset="d")


def measure(shard, **settings):
    part = LabelRetrieval(**{"dataset": "d", "data": str(shard), "n_boot": 50, **settings})
    view = view_of(part)
    found = part.measure(view)
    assert view.label_reads == {"scoring": 1}
    return found


def loop(query, image, asked, labels, *, own=None, k=(1, 5, 10), depths=(5, 10, 100)):
    """From the definitions, one query at a time; None for one without a right answer."""
    found = []
    for number, label in enumerate(asked):
        places = [place for place in range(len(labels)) if own is None or place != own[number]]
        score = {place: float(image[place].double() @ query[number].double()) for place in places}
        right = {place: labels[place] == label for place in places}
        hit = [right[place] for place in sorted(places, key=lambda p: -(score[p] - TIE * right[p]))]
        at = [rank for rank, one in enumerate(hit, start=1) if one]
        if not at:
            found.append(None)
            continue
        row = {"mAP": mean((n + 1) / rank for n, rank in enumerate(at)), "mINP": len(at) / at[-1]}
        row |= {f"recall@{depth}": float(at[0] <= depth) for depth in k}
        found.append(row | {f"precision@{depth}": sum(hit[:depth]) / depth for depth in depths})
    return found


def means(rows, prefix):
    known = [row for row in rows if row is not None]
    return {f"{prefix}_{name}": mean(row[name] for row in known) for name in known[0]}


def facts(shard):
    """View, labels and captions of a shard of people."""
    view = view_of(LabelRetrieval(dataset="d", data=str(shard)))
    fields = [view.fields(row, ()) for row in range(len(view.image))]
    return view, [one.find("id") for one in fields], [one.find("captions") for one in fields]


def test_captions_ask_for_an_identity_as_a_loop_does(tmp_path):
    shard = people(tmp_path / "p.tar")
    found = measure(shard, label="id")
    view, labels, captions = facts(shard)
    asked = [label for label, texts in zip(labels, captions, strict=True) for _ in texts]
    query = view.text_features([text for texts in captions for text in texts])
    assert found.metrics == pytest.approx(means(loop(query, view.image, asked, labels), "text_to_image"))
    assert found.counts == {"images": 18, "labels": len(set(labels)), "asking_captions": 36}
    assert set(found.metrics) == set(found.ci95) == set(found.chance)
    assert found.skips == {}


def test_a_picture_never_finds_itself(tmp_path):
    shard = people(tmp_path / "p.tar", identities=7, seed=3)
    view, labels, _ = facts(shard)
    found = measure(shard, label="id", queries=["pictures"])
    rows = loop(view.image, view.image, labels, labels, own=list(range(len(labels))))
    assert found.metrics == pytest.approx(means(rows, "image_to_image"))
    without = rows.count(None)
    assert found.skips == ({"pictures_without_a_right_answer": without} if without else {})
    shares = [(labels.count(label) - 1) / (len(labels) - 1) for label in labels if labels.count(label) > 1]
    assert found.chance["image_to_image_precision@5"] == pytest.approx(mean(shares))
    for one in found.files["label_retrieval.json"]["image_to_image"]:
        assert one["query"] not in one["found"]
        assert len(one["found"]) == 5
    with pytest.raises(DataError, match='answer to any of the pictures, as to "red": no two pictures share a label'):
        measure(colour_shard(tmp_path / "c.tar", per_colour=1), label="class", queries=["pictures"])


def test_class_prompts_ask_by_template_or_by_sentences(tmp_path):
    shard = colour_shard(tmp_path / "c.tar", per_colour=3)
    found = measure(shard, queries=["classes"], names=tuple(COLOURS), templates=("{}", "a photo of a {}."), k=[1, 3])
    assert found.metrics["class_to_image_mAP"] == found.metrics["class_to_image_mINP"] == 1.0
    assert found.metrics["class_to_image_precision@5"] == pytest.approx(3 / 5)
    assert found.chance["class_to_image_recall@1"] == pytest.approx(1 / 5)
    assert found.counts == {"images": 15, "labels": 5, "asking_classes": 10}
    prompts = {"red": ["a red thing", "red"], "blue": ["blue"], "violet": ["blue red"]}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    told = measure(shard, label="class", queries=["classes"], prompts=str(tmp_path / "prompts.json"))
    assert told.metrics["class_to_image_mAP"] == 1.0
    assert told.skips == {"classes_without_a_right_answer": 1}
    assert told.counts["asking_classes"] == 4


def test_other_pictures_may_ask(tmp_path):
    shard = colour_shard(tmp_path / "c.tar", per_colour=1)
    asks = write_shard(
        tmp_path / "q.tar",
        [picture((250, 9, 9), **{"class": "red", "caption": "red"}), picture((9, 9, 250), caption="blue")],
    )
    found = measure(shard, label="class", queries=["pictures", "captions"], query=str(asks))
    assert found.metrics["image_to_image_mAP"] == found.metrics["text_to_image_recall@1"] == 1.0
    assert found.skips == {"query_no_label": 1}
    assert [one["query"] for one in found.files["label_retrieval.json"]["image_to_image"]] == [None]
    with pytest.raises(DataError, match="query are the pictures of data"):
        measure(shard, label="class", queries=["pictures"], query=str(shard))


def test_what_has_no_label_is_left_out_and_what_has_no_caption_can_be_found(tmp_path):
    shard = write_shard(
        tmp_path / "s.tar",
        [
            picture((255, 0, 0), id=7, caption="red"),
            picture((250, 0, 0), id="7"),
            picture((0, 255, 0), id=8, caption="green"),
            picture((0, 0, 255), caption="blue"),
            picture((0, 0, 255), id=[7], caption="blue"),
            picture((0, 0, 255), id=" ", caption="blue"),
        ],
    )
    found = measure(shard, label="id")
    assert (found.n, found.counts["labels"], found.counts["asking_captions"]) == (3, 2, 2)
    assert found.skips == {"no_caption": 1, "no_label": 2, "bad_label": 1}
    assert found.metrics["text_to_image_mAP"] == 1.0
    with pytest.raises(DataError, match=r"no picture has a label in person: \{'no_label': 6\}"):
        measure(shard, label="person")
    with pytest.raises(DataError, match="no picture with a label has a caption"):
        measure(shard, label="id", captions={"fields": ["text"]})


def test_hits_hold_every_kind_of_query_and_what_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "weights_hash", lambda dual: "0" * 16)
    shard = people(tmp_path / "p.tar")
    suite = Suite(
        name="s",
        benchmarks=[
            {
                "name": "label_retrieval",
                "dataset": "d",
                "data": str(shard),
                "label": "id",
                "queries": ["captions", "pictures"],
                "n_boot": 20,
            }
        ],
    )
    (row,) = run_suite(Encoder(ColourDual(), quiet=True), suite, out=tmp_path / "out")
    assert (row.task, row.head, row.test_label_reads) == ("label_retrieval", "global", 1)
    folder = tmp_path / "out" / "eval" / "d"
    for name, count in (("text_to_image_recall@1", 36), ("image_to_image_recall@5", 18)):
        hits = read_hits(folder, name, head="global")
        assert len(hits.values) <= count
        assert float(hits.values.mean()) == pytest.approx(row.metrics[name])
        assert set(hits.keys) <= {f"p{number}" for number in range(5)}
    by_query = measure(shard, label="id", queries=["captions"], draw="query").files["label_retrieval_hits.json"]
    assert by_query["keys"][:2] == ["p.tar:s0000000"] * 2
    shown = json.loads((folder / "label_retrieval.json").read_text())
    assert {"text", "image", "rank", "found", "scores", "correct"} <= set(shown["text_to_image"][0])
    for one in (*shown["text_to_image"], *shown["image_to_image"]):
        assert one["rank"] == 1 + one["correct"].index(True) if any(one["correct"]) else one["rank"] > 5
        assert one["scores"] == sorted(one["scores"], reverse=True)
        assert (folder / "thumbnails" / f"{one['image']}.jpg").is_file()


def test_settings_that_do_nothing_are_refused(tmp_path):
    given = {"dataset": "d", "data": "x"}
    with pytest.raises(ValueError, match="names: only for queries"):
        LabelRetrieval(**given, names=("a", "b"))
    with pytest.raises(ValueError, match="leave them out"):
        LabelRetrieval(**given, queries=["classes"], prompts={"a": ["b"]}, templates="photo")
    with pytest.raises(ValueError, match="query: data whose captions or pictures ask"):
        LabelRetrieval(**given, queries=["classes"], query="y")
    (tmp_path / "p.json").write_text('{"red": "a red thing"}')
    shard = colour_shard(tmp_path / "c.tar")
    with pytest.raises(DataError, match=r"p\.json: wanted sentences by label"):
        measure(shard, label="class", queries=["classes"], prompts=str(tmp_path / "p.json"))
    with pytest.raises(DataError, match='as to "rad"; did you mean "red"'):
        measure(shard, label="class", queries=["classes"], prompts={"rad": ["red"]})
