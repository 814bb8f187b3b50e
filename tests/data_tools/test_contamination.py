"""`contamination`: planted copies are found, other pictures are not, nothing is looked at twice or lost in silence."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from data_tools import sketches
from data_tools.__main__ import app
from data_tools.contamination import Contamination, find_leaks, wilson
from data_tools.contamination_tables import COLUMNS
from data_tools.matches import Candidates, Gallery, Rule, candidates, guessed, matches
from data_tools.neighbours import propose
from data_tools.sketches import Reading, sketches_of
from data_tools.write import Record, ShardWriter
from tests.data_tools.test_hashes import coded, drawn
from vlp.data.schema import DataError
from vlp.data.sources import open_records
from vlp.embed import Encoder
from vlp.models import pretrained
from vlp.models.model import Model

PLANTED = 24
Members = Mapping[str, bytes]


def write(path: Path, samples: Mapping[str, Members]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with ShardWriter(path) as writer:
        for key, members in samples.items():
            writer.write(Record(key, members))
    return path


def sample(picture: Image.Image, caption: str, *, quality: int = 90) -> dict[str, bytes]:
    return {"jpg": coded(picture, kind="JPEG", quality=quality), "json": json.dumps({"caption": caption}).encode()}


def recoded(picture: Image.Image, seed: int) -> Image.Image:
    scale = (0.5, 0.75, 1.5)[seed % 3]
    return picture.resize([round(side * scale) for side in picture.size])


def cropped(picture: Image.Image, seed: int) -> Image.Image:
    """A window of 80 % of the area, anywhere."""
    rng = np.random.default_rng(seed)
    width, height = (round(side * 0.8**0.5) for side in picture.size)
    left, top = int(rng.integers(0, picture.width - width + 1)), int(rng.integers(0, picture.height - height + 1))
    return picture.crop((left, top, left + width, top + height))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 test pictures; 90 of others and 24 + 24 + 2 planted copies among the training shards."""
    root = tmp_path_factory.mktemp("leaks")
    pictures = [drawn(seed) for seed in range(60)]
    test = {f"t{i:03d}": sample(picture, f"Test picture {i}.") for i, picture in enumerate(pictures)}
    test |= {"broken": {"jpg": b"<html>"}, "plain": sample(Image.new("RGB", (40, 40), "white"), "a wall")}
    write(root / "test/000000.tar", dict(list(test.items())[:40]))
    write(root / "test/000001.tar", dict(list(test.items())[40:]))
    others = {f"o{i:03d}": sample(drawn(1000 + i), f"Another picture {i}.") for i in range(90)}
    others |= {"cut": {"jpg": coded(drawn(3), kind="JPEG")[:900]}, "none": {"txt": b"TEST picture 59"}}
    write(root / "train/000000.tar", others)
    planted = {f"r{i}": sample(recoded(pictures[i], i), f"r {i}", quality=40 + i) for i in range(PLANTED)}
    planted |= {f"c{i}": sample(cropped(pictures[i], i), f"c {i}", quality=70) for i in range(20, 20 + PLANTED)}
    planted |= {"same": test["t050"], "pixels": {"png": coded(Image.open(io.BytesIO(test["t051"]["jpg"])))}}
    planted |= {"wall": sample(Image.new("RGB", (60, 60), (250, 250, 250)), "another wall")}
    write(root / "train/000001.tar", planted)
    return root


@pytest.fixture(scope="module")
def out(folder: Path) -> Path:
    Contamination(against=(f"drawn={folder}/test",)).run([folder / "train"], folder / "out")
    return folder / "out"


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "leaks.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_planted_copies_are_found_and_nothing_else(out: Path) -> None:
    found = {(row["eval_key"], row["train_key"]): row for row in rows(out)}
    assert tuple(rows(out)[0]) == COLUMNS
    expected = {(f"t{i:03d}", f"r{i}"): "re-encoded" for i in range(PLANTED)}
    expected |= {(f"t{i:03d}", f"c{i}"): "crop" for i in range(20, 20 + PLANTED)}
    expected |= {("t050", "same"): "exact", ("t051", "pixels"): "exact"}
    assert set(found) <= set(expected)  # no false alarm among 60 x 90 pairs
    assert len([pair for pair in found if pair[1][0] == "r"]) >= 0.99 * PLANTED
    assert len([pair for pair in found if pair[1][0] == "c"]) >= 0.9 * PLANTED
    assert {pair: row["kind"] for pair, row in found.items()} == {pair: expected[pair] for pair in found}
    assert [found["t050", "same"][name] for name in ("same_file", "same_caption", "score")] == ["True", "True", "1.0"]
    assert [found["t051", "pixels"][name] for name in ("same_file", "same_caption")] == ["False", "False"]
    assert {row["inside"] for row in found.values()} == {"whole", "train"}


