"""What the samples bring beside picture and captions, all the way through the feed: views, columns, false captions."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.data.tars import Letters, npy, picture, write_tar
from tests.data.test_feed import SIZE, feed
from vlp.data import Data, Feed
from vlp.data.transforms import Preprocess
from vlp.types import Batch

CAPTIONS = ["a red cat on a blue mat", "two dogs. A third dog.", "one"]
COLUMNS = {
    "teacher": {"field": "teacher.npy", "shape": [2], "choose": "random", "group": "view"},
    "crop": {"field": "crops", "shape": [4], "choose": "random", "group": "view"},
    "teacher_text": {"field": "teacher_text.npy", "shape": [2], "choose": "captions"},
}
SETTINGS: dict[str, Any] = {
    "captions": 2,
    "augment": {"scale": [0.3, 1.0]},
    "views": [{"scale": [0.2, 1.0], "flip": 0.5, "jitter": [0.4, 0.4, 0.4, 0.1], "blur": [0.1, 1.0]}, {"crop": False}],
}


def write(folder: Path, size: int = 23, start: int = 0, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Shards of samples with all that this page is about; sample 5 lacks features, 6 has too few, 7 a wrong crop."""
    shards: list[list[tuple[str, bytes]]] = [[], []]
    for i in range(start, start + size):
        crops = [[0, 0, 0.5 + 0.01 * i, 1], [0.25, 0, 1, 1], [0, 0.5, 1, 1]]
        record = {"captions": CAPTIONS, "crops": crops, "wrong": [f"wrong {i}", "never", "one"]}
        if i == 7:
            record["crops"] = [[0.5, 0, 0.5, 1]] * 3
        arrays = {
            "teacher.npy": np.stack([np.full(2, 100.0 * i + row) for row in range(3)]),
            "teacher_text.npy": np.stack([np.full(2, row + 0.5) for row in range(2 if i == 6 else 3)]),
        }
        for name in without if i != 5 else [*without, "teacher.npy"]:
            arrays.pop(name)
        members = shards[i % 2]
        members += [(f"{i:06d}.png", picture(i)), (f"{i:06d}.json", json.dumps(record).encode())]
        members += [(f"{i:06d}.{name}", npy(array.astype(np.float32))) for name, array in arrays.items()]
    for number, members in enumerate(shards):
        write_tar(folder / f"{number}.tar", members)
    return {
        "name": "shards",
        "urls": str(folder),
        "captions": {
            "fields": ["captions"], "pick": "random", "count": 2,
            "negatives": 3, "negative_fields": ["wrong"], "negative_rule": "swap",
        },
        "columns": COLUMNS,
        "crop": "crop",
    }  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> dict[str, Any]:
    return write(tmp_path / "set")


def same(first: Batch, second: Batch) -> bool:
    """All of two batches is equal."""
    names = ("image", "text", "token_mask", "caption_mask", "valid", "label", "source")
    assert first.extra.keys() == second.extra.keys()
    tensors = [(getattr(first, name), getattr(second, name)) for name in names]
    tensors += [(value, second.extra[name]) for name, value in first.extra.items()]
    return all(torch.equal(a, b) for a, b in tensors) and first.keys == second.keys and first.notes == second.notes


def test_what_is_in_the_batch(source: dict[str, Any]) -> None:
    it = feed([source], batch_size=12, **SETTINGS)
    skips: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    for step in range(2):
        batch = it.batch(step)
        skips += Counter(skip.reason for skip in batch.skips)
        notes += Counter(batch.notes)
        extra = batch.extra
        assert sorted(extra) == ["crop", "negative_mask", "negative_text", "sample", "teacher", "teacher_text", "views"]
        assert extra["views"].shape == (12, 2, 3, SIZE, SIZE)
        assert extra["teacher"].dtype == torch.float32
        for name, value in extra.items():
            assert len(value) == 12
            empty = value[~batch.valid]
            assert not empty.any(), f"{name}: zeros where no sample is"
        for row in batch.valid.nonzero().flatten().tolist():
            number = int(batch.keys[row].rpartition(":")[2])
            view = int(extra["teacher"][row, 0]) - 100 * number
            assert extra["crop"][row, 0] == pytest.approx((0, 0.25, 0)[view]), "the crop that the features are of"
            texts = it.slot_captions(step)[row]
            rows = [CAPTIONS.index(text) for text in texts]
            assert extra["teacher_text"][row, :, 0].tolist() == [row + 0.5 for row in rows]
    assert skips == {"no_column": 1, "bad_column": 1, "bad_crop": 1}
    assert notes["negative_is_caption"] == 0


