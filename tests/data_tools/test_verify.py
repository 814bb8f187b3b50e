"""`verify` and `index` on whole and damaged sets: readable and missing add up, every fault is named."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_tools import TOOLS
from data_tools.indexing import Index
from data_tools.scenes.tool import Scenes
from data_tools.verify import Verify
from vlp.data import index as shard_index
from vlp.data.schema import DataError, read_manifest


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes")
    Scenes(count=20, shard_size=10).run([], out)
    return out / "train"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def check(*inputs: Path, **settings: Any) -> dict[str, Any]:
    return TOOLS.build({"name": "verify", **settings}).run([str(path) for path in inputs])


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 60).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def test_a_whole_set_is_ok(whole):
    result = check(whole, deep=True)
    assert result["ok"]
    assert (result["manifest"], result["readable"], result["missing"], result["reasons"]) == (20, 20, 0, {})


def test_a_cut_shard_readable_and_missing_make_the_manifest(copy):
    raw = (copy / "000001.tar").read_bytes()
    offset = shard_index.build(copy / "000001.tar").members(6)["jpg"].offset
    (copy / "000001.tar").write_bytes(raw[: offset + 100])
    result = check(copy)
    assert not result["ok"]
    assert result["readable"] == 16
    assert result["readable"] + result["missing"] == result["manifest"] == 20
    assert {"cut_member", "wrong_count", "wrong_bytes"} <= set(result["reasons"])
    assert "000001.tar" in result["examples"]["cut_member"][0]


def test_a_missing_shard_counts_all_its_samples(copy):
    (copy / "000000.tar").unlink()
    result = check(copy)
    assert result["reasons"] == {"missing_shard": 1}
    assert (result["readable"], result["missing"]) == (10, 10)
    assert not result["ok"]


def test_flipped_bytes_are_found_by_deep_only(copy):
    shard = copy / "000000.tar"
    shard_index.index_path(shard).unlink()  # of a small shard it knows every byte
    place = shard_index.build(shard).members(3)["jpg"]
    raw = bytearray(shard.read_bytes())
    raw[place.offset + place.size // 2] ^= 0x10
    shard.write_bytes(raw)
    assert check(copy)["ok"]
    assert check(copy, deep=True)["reasons"]["wrong_sha256"] == 1


def test_bad_samples_are_counted_by_reason(tmp_path):
    good = jpeg()
    text = json.dumps({"caption": "fine"}).encode()
    members = {"a.jpg": good, "a.json": text, "b.jpg": good[:-300], "b.json": text, "c.jpg": b"<html>", "c.json": text}
    members |= {"d.txt": b"words", "e.jpg": good, "e.txt": b"  ", "f.jpg": good, "f.txt": b"\xff\xfe", "../g.jpg": good}
    tar(tmp_path / "x.tar", members)
    result = check(tmp_path / "x.tar", deep=True)
    assert result["readable"] == 6
    assert result["manifest"] is None
    expected = {
        "truncated_image": 1,
        "not_image": 1,
        "no_image": 1,
        "empty_caption": 1,
        "bad_encoding": 1,
        "hostile_member": 1,
    }
    assert result["reasons"] == {"no_manifest": 1, **expected}
    assert result["faults"] == 6  # a missing manifest is a warning


def test_a_key_in_two_shards_of_one_set(tmp_path):
    for name in ("train-0", "train-1", "test-0"):
        tar(tmp_path / f"{name}.tar", {"a.jpg": jpeg(), "a.txt": b"one"})
    result = check(tmp_path)
    assert result["reasons"]["dup_key"] == 1  # test is another set
    assert "train-0" in result["examples"]["dup_key"][0]


def test_repeated_and_shared_captions(tmp_path):
    for name, text in (("a", b"A red star."), ("b", b"a RED star")):
        (tmp_path / name).mkdir()
        tar(tmp_path / name / "0.tar", {"1.jpg": jpeg(), "1.txt": text, "2.jpg": jpeg(), "2.txt": b"ring " + text})
    assert check(tmp_path / "a", unique_captions=True)["ok"]
    shared = check(tmp_path / "a", disjoint=(tmp_path / "b",))
    assert shared["reasons"]["shared_caption"] == 2
    assert not shared["ok"]
    tar(tmp_path / "a/1.tar", {"3.jpg": jpeg(), "3.txt": b"a red  star!"})
    assert check(tmp_path / "a", unique_captions=True)["reasons"]["repeated_caption"] == 1


def test_a_stale_side_index_is_a_fault(copy):
    index = shard_index.build(copy / "000000.tar")
    other = shard_index.build(copy / "000001.tar")
    shard_index.write(copy / "000000.tar", other.__class__(**{**_fields(other), "bytes": index.bytes}))
    assert check(copy)["reasons"] == {"bad_index": 1}


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def test_index_makes_foreign_shards_a_set(tmp_path):
    for number in range(3):
        members = {f"{number}{i}.{e}": jpeg() if e == "jpg" else b"t" for i in range(4) for e in ("jpg", "txt")}
        tar(tmp_path / f"part{number}.tar", members)
    result = Index().run([str(tmp_path / "part{0..2}.tar")])
    assert (result["shards"], result["samples"], result["damaged"]) == (3, 12, [])
    assert read_manifest(tmp_path).samples == 12
    assert check(tmp_path, deep=True)["ok"]
    elsewhere = tmp_path / "elsewhere"
    Index().run([str(tmp_path)], elsewhere)
    assert (elsewhere / "part0.tar.index").is_file()


def test_index_stops_at_damage_and_at_nothing(tmp_path):
    tar(tmp_path / "x.tar", {"a.jpg": jpeg(), "a.txt": b"t", "b.jpg": jpeg(), "b.txt": b"t"})
    raw = (tmp_path / "x.tar").read_bytes()
    offset = shard_index.build(tmp_path / "x.tar").members(1)["jpg"].offset
    (tmp_path / "x.tar").write_bytes(raw[: offset + 10])
    with pytest.raises(DataError, match=r"x\.tar: damaged"):
        Index().run([str(tmp_path / "x.tar")])
    assert Index(keep_damaged=True).run([str(tmp_path / "x.tar")])["samples"] == 1
    with pytest.raises(DataError, match="no shard matches"):
        Index().run([str(tmp_path / "nothing-*.tar")])
    with pytest.raises(DataError, match="2 shards are missing"):
        Index().run([str(tmp_path / "y{0,1}.tar")])


def test_reading_tools_write_nothing_beside_the_shards(copy):
    for path in [*copy.glob("*.index")]:
        path.unlink()
    before = sorted(path.name for path in copy.iterdir())
    check(copy, deep=True)
    TOOLS.build({"name": "stats", "tokenizer": ""}).run([copy])
    assert sorted(path.name for path in copy.iterdir()) == before


def test_real_shards_are_whole():
    folder = Path(__file__).resolve().parents[3] / "shared/data/tiny_coco_cc"
    if not folder.is_dir():
        pytest.skip("the real data sets are not on this machine")
    result = Verify(deep=True).run([folder])
    assert result["ok"]
    assert result["readable"] == 33