def test_the_box_of_a_crop_is_where_it_was_cut_out(out: Path) -> None:
    apart = []
    for row in rows(out):
        if row["kind"] == "crop":
            seed = int(row["train_key"][1:])
            rng = np.random.default_rng(seed)
            left, top = int(rng.integers(0, 160 - 143 + 1)) / 160, int(rng.integers(0, 120 - 107 + 1)) / 120
            apart.append(abs(float(row["left"]) - left) + abs(float(row["top"]) - top))
    assert max(apart) < 0.03


def test_shares_and_counts(out: Path) -> None:
    result = json.loads((out / "summary.json").read_text())
    (found,) = result["evaluations"]
    pictures = {row["eval_key"] for row in rows(out)}
    assert (found["name"], found["pictures"], found["skipped"], found["flat"]) == ("drawn", 61, {"not_image": 1}, 1)
    assert found["leaked"] == sum(found["kinds"].values()) == len(pictures)
    assert found["share"] == pytest.approx(len(pictures) / 61, abs=1e-6)
    assert found["low"] < found["share"] < found["high"]
    assert found["kinds"]["exact"] == 2
    assert found["same_caption"] == 2  # of `same`, and of a sample without any picture
    train = result["train"]
    assert (train["samples"], train["flat"], train["dropped"]) == (143, 1, len(rows(out)))
    assert train["skipped"] == {"truncated_image": 1, "no_image": 1}
    lines = [json.loads(line) for line in (out / "skips.jsonl").read_text().splitlines()]
    assert {(line["source"], line["reason"], line["key"]) for line in lines} == {
        ("train", "truncated_image", "cut"),
        ("train", "no_image", "none"),
        ("drawn", "not_image", "broken"),
    }


def test_the_keep_list_leaves_the_copies_out_of_a_source(folder: Path, out: Path) -> None:
    table = pq.read_table(out / "keep.parquet").to_pylist()
    assert len(table) == 143
    dropped = {row["key"]: row["why"] for row in table if not row["keep"]}
    assert set(dropped) == {row["train_key"] for row in rows(out)}
    assert dropped["same"] == "exact: drawn 000001.tar:t050"
    source = {"name": "shards", "urls": str(folder / "train"), "keep": str(out / "keep.parquet")}
    records = open_records(source)
    assert len(records) == 143 - len(dropped)
    assert dropped.keys().isdisjoint(records.name(i)[1] for i in range(len(records)))


def test_two_training_folders_have_a_keep_list_each(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "more/000001.tar", {"same": sample(drawn(2000), "unlike")})
    part = Contamination(against=(str(folder / "test"),), cache=folder / "out/sketches")
    result = part.run([folder / "train", tmp_path / "more"], tmp_path / "out")
    assert result["keep_lists"] == ["keep-0-train.parquet", "keep-1-more.parquet"]
    kept = [
        {row["key"]: row["keep"] for row in pq.read_table(tmp_path / "out" / n).to_pylist()}
        for n in result["keep_lists"]
    ]
    assert (kept[0]["same"], kept[1]) == (False, {"same": True})
    assert result["evaluations"][0]["name"] == f"{folder.name}/test"


def test_the_page_shows_every_pair_and_loads_nothing(out: Path) -> None:
    page = (out / "contamination.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") >= len(rows(out))
    assert "re-encoded, detail" in page
    assert "t050" in page
    assert "http:" not in page.replace("http://www.w3.org", "")