def test_negatives_are_false_texts_with_their_own_mask(source: dict[str, Any]) -> None:
    batch = feed([source], batch_size=24, streams=1, **SETTINGS).batch(0)
    text, mask = batch.extra["negative_text"], batch.extra["negative_mask"]
    assert text.shape == mask.shape
    assert text.shape[:2] == (24, 3)
    assert text.shape[2] % 8 == 0
    found = set()
    for row in range(24):
        letters = [bytes(text[row, m][mask[row, m]].tolist()[1:-1]).decode() for m in range(3) if mask[row, m].any()]
        assert all(text[row, m][mask[row, m]].tolist()[-1] == 257 for m in range(3) if mask[row, m].any())
        captions = [bytes(batch.text[row, k][batch.token_mask[row, k]].tolist()[1:-1]).decode() for k in range(2)]
        assert not set(letters) & set(captions)
        assert not mask[row][~mask[row].any(dim=1)].any()
        found |= set(letters)
    assert {"never", "wrong 3", "a blue cat on a red mat"[:30]} <= found
    assert "one" not in found, "another caption of the sample"
    assert not mask[~batch.valid].any()


def test_a_negative_that_is_cut_to_a_caption_is_left_out(tmp_path: Path) -> None:
    """The tokenizer keeps 30 letters: what differs behind them is the caption itself."""
    record = {"caption": "x" * 40, "wrong": ["x" * 40 + "y", "z"]}
    write_tar(tmp_path / "a.tar", [("0.png", picture(0)), ("0.json", json.dumps(record).encode())])
    captions = {"negatives": 2, "negative_fields": ["wrong"]}
    batch = feed([{"name": "shards", "urls": str(tmp_path), "captions": captions}], batch_size=1).batch(0)
    assert batch.extra["negative_mask"].any(dim=2).sum() == 1
    assert batch.notes == ("negative_is_caption",)
    record["wrong"] = []
    write_tar(tmp_path / "b" / "a.tar", [("0.png", picture(0)), ("0.json", json.dumps(record).encode())])
    batch = feed([{"name": "shards", "urls": str(tmp_path / "b"), "captions": captions}], batch_size=1).batch(0)
    assert batch.valid.all()
    assert not batch.extra["negative_mask"].any()
    assert batch.notes == ("no_negative",)


@pytest.mark.parametrize("world", [2, 4])
def test_any_world_and_any_step_give_the_same(source: dict[str, Any], world: int) -> None:
    whole = feed([source], batch_size=8, **SETTINGS)
    ranks = [feed([source], batch_size=8, rank=rank, world=world, **SETTINGS) for rank in range(world)]
    for step in (7, 0, 3):
        batch, parts = whole.batch(step), [rank.batch(step) for rank in ranks]
        for name, value in batch.extra.items():
            if not name.startswith("negative"):  # these are as long as the longest of each rank
                assert torch.equal(torch.cat([part.extra[name] for part in parts]), value)
        counts = torch.cat([part.extra["negative_mask"].sum(dim=2) for part in parts])
        assert torch.equal(counts, batch.extra["negative_mask"].sum(dim=2))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
def test_workers_and_resume_change_nothing(source: dict[str, Any]) -> None:
    alone = feed([source], batch_size=8, **SETTINGS)
    many = feed([source], batch_size=8, workers=2, prefetch=1, **SETTINGS)
    made = list(many.batches(5, 9))
    assert all(same(batch, alone.batch(step)) for step, batch in zip(range(5, 9), made))


def test_a_batch_without_any_sample_has_all_columns(source: dict[str, Any]) -> None:
    it = feed([source], batch_size=24, streams=24, **SETTINGS)
    empty = feed([source], batch_size=24, streams=24, rank=23, world=24, **SETTINGS)
    ranks = [feed([source], batch_size=24, streams=24, rank=rank, world=24, **SETTINGS).batch(0) for rank in range(24)]
    alone = [batch for batch in ranks if not batch.valid.any()]
    assert alone
    whole = it.batch(0)
    for name, value in whole.extra.items():
        assert alone[0].extra[name].dtype == value.dtype
        assert not alone[0].extra[name].any()
        assert name.startswith("negative") or alone[0].extra[name].shape[1:] == value.shape[1:]
    assert empty.batch(0).extra.keys() == whole.extra.keys()


def test_columns_are_cut_with_the_batch_and_travel(source: dict[str, Any]) -> None:
    batch = feed([source], batch_size=8, **SETTINGS).batch(0).plus({}, {"queue": torch.ones(3, 2)})
    part = batch.rows(2, 5)
    assert all(torch.equal(part.extra[name], value[2:5]) for name, value in batch.extra.items())
    assert part.memory["queue"].shape == (3, 2)
    assert batch.to("meta").extra["views"].device.type == "meta"
    assert batch.to("meta").memory["queue"].device.type == "meta"


