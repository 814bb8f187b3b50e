"""Pointing, compositional tests and paired comparisons, with numbers known beforehand."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from eval import compare as compare_module
from eval import retrieve
from eval.__main__ import compare_app
from eval.compare import Arm, as_text, compare, parse_arms
from eval.compose import Negatives, TrueFalse
from eval.data import open_data
from eval.hits import hits_file
from eval.pointing import Pointing, _centres
from eval.score import scores
from eval.view import View
from tests.eval.colours import COLOURS, ColourDual, write_shard
from vlp.data.schema import DataError
from vlp.embed import Encoder
from vlp.metrics.interval import of_means
from vlp.models.model import Model


class PatchDual(ColourDual):
    """A token is the colour of one of 2 x 2 patches, or of one word."""

    def encode_image_tokens(self, image):
        patches = image.float().unfold(2, 4, 4).unfold(3, 4, 4).mean(dim=(-2, -1)).flatten(2).transpose(1, 2)
        return self.encode_image(image), normalize(patches / 255 + 0.01, dim=-1)

    def encode_text_tokens(self, ids, mask):
        return self.encode_text(ids, mask), normalize(self.table[ids], dim=-1) * mask[..., None], mask


def png(quarters, *, mode="RGB", size=8):
    """A picture of four quarters, row by row."""
    values = np.array(quarters, dtype=np.uint8).reshape(2, 2, -1).repeat(size // 2, 0).repeat(size // 2, 1)
    data = io.BytesIO()
    Image.fromarray(values if mode == "RGB" else values[..., 0]).save(data, "PNG")
    return data.getvalue()


def scene(colours, *, mask=(1, 2, 3, 4), objects=None, **facts):
    objects = [{"color": c, "shape": "box"} for c in colours] if objects is None else objects
    picture = png([COLOURS[c] for c in colours])
    return {
        "png": picture,
        "mask.png": png([[m] for m in mask], mode="L"),
        "json": json.dumps({"objects": objects, **facts}).encode(),
    }


def measure(part, path: Path, dual=None):
    return part.measure(View(Encoder(dual or PatchDual(), quiet=True), open_data(part.data), dataset="x"))


def test_a_model_that_knows_colours_points_at_the_right_quarter(tmp_path):
    shard = write_shard(
        tmp_path / "a.tar", [scene(["red", "green", "blue", "yellow"]), scene(["blue", "red", "white", "green"])]
    )
    found = measure(Pointing(dataset="x", data=str(shard)), shard)
    assert found.metrics == {"pointing_phrase": 1.0, "pointing_tokens": 1.0}
    assert found.chance["pointing_phrase"] == 0.25
    assert (found.n, found.counts["objects"], found.skips) == (2, 8, {})
    hits = found.files["pointing_hits.json"]
    assert hits["columns"] == {"pointing_phrase": [1] * 8, "pointing_tokens": [1] * 8}
    assert hits["keys"] == [f"{shard.name}:s000000{n}" for n in (0, 1) for _ in range(4)]
    assert hits["items"][:2] == ["a red box", "a green box"]


def test_a_wrong_mask_is_missed_and_what_cannot_be_asked_is_counted(tmp_path):
    wrong = scene(["red", "green", "blue", "yellow"], mask=(2, 1, 4, 3))
    without = {k: v for k, v in scene(["red"] * 4).items() if k != "mask.png"}
    hidden = scene(["red", "green", "blue", "yellow"], mask=(1, 1, 1, 1))
    shard = write_shard(tmp_path / "a.tar", [wrong, without, hidden])
    found = measure(Pointing(dataset="x", data=str(shard)), shard)
    assert found.counts["objects"] == 5
    assert found.metrics["pointing_phrase"] == pytest.approx(1 / 5)  # the one object that fills its picture
    assert found.skips == {"no_mask": 1, "object_hidden": 3}
    assert found.chance["pointing_phrase"] == pytest.approx((4 * 0.25 + 1) / 5)


def test_objects_of_one_phrase_are_one_target(tmp_path):
    shard = write_shard(tmp_path / "a.tar", [scene(["red", "red", "blue", "blue"])])
    found = measure(Pointing(dataset="x", data=str(shard)), shard)
    assert found.counts["objects"] == 2
    assert found.chance["pointing_phrase"] == 0.5
    assert found.metrics["pointing_phrase"] == 1.0


@pytest.mark.parametrize(
    ("mode", "shape", "expected"),
    [
        ("squash", (8, 16), [(4, 2), (12, 2), (4, 6), (12, 6)]),
        ("shortest", (8, 16), [(6, 2), (10, 2), (6, 6), (10, 6)]),
        ("longest", (8, 16), [(4, 0), (12, 0), (4, 7), (12, 7)]),
    ],
)
def test_centres_of_patches_in_pixels_of_the_original(mode, shape, expected):
    x, y = _centres(4, (32, 32), shape, mode)
    assert list(zip(x.tolist(), y.tolist(), strict=True)) == expected
    with pytest.raises(ValueError, match="do not tile"):
        _centres(5, (32, 32), shape, mode)


@pytest.mark.parametrize("head", ["global", "tokens"])
def test_negatives_by_kind_and_ties_are_wrong(tmp_path, head):
    easy = scene(["red"] * 4, caption="red", hard_negatives=["blue", "green"], negative_kinds=["color", "shape"])
    tie = scene(["red"] * 4, caption="red", hard_negatives=["red", "blue"], negative_kinds=["shape", "color"])
    none = scene(["red"] * 4, caption="red")
    shard = write_shard(tmp_path / "a.tar", [easy, tie, none])
    found = measure(Negatives(dataset="x", data=str(shard), head=head), shard)
    assert found.metrics == {"accuracy": 0.75, "accuracy_color": 1.0, "accuracy_shape": 0.5, "accuracy_all": 0.5}
    assert found.chance == {
        "accuracy": 0.5,
        "accuracy_color": 0.5,
        "accuracy_shape": 0.5,
        "accuracy_all": pytest.approx(1 / 3),
    }
    assert found.skips == {"no_negatives": 1}
    assert found.head == head
    ending = "" if head == "global" else "_tokens"
    assert list(found.files) == [f"caption_negatives_{kind}{ending}.json" for kind in ("hits", "examples")]
    hits, mistakes = found.files.values()
    assert hits["columns"] == {
        "accuracy": [1, 1, 0, 1],
        "accuracy_color": [1, None, None, 1],
        "accuracy_shape": [None, 1, 0, None],
        "accuracy_all": [1, None, 0, None],
    }
    assert hits["keys"] == [f"{shard.name}:s000000{n}" for n in (0, 0, 1, 1)]
    assert hits["items"] == ["red | blue", "red | green", "red | red", "red | blue"]
    assert (mistakes["items"], mistakes["wrong"], found.shown) == (4, 1, {1})
    (wrong,) = mistakes["examples"]
    assert (wrong["rows"], wrong["texts"], wrong["group"]) == ([1], ["red", "red"], "shape")
    assert wrong["scores"][0][0] == wrong["scores"][0][1]


@pytest.mark.parametrize("head", ["global", "tokens"])
def test_true_and_false_pictures_of_a_sentence(tmp_path, head):
    rows = [
        ("red", True, 1),
        ("blue", False, 1),
        ("green", False, 1),
        ("green", True, 2),
        ("red", False, 2),
        ("blue", True, 3),
    ]
    sentences = {1: "red", 2: "red", 3: "blue"}
    shard = write_shard(
        tmp_path / "a.tar",
        [
            *(scene([c] * 4, sentence=sentences[g], label=label, group=g) for c, label, g in rows),
            scene(["red"] * 4, label=True, group=1),  # says nothing
        ],
    )
    found = measure(TrueFalse(dataset="x", data=str(shard), head=head), shard)
    assert found.metrics == {"accuracy": pytest.approx(2 / 3)}  # both pairs of sentence 1, none of sentence 2
    assert (found.counts["sentences"], found.skips) == (2, {"no_caption": 1, "sentence_without_both": 1})
    assert found.head == head
    hits = found.files["true_false_hits.json" if head == "global" else "true_false_hits_tokens.json"]
    assert hits["columns"] == {"accuracy": [1, 1, 0]}
    assert hits["keys"] == ["1", "1", "2"]
    assert hits["items"][2] == f"{shard.name}:s0000003 | {shard.name}:s0000004"
    (wrong,) = found.files[f"true_false_examples{'' if head == 'global' else '_tokens'}.json"]["examples"]
    assert (wrong["rows"], wrong["texts"], found.shown) == ([3, 4], ["red"], {3, 4})
    assert wrong["scores"][0][0] < wrong["scores"][1][0]
    with pytest.raises(DataError, match="no sentence"):
        measure(TrueFalse(dataset="x", data=str(shard), label="caption"), shard)


@pytest.mark.parametrize("pad_max", ["exclude", "zero"])
def test_pairs_are_scored_by_tokens_without_those_of_others(tmp_path, pad_max):
    """Against loops; and the products that are made are those of the pairs."""
    torch.manual_seed(0)
    encoder = Encoder(Model(arch="vlp-nano").build().eval(), quiet=True)
    shard = write_shard(tmp_path / "a.tar", [scene(["red", "green", c, "blue"]) for c in COLOURS])
    view = View(encoder, open_data(Negatives(dataset="x", data=str(shard)).data), dataset="x")
    rows, texts = [0, 0, 3, 4, 1], ["red", "a green circle", "blue", "word " * 90, "a red circle in the corner"]
    images, words = view.image_tokens(), view.text_tokens(texts)
    with FlopCounterMode(display=False) as counter:
        found = scores(view, rows, texts, head="tokens", pad_max=pad_max)
    assert counter.get_total_flops() == 2 * len(rows) * images.tokens[0].numel() * words.tokens.shape[1]
    for row, number, got in zip(rows, range(5), found.tolist(), strict=True):
        patches, tokens = images.tokens[row].double(), words.tokens[number][words.mask[number]].double()
        products = [[float(p @ t) for t in tokens] for p in patches]
        floor = [0.0] if pad_max == "zero" and len(tokens) < encoder.dual.tokenizer.context else []
        to_text = sum(max([*best, *floor]) for best in products) / len(patches)
        to_image = sum(max(best) for best in zip(*products, strict=True)) / len(tokens)
        assert got == pytest.approx((to_text + to_image) / 2, abs=1e-5)
    assert scores(view, rows, texts, head="tokens").tolist() == pytest.approx(
        [float(scores(view, [row], [text], head="tokens")) for row, text in zip(rows, texts, strict=True)], abs=1e-6
    )


@pytest.mark.parametrize("part", [Negatives, TrueFalse])
def test_compositional_tests_hand_pad_max_on(tmp_path, monkeypatch, part):
    asked = []
    monkeypatch.setattr("eval.compose.scores", lambda *_, **how: asked.append(how) or torch.arange(4.0))
    two = [scene(["red"] * 4, sentence="red", label=label, group=1, caption="red", hard_negatives=["blue"]) for label in
           (True, False)]  # fmt: skip
    shard = write_shard(tmp_path / "a.tar", two)
    measure(part(dataset="x", data=str(shard), head="tokens", pad_max="zero"), shard)
    assert asked == [{"head": "tokens", "pad_max": "zero"}]


def test_strips_are_squeezed_where_the_data_ask_for_it(tmp_path):
    strip = io.BytesIO()
    Image.fromarray(
        np.repeat(np.array([[COLOURS["red"]] * 4 + [COLOURS["blue"]] * 8 + [COLOURS["red"]] * 4], np.uint8), 8, 0)
    ).save(strip, "PNG")
    shard = write_shard(tmp_path / "a.tar", [{"png": strip.getvalue(), "json": b"{}"}])
    views = [
        View(Encoder(ColourDual(), quiet=True), open_data(part.data), dataset="x")
        for part in (
            Negatives(dataset="x", data={"path": str(shard)}),
            Negatives(dataset="x", data={"path": str(shard), "resize_mode": "squash"}),
        )
    ]
    (cropped,), (squeezed,) = (view.image.tolist() for view in views)
    assert cropped[0] < 0.1 < squeezed[0]
    assert (views[1].resize_mode, views[1].encoder.dual.transform.resize_mode) == ("squash", "shortest")


def ranks(folder, to_text, to_image, *, keys=("a", "b", "c", "d")):
    place = folder / "eval" / "d"
    place.mkdir(parents=True)
    content = {
        "schema": 1,
        "keys": list(keys),
        "caption_image": list(range(len(keys))),
        "image_to_text": to_text,
        "text_to_image": to_image,
    }
    (place / "ranks.json").write_text(json.dumps(content))
    (place / "ranks_tokens.json").write_text(json.dumps(content | {"image_to_text": [1] * 4, "text_to_image": [1] * 4}))
    return folder


def test_arms_are_compared_on_the_same_queries(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ranks(tmp_path / "base-1", [20, 20, 20, 1], [20, 20, 20, 1])
    ranks(tmp_path / "good-1", [1, 6, 20, 1], [1, 20, 20, 1])
    ranks(tmp_path / "good-2", [1, 1, 20, 1], [1, 1, 20, 1])
    arms = parse_arms(["clip=base-*", "good=good-*", "fine=base-1@tokens"])
    rows = {row.arm: row for row in compare(arms, baseline="clip", dataset="d")}
    assert rows["clip"].mean == pytest.approx(0.25)
    assert rows["clip"].verdict == "baseline"
    assert rows["good"].seeds == pytest.approx(((1 + 1 / 6 + 1) / 4, 0.75))
    assert rows["good"].spread == pytest.approx(np.std(rows["good"].seeds, ddof=1))
    assert rows["good"].difference == pytest.approx(rows["good"].mean - 0.25)
    assert rows["fine"].mean == 1.0
    assert [row.arm for row in compare(arms, baseline="clip", dataset="d")] == ["fine", "good", "clip"]
    assert "| good | 64.58 | 54.17, 75.00 | 14.73 |" in as_text(list(rows.values()))


def test_the_verdict_follows_the_interval(tmp_path):
    base = ranks(tmp_path / "base", [20] * 50, [20] * 50, keys=[str(i) for i in range(50)])
    better = ranks(tmp_path / "better", [1] * 10 + [20] * 40, [20] * 50, keys=[str(i) for i in range(50)])
    rows = compare({"a": Arm([base]), "b": Arm([better])}, baseline="a", dataset="d")
    assert (rows[0].arm, rows[0].verdict) == ("b", "better")
    rows = compare({"a": Arm([base]), "b": Arm([better])}, baseline="b", dataset="d")
    assert rows[1].verdict == "worse"
    rows = compare({"a": Arm([base]), "b": Arm([base])}, baseline="a", dataset="d")
    assert rows[1].verdict == "no difference shown"


def hits(folder, name, keys, **columns):
    (place := folder / "eval" / "d").mkdir(parents=True, exist_ok=True)
    (content,) = hits_file(name, keys, [str(n) for n in range(len(keys))], columns).values()
    (place / f"{name}_hits.json").write_text(json.dumps(content))
    return folder


def test_arms_are_compared_on_hits_and_pictures_are_drawn(tmp_path):
    keys = ["a", "a", "b", "b", "b", "c"]
    base = hits(tmp_path / "base", "pointing", keys, phrase=[0, 1, 0, 0, 0, 1], tokens=[None, 1, None, 0, None, 1])
    better = hits(tmp_path / "more", "pointing", keys, phrase=[1, 1, 1, 1, 1, 1], tokens=[None, 1, None, 1, None, 1])
    arms = {"clip": Arm([base]), "filip": Arm([better, base])}
    row = compare(arms, baseline="clip", dataset="d", measure="phrase")[0]
    assert (row.arm, row.seeds) == ("filip", (1.0, pytest.approx(2 / 6)))
    assert row.difference == pytest.approx((1 - 2 / 6) / 2)
    gained = torch.tensor([0.5, 0, 0.5, 0.5, 0.5, 0])[:, None]
    assert row.interval == of_means(gained, groups=torch.tensor([0, 0, 1, 1, 1, 2]), n_boot=10_000)[0]
    assert compare(arms, baseline="clip", dataset="d", measure="tokens")[0].mean == pytest.approx((1 + 2 / 3) / 2)
    said = CliRunner().invoke(compare_app, ["d", f"clip={base}", f"filip={better}", "--measure", "phrase"])
    assert "| arm | phrase |" in said.output
    assert "| filip | 100.00 |" in said.output


def test_a_measure_of_hits_is_found_or_its_absence_explained(tmp_path):
    one = hits(tmp_path / "one", "true_false", ["a"], accuracy=[1])
    hits(one, "caption_negatives", ["a", "b"], accuracy=[0, 1])
    compared = lambda measure, head="global", arm=one: compare(  # noqa: E731
        {"clip": Arm([one], head), "b": Arm([arm], head)}, baseline="clip", dataset="d", measure=measure
    )[0].mean  # fmt: skip
    assert compared("true_false/accuracy") == 1
    assert compared("caption_negatives/accuracy") == 0.5
    with pytest.raises(ValueError, match=r"caption_negatives_hits\.json and true_false_hits\.json; say which"):
        compared("accuracy")
    with pytest.raises(ValueError, match=r"no hits of \"pointing\" by the global head \(known: recall, accuracy\)"):
        compared("pointing")
    with pytest.raises(ValueError, match="by the tokens head.*vlp eval"):
        compared("true_false/accuracy", "tokens")
    other = hits(tmp_path / "other", "true_false", ["b"], accuracy=[1])
    with pytest.raises(ValueError, match="other pictures"):
        compared("true_false/accuracy", arm=other)


def test_there_is_one_table_of_files_of_ranks():
    assert compare_module.RANKS is retrieve.RANKS


def test_faults_of_a_comparison_name_their_place(tmp_path):
    one = ranks(tmp_path / "one", [1] * 4, [1] * 4)
    other = ranks(tmp_path / "other", [1] * 4, [1] * 4, keys="efgh")
    with pytest.raises(ValueError, match="other pictures"):
        compare({"a": Arm([one]), "b": Arm([other])}, baseline="a", dataset="d")
    with pytest.raises(ValueError, match='no arm "aa"'):
        compare({"a": Arm([one])}, baseline="aa", dataset="d")
    with pytest.raises(ValueError, match="vlp eval"):
        compare({"a": Arm([one])}, baseline="a", dataset="nowhere")
    with pytest.raises(ValueError, match="no folder matches"):
        parse_arms([f"a={tmp_path}/nothing-*"])
    (tmp_path / "one.log").write_text("words of the run")
    assert parse_arms([f"a={tmp_path}/o*"])["a"].folders == [one, other]
    with pytest.raises(ValueError, match="NAME=FOLDERS"):
        parse_arms(["a"])