def test_a_second_run_decodes_only_what_is_new(
    folder: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    plain = sketches.sketch
    monkeypatch.setattr(sketches, "sketch", lambda data, limits: looked.append(len(data)) or plain(data, limits))
    part = Contamination(against=(f"drawn={folder}/test",), cache=tmp_path)
    for path in (out / "sketches").glob("*.parquet"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    again = part.run([folder / "train"], tmp_path / "again")
    assert looked == []
    assert again == json.loads((out / "summary.json").read_text())
    assert (tmp_path / "again/leaks.csv").read_bytes() == (out / "leaks.csv").read_bytes()
    damaged = min(tmp_path.glob("*.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert len(find_leaks([folder / "train"], part, cache=tmp_path).leaks) == len(rows(out))
    assert 20 <= len(looked) <= 92  # the pictures of one shard
    assert not list(tmp_path.glob("*.tmp"))


def test_a_test_picture_cut_out_of_a_training_picture_is_found(tmp_path: Path) -> None:
    wide = [drawn(seed) for seed in range(20)]
    train = write(tmp_path / "train.tar", {f"w{i}": sample(picture, "") for i, picture in enumerate(wide)})
    test = write(tmp_path / "test.tar", {f"c{i}": sample(cropped(picture, i), "") for i, picture in enumerate(wide)})
    report = find_leaks([train], Contamination(against=(f"{test}",)), cache=tmp_path / "cache")
    found = {(leak.train.key[1:], leak.test.key[1:]) for leak in report.leaks}
    assert len(found) >= 18
    assert all(one == other for one, other in found)
    assert {leak.match.inside for leak in report.leaks} == {"evaluation"}


def test_one_template_with_other_words_or_colours_is_no_leak(tmp_path: Path) -> None:
    """Three boxes on gray as in NLVR: the same layout, one object of another place or colour."""

    def scene(left: int, colour: str) -> Image.Image:
        picture = Image.new("RGB", (160, 120), (210, 210, 210))
        for x in (0, 55, 110):
            picture.paste((120, 120, 120), (x, 10, x + 50, 110))
        picture.paste(colour, (left, 30, left + 12, 42))
        picture.paste("yellow", (120, 60, 132, 72))
        return picture

    train = write(tmp_path / "train.tar", {str(x): sample(scene(x, "blue"), "") for x in (4, 20, 60, 84)})
    tests = {"moved": scene(70, "blue"), "black": scene(20, "black"), "yellow": scene(84, "yellow")}
    tests |= {"copy": scene(60, "blue")}
    test = write(tmp_path / "test.tar", {key: sample(one, "", quality=60) for key, one in tests.items()})
    report = find_leaks([train], Contamination(against=(str(test),)), cache=tmp_path / "cache")
    assert {(leak.test.key, leak.train.key) for leak in report.leaks} == {("copy", "60")}
    assert {miss.test.key for miss in report.misses} & {"moved", "black", "yellow"}


def test_empty_and_missing_sets_say_what_to_do(folder: Path, tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.tar", {})
    test, train = str(folder / "test"), folder / "train"
    with pytest.raises(DataError, match='evaluation set "none": no sample'):
        find_leaks([train], Contamination(against=(f"none={empty}",)), cache=tmp_path)
    with pytest.raises(DataError, match="training shards, but no sample"):
        find_leaks([empty], Contamination(against=(test,), cache=tmp_path), cache=folder / "out/sketches")
    with pytest.raises(DataError, match=r"1 shards are missing: .*gone\.tar"):
        find_leaks([tmp_path / "gone.tar"], Contamination(against=(test,)), cache=tmp_path)
    with pytest.raises(DataError, match='two sets are called "a"'):
        find_leaks([train], Contamination(against=(f"a={test}", f"a={test}")), cache=tmp_path)
    unread = write(tmp_path / "unread.tar", {"x": {"jpg": b"-"}, "y": {"txt": b"no picture"}})
    report = find_leaks([unread], Contamination(against=(str(unread),)), cache=tmp_path)
    (found,) = report.evaluations
    assert (found.pictures, found.skipped, report.leaks) == (0, {"not_image": 1, "no_image": 1}, [])
    assert found.share != found.share  # no picture, no share


def test_the_number_of_workers_changes_nothing(folder: Path, out: Path, tmp_path: Path) -> None:
    part = Contamination(against=(f"drawn={folder}/test",), cache=out / "sketches", workers=2)
    part.run([folder / "train"], tmp_path)
    for name in ("leaks.csv", "skips.jsonl", "keep.parquet"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()


def test_of_many_near_pairs_the_nearest_are_compared_and_the_rest_counted(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = [sketches_of(folder / f"{side}/00000{i}.tar", cache=out / "sketches", reading=Reading())
            for side, i in (("train", 1), ("test", 0))]  # fmt: skip
    gallery = Gallery.of(read[1])
    some, left_out = candidates(read[0], gallery)
    assert left_out == 0
    monkeypatch.setattr("data_tools.matches.NEAREST", 1)
    monkeypatch.setattr("data_tools.matches.HELD", 10)  # thinned on the way, with the same result
    fewer, left_out = candidates(read[0], gallery)
    assert left_out == len(some.train) - len(fewer.train)
    assert all(np.bincount(fewer.train[fewer.inside == way]).max() == 1 for way in (True, False))
    pairs = {(int(a), int(b)) for a, b in zip(fewer.train, fewer.other)}
    assert {(m.train, m.other) for m in matches(read[0], gallery, Rule()).found if m.kind != "exact"} <= pairs
    both = guessed(read[0], gallery, (fewer.train, fewer.other))
    assert isinstance(both, Candidates)
    assert len(both.train) == 2 * len(fewer.train)
    same = both.window[: len(fewer.train)][fewer.inside] == fewer.window[fewer.inside]
    assert same.mean() > 0.9  # ties apart, the window that `near` found


def test_neighbours_of_a_model_are_compared_like_the_others(
    folder: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    pretrained.save(Model(arch="vlp-nano").build(), tmp_path / "model")
    encoder = Encoder(pretrained.load(tmp_path / "model"), quiet=True)
    shards = [folder / "train/000000.tar", folder / "train/000001.tar"]
    proposed = propose(shards, [folder / "test/000000.tar", folder / "test/000001.tar"], encoder, count=3)
    assert -1 < proposed.threshold < 1
    assert proposed.skips == {"not_image": 2 - 1, "truncated_image": 1, "no_image": 1}
    assert sum(len(rows) for rows, _ in proposed.pairs.values()) <= 3 * 61
    # without hashes only the neighbours are left: the copies that the model proposes are found by them
    monkeypatch.setattr("data_tools.matches.near", lambda *_: iter(()))
    part = Contamination(against=(f"drawn={folder}/test",), model=str(tmp_path / "model"), cache=out / "sketches")
    result = part.run([folder / "train"], tmp_path / "out")
    kinds = result["evaluations"][0]["kinds"]
    assert kinds["exact"] == 2
    assert kinds["embedding"] > 0
    assert kinds["re-encoded"] == kinds["crop"] == 0
    assert {row["train_key"][0] for row in rows(tmp_path / "out")} <= {"r", "c", "s", "p"}
    with pytest.raises(DataError, match="--model nowhere"):
        find_leaks([folder / "train"], part.model_copy(update={"model": "nowhere"}), cache=out / "sketches")


def test_the_interval_of_no_hits_has_a_width() -> None:
    assert wilson(0, 800) == (0, pytest.approx(0.00478, abs=1e-5))
    low, high = wilson(10, 20)
    assert (low, high) == (pytest.approx(0.2993, abs=1e-4), pytest.approx(0.7007, abs=1e-4))
    assert wilson(20, 20)[1] == 1


def test_the_command_says_a_line_for_every_set(folder: Path, out: Path, tmp_path: Path) -> None:
    words = [
        "contamination",
        folder / "train",
        "--against",
        f"drawn={folder}/test",
        "--out",
        tmp_path,
        "--cache",
        out / "sketches",
    ]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    assert "of 61 pictures leaked" in result.output
    assert "exact 2" in result.output
    words = ["contamination", folder / "train", "--against", "no-such.tar", "--out", tmp_path / "x"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 1
    assert "no-such.tar" in result.output