def test_captions_and_pixels_do_not_depend_on_what_else_is_asked_for(source: dict[str, Any]) -> None:
    settings = {"captions": 2, "augment": {"scale": [0.3, 1.0], "flip": 0.5}}
    bare = {name: value for name, value in source.items() if name not in ("columns", "crop")}
    bare["captions"] = {name: value for name, value in source["captions"].items() if not name.startswith("neg")}
    rich = {name: value for name, value in source.items() if name != "crop"}
    plain, full = (
        feed([bare], batch_size=8, **settings),
        feed([rich], batch_size=8, **settings, views=SETTINGS["views"]),
    )
    for step in range(3):
        a, b = plain.batch(step), full.batch(step)
        assert torch.equal(a.image[b.valid], b.image[b.valid])
        assert torch.equal(a.text[b.valid], b.text[b.valid])


def test_sources_that_differ_in_columns_are_named_at_the_start(tmp_path: Path, source: dict[str, Any]) -> None:
    other = write(tmp_path / "other", start=100)
    both = feed([source, other], batch_size=16, streams=2, **SETTINGS).batch(0)
    assert set(both.source.tolist()) == {0, 1}
    lacking = {**other, "columns": {"crop": COLUMNS["crop"]}}
    with pytest.raises(
        ValidationError, match=r"sources\.1 \(other\): lacks columns that others have: teacher, teacher_text"
    ):
        feed([source, lacking], batch_size=16, **SETTINGS)
    changed = {**other, "columns": {**COLUMNS, "teacher": {**COLUMNS["teacher"], "shape": [3]}}}
    with pytest.raises(ValidationError, match=r"sources\.\d \(\w+\): columns\.teacher differs"):
        feed([source, changed], batch_size=16, **SETTINGS)
    with pytest.raises(ValidationError, match=r"sources\.0 \(set\): crop replaces"):
        feed([source], batch_size=16, **{**SETTINGS, "augment": None})


def test_sources_with_and_without_negatives_share_a_batch(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a"), write(tmp_path / "b", start=50)
    sources = [{**source, "columns": {}, "crop": None} for source in (first, second)]
    sources[1]["captions"] = {"fields": ["captions"], "pick": "random", "count": 2}
    it = feed(sources, batch_size=16, streams=2, captions=2)
    batch = it.batch(0)
    has = batch.extra["negative_mask"].flatten(1).any(dim=1)
    assert has[(batch.source == 0) & batch.valid].all()
    assert not has[batch.source == 1].any()


def test_every_sample_bad_is_an_empty_batch_with_reasons(tmp_path: Path) -> None:
    source = write(tmp_path / "none", without=("teacher_text.npy",))
    batch = feed([source], batch_size=23, streams=1, **SETTINGS).batch(0)
    assert not batch.valid.any()
    assert Counter(skip.reason for skip in batch.skips) == {"no_column": 23}
    assert "no teacher" in batch.skips[0].detail


def test_arrays_beside_each_other_are_no_dotted_keys(tmp_path: Path) -> None:
    from vlp.data.sources import open_records

    write(tmp_path / "set", size=4)
    records = open_records(str(tmp_path / "set"))
    assert not records.notes
    assert set(records[0].members) == {"png", "json", "teacher.npy", "teacher_text.npy"}


def test_views_of_a_run_are_settings() -> None:
    data = Data.model_validate({"sources": [{"name": "shards", "urls": "x"}], "views": [{"crop": False}, {}]})
    assert Data.model_validate(data.model_dump(mode="json")) == data
    assert {name: value.shape for name, value in data.blank((4, 6)).items()} == {"views": (2, 3, 4, 6)}


def test_the_feed_of_a_plain_run_has_no_column_but_the_samples_number(tmp_path: Path) -> None:
    write(tmp_path / "set", size=4)
    sources = [{"name": "shards", "urls": str(tmp_path / "set")}]
    data = Data.model_validate({"sources": sources, "batch_size": 2, "workers": 0})
    plain = Feed(data, tokenizer=Letters(), preprocess=Preprocess(size=SIZE), seed=0)
    assert [list(plain.batch(step).extra) for step in range(2)] == [["sample"]] * 2


def test_a_sample_keeps_its_number_whatever_its_caption_and_label(tmp_path: Path) -> None:
    write(tmp_path / "set", size=8)
    captions = {"fields": ["captions"], "pick": "random"}
    sources = [{"name": "shards", "urls": str(tmp_path / "set"), "captions": captions}]
    data = Data.model_validate({"sources": sources, "batch_size": 4, "workers": 0, "same_caption_same_label": True})
    feed_ = Feed(data, tokenizer=Letters(), preprocess=Preprocess(size=SIZE), seed=0)
    numbers, labels = dict[str, set[int]](), dict[str, set[int]]()
    for step in range(12):
        batch = feed_.batch(step)
        for key, number, label, valid in zip(batch.keys, batch.extra["sample"].tolist(), batch.label.tolist(),
                                             batch.valid.tolist(), strict=True):  # fmt: skip
            if valid:
                numbers.setdefault(key, set()).add(number)
                labels.setdefault(key, set()).add(label)
    assert all(len(found) == 1 for found in numbers.values())
    assert len({number for found in numbers.values() for number in found}) == len(numbers)
    assert max(map(len, labels.values())) > 1
