"""The benchmark of corrupted pictures against a loop over pictures, corruptions and severities."""

from __future__ import annotations

import base64
import io
import json

import pytest
import torch
from PIL import Image

from eval.corruption import Corrupted, Corruptions, relative_drop_interval
from eval.data import open_data
from eval.hits import read_hits
from eval.view import View
from tests.eval.colours import COLOURS, ColourDual, colour_shard
from vlp.data.corrupt import IMAGENET_C, corrupt
from vlp.data.schema import DataError
from vlp.embed import Encoder
from vlp.models.model import Model
from vlp.pictures import read_picture

NAMES = ("saturate", "gaussian_noise", "fog")


@pytest.fixture
def given(tmp_path):
    shard = str(colour_shard(tmp_path / "c.tar", broken=1))
    return {"dataset": "d", "data": shard, "names": tuple(COLOURS), "templates": ("{}",), "batch": 3, "n_boot": 200}


def measure(part, dual=None, **how):
    view = View(Encoder(dual or ColourDual(), quiet=True, **how), open_data(part.data), dataset="d")
    return part.measure(view), view


def by_loops(part):
    """{corruption: [accuracy a severity]} one picture at a time."""
    dual, records = ColourDual().eval(), open_data(part.data).records
    names = list(COLOURS)
    text = torch.nn.functional.normalize(dual.table[1:], dim=1)
    found = {}
    for name in part.corruptions:
        found[name] = []
        for severity in part.severities:
            hits = []
            for place in range(10):  # the last one cannot be read
                sample = records[place]
                image = corrupt(dual.transform(read_picture(sample)), name, severity, key=sample.key, seed=part.seed)
                scores = torch.nn.functional.normalize(dual.encode_image(image[None]), dim=1) @ text.T
                hits.append(names[int(scores.argmax())] == json.loads(sample.members["json"])["class"])
            found[name].append(sum(hits) / len(hits))
    return found


def test_it_finds_what_a_loop_finds(given):
    part = Corruptions(**given, corruptions=NAMES, severities=(2, 5), seed=4)
    found, view = measure(part)
    want = by_loops(part)
    table = found.files["corruptions.json"]
    assert list(table["accuracy"]) == list(NAMES)
    assert all(table["accuracy"][name] == pytest.approx(values) for name, values in want.items())
    assert want["saturate"][0] == pytest.approx(0.2)  # all colours turn white
    each = {f"acc1_{name}": sum(values) / 2 for name, values in want.items()}
    mean = sum(each.values()) / 3
    drop = {"relative_drop": 1 - mean}
    assert found.metrics == pytest.approx({"acc1": 1.0, "acc1_corrupted": mean, **each, **drop})
    assert found.n == 10
    assert view.encoded.reasons() == {"truncated_image": 1}
    assert (found.counts["corruptions"], found.counts["severities"], found.counts["classes"]) == (3, 2, 5)
    assert dict(view.label_reads) == {"scoring": 1}
    assert found.chance == dict.fromkeys(["acc1", "acc1_corrupted", *each], 0.2)
    assert set(found.ci95) == set(found.metrics)
    low, high = found.ci95["relative_drop"]
    assert low <= drop["relative_drop"] <= high
    assert found.lower_is_better >= {"relative_drop"}
    again, _ = measure(part)
    assert again.metrics == found.metrics


def test_it_leaves_the_shares_of_each_picture_and_a_table_with_pictures(given, tmp_path):
    part = Corruptions(**given, corruptions=NAMES, severities=(1, 3))
    found, _ = measure(part)
    (tmp_path / "corruptions_hits.json").write_text(json.dumps(found.files["corruptions_hits.json"]))
    for name in ("acc1_corrupted", "acc1_fog"):
        shares = read_hits(tmp_path, name, head="global")
        assert float(shares.values.mean()) == pytest.approx(found.metrics[name])
        assert len(shares.keys) == len(set(shares.keys)) == 10
    table = found.files["corruptions.json"]
    sheet = Image.open(io.BytesIO(base64.b64decode(table["sheet"])))
    assert sheet.format == "PNG"
    assert (table["schema"], table["severities"], table["clean"], table["sheet_row"]) == (1, [1, 3], 1.0, 0)
    assert "confusion.json" in found.files
    assert found.items["names"] == list(COLOURS)
    json.dumps(found.files)


def test_a_baseline_gives_the_papers_mce(given, tmp_path):
    part = Corruptions(**given, corruptions=("gaussian_noise", "saturate"), severities=(2, 5))
    file = tmp_path / "corruptions.json"
    other = {"severities": [1, 2, 5], "accuracy": {"saturate": [1.0, 0.6, 0.8], "gaussian_noise": [0.0, 0.5, 0.5]}}
    file.write_text(json.dumps(other))
    found, _ = measure(part.model_copy(update={"baseline": str(file)}))
    error = {
        name: [1 - value for value in values] for name, values in found.files["corruptions.json"]["accuracy"].items()
    }
    want = (sum(error["gaussian_noise"]) / 1.0 + sum(error["saturate"]) / 0.6) / 2
    assert found.metrics["mce"] == pytest.approx(want)
    assert found.chance["mce"] == pytest.approx((1.6 / 1.0 + 1.6 / 0.6) / 2)
    low, high = found.ci95["mce"]
    assert low <= want <= high
    for wrong, message in (
        ({**other, "severities": [1, 2, 4]}, "no severity 5"),
        (
            {**other, "accuracy": {"saturat": [1, 1, 1], "gaussian_noise": [0, 0, 0]}},
            'under "saturate"; did you mean "saturat"',
        ),
        ({**other, "accuracy": {**other["accuracy"], "saturate": [1.0, 1.0, 1.0]}}, "the baseline has no error"),
    ):
        file.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=message):
            measure(part.model_copy(update={"baseline": str(file)}))


def test_every_pass_has_its_own_place_in_the_cache(given, tmp_path, monkeypatch):
    part = Corruptions(**given, corruptions=("gaussian_noise",), severities=(1, 5))
    torch.manual_seed(0)
    dual = Model(arch="vlp-nano").build().eval()
    first, view = measure(part, dual, cache=tmp_path / "cache")
    monkeypatch.setattr(type(dual), "encode_image", None)  # nothing is encoded again
    again, _ = measure(part, dual, cache=tmp_path / "cache")
    assert again.metrics == first.metrics
    records, transform = view.opened.records, dual.transform
    prints = {
        Corrupted(records, places, how, name, severity, seed=seed).fingerprint
        for places, how, name, severity, seed in [
            ([0, 1], transform, "fog", 1, 0),
            ([0, 2], transform, "fog", 1, 0),
            ([0, 1], transform.model_copy(update={"resize_mode": "squash"}), "fog", 1, 0),
            ([0, 1], transform, "frost", 1, 0),
            ([0, 1], transform, "fog", 2, 0),
            ([0, 1], transform, "fog", 1, 1),
        ]
    }
    assert len(prints) == 6


def test_corrupted_pictures_reach_the_model_as_they_are(given):
    dual = ColourDual()
    records = open_data(Corruptions(**given).data).records
    for mode in ("shortest", "longest", "squash"):
        transform = dual.transform.model_copy(update={"resize_mode": mode, "size": (8, 10)})
        pictures = Corrupted(records, [3, 1], transform, "gaussian_noise", 5, seed=1)
        image = pictures[0]
        assert torch.equal(transform(image), image)
        assert torch.equal(
            image, corrupt(transform(read_picture(records[3])), "gaussian_noise", 5, key=records[3].key, seed=1)
        )
    assert len(pictures) == 2


def test_token_adapters_see_the_corrupted_tokens(given):
    torch.manual_seed(0)
    dual = Model(arch="vlp-nano").build().eval()
    how = {"corruptions": ("impulse_noise",), "severities": (5,)}
    pooled, _ = measure(Corruptions(**given, **how), dual)
    blended = {"name": "token_zeroshot", "blend": 1.0}
    same, _ = measure(Corruptions.model_validate({**given, **how, "adapter": blended}), dual)
    assert same.metrics == pooled.metrics
    tokens, _ = measure(Corruptions.model_validate({**given, **how, "adapter": "token_zeroshot"}), dual)
    assert tokens.head == "tokens"
    assert "corruptions_tokens.json" in tokens.files


def test_the_interval_of_the_drop_draws_pictures_with_all_that_was_made_of_them():
    clean = torch.tensor([1.0, 1, 1, 0] * 25)
    half = clean / 2
    assert relative_drop_interval(clean, half) == pytest.approx((0.5, 0.5))  # the drop is the same in every resample
    low, high = relative_drop_interval(clean, torch.rand(100, generator=torch.Generator().manual_seed(0)) * clean)
    assert 0.35 < low < 0.5 < high < 0.65
    assert relative_drop_interval(torch.tensor([1.0, 0, 0, 0]), torch.zeros(4)) is None


def test_what_cannot_be_asked_is_refused(given):
    assert Corruptions(**given).corruptions == IMAGENET_C
    for wrong, message in (
        ({"corruptions": ("fogg",)}, 'unknown corruption "fogg"; did you mean "fog"'),
        ({"corruptions": ("fog", "fog")}, "fog stands there twice"),
        ({"severities": (0, 1)}, "severities are 1 to 5"),
    ):
        with pytest.raises(ValueError, match=message):
            Corruptions(**given, **wrong)


def test_pictures_that_vanish_in_between_are_told(given, monkeypatch):
    part = Corruptions(**given, corruptions=("fog",), severities=(1,))
    view = View(Encoder(ColourDual(), quiet=True), open_data(part.data), dataset="d")
    assert len(view.encoded.kept) == 10
    shard = view.opened.records
    whole = type(shard).read
    cut = lambda self, i, only=None: whole(self, 10 if i == 4 and only is None else i, only)  # noqa: E731
    monkeypatch.setattr(type(shard), "read", cut)
    with pytest.raises(DataError, match="d: 1 of 10 pictures could be read once and not again"):
        part.measure(view)
