from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.tars import describe, samples, write_shards, write_tar
from vlp.config import ConfigError, validate
from vlp.data import index as shard_index
from vlp.data import open_records
from vlp.data.index import Place
from vlp.data.reader import MemberReader
from vlp.data.remote import ShardCache
from vlp.data.schema import DataError, read_manifest, write_manifest
from vlp.data.settings import Data
from vlp.data.shards import Shards, TarRecords
from vlp.data.sources import as_source, groups_of
from vlp.data.splits import in_validation, read_keys, write_split
from vlp.types import BadSampleError

OPENSTAX = Path(__file__).parents[3] / "shared" / "data" / "openstax_figures"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path / "set", [5, 0, 8, 3])
    return tmp_path / "set"


def test_records_are_in_order_and_whole(folder: Path) -> None:
    records = open_records(str(folder))
    assert len(records) == 16
    read = [records[i] for i in range(16)]
    assert [sample.key for sample in read] == [f"{i:06d}" for i in range(16)]
    assert [sample.index for sample in read] == list(range(16))
    assert {f"{s.key}.{e}": raw for s in read for e, raw in s.members.items()} == dict(samples(0, 16))
    assert read[5].shard == "shard-002.tar"
    assert records.name(15) == ("shard-003.tar", "000015")
    assert records[-1].key == "000015"
    with pytest.raises(IndexError):
        records[16]


def test_only_some_members(folder: Path) -> None:
    records = open_records({"name": "shards", "urls": str(folder), "members": ["json"]})
    assert set(records[3].members) == {"json"}
    assert set(open_records(str(folder)).read(3, ("png",)).members) == {"png"}


def test_manifest_gives_counts_without_reading_tars(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    describe(folder)
    monkeypatch.setattr(shard_index, "read_or_build", lambda *a, **k: pytest.fail("an index was read"))
    records = open_records(str(folder))
    assert records.sizes.tolist() == [5, 0, 8, 3]
    assert records.facts[0].digest


def test_stale_manifests_are_found(folder: Path) -> None:
    describe(folder)
    write_tar(folder / "shard-000.tar", samples(0, 30))
    with pytest.raises(DataError, match=r"shard-000.tar: has \d+ bytes, dataset.json says"):
        open_records(str(folder))
    manifest = read_manifest(folder)
    assert manifest is not None
    wrong = manifest.shards[2].model_copy(update={"samples": 7})
    write_manifest(folder, manifest.model_copy(update={"shards": (wrong,)}))
    with pytest.raises(DataError, match="says 7 samples, the tar has 8"):
        open_records(str(folder))[0]


def test_a_bad_manifest_names_the_field(folder: Path) -> None:
    (folder / "dataset.json").write_text(
        '{"schema": 1, "name": "x", "shards": [{"file": "a.tar", "samples": -1, "bytes": 0}]}'
    )
    with pytest.raises(DataError, match=r"dataset.json.*shards.0.samples"):
        open_records(str(folder))


def test_fingerprint_follows_content_not_place(folder: Path, tmp_path: Path) -> None:
    first = open_records(str(folder)).fingerprint
    folder.rename(tmp_path / "moved")
    assert open_records(str(tmp_path / "moved")).fingerprint == first
    for path in (tmp_path / "moved").iterdir():
        os.utime(path, ns=(10**18, 10**18))
    assert open_records(str(tmp_path / "moved")).fingerprint == first, "no time of the shard's file is in it"
    other = [(name, raw.replace(b"number", b"rebmun")) for name, raw in samples(13, 16)]
    write_tar(tmp_path / "moved" / "shard-003.tar", other)
    assert open_records(str(tmp_path / "moved")).fingerprint != first, "as many samples and bytes as before"


def test_damaged_shards_stop_or_are_kept(folder: Path) -> None:
    path = folder / "shard-002.tar"
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(DataError, match=r"shard-002.tar: damaged at byte"):
        open_records(str(folder))
    records = open_records({"name": "shards", "urls": str(folder), "damaged": "keep"})
    assert records.sizes[2] < 8
    assert records.notes == {"damaged_shard": 1}


def test_only_damaged_shards_is_an_error_not_a_loop(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"<html>" * 500)
    with pytest.raises(DataError, match=r"no samples \(1 damaged_shard\)"):
        open_records({"name": "shards", "urls": str(tmp_path / "a.tar"), "damaged": "keep"})


def keep_list(path: Path) -> Path:
    keys = ["000001", "000007", "000015"]
    if path.suffix == ".txt":
        path.write_text("\n".join(keys))
    elif path.suffix == ".csv":
        path.write_text("shard,key,keep\n" + "".join(f"x/{s},{k},{v}\n" for s, k, v in ROWS))
    else:
        pq.write_table(pa.table({"key": [*keys, "000002"], "keep": [True, True, True, False]}), path)
    return path


ROWS = [
    ("shard-000.tar", "000001", "true"),
    ("shard-002.tar", "000007", "True"),
    ("shard-003.tar", "000015", "1"),
    ("shard-000.tar", "000015", "1"),
    ("shard-000.tar", "000002", "false"),
]


@pytest.mark.parametrize("end", ["txt", "csv", "parquet"])
def test_keep_lists(end: str, folder: Path, tmp_path: Path) -> None:
    keep = keep_list(tmp_path / f"keep.{end}")
    records = open_records({"name": "shards", "urls": str(folder), "keep": str(keep)})
    assert [records[i].key for i in range(len(records))] == ["000001", "000007", "000015"]
    assert [records[i].index for i in range(3)] == [0, 1, 2]
    assert records.sizes.tolist() == [1, 0, 1, 1]
    assert records.notes["not_in_keep_list"] == 13


def test_a_keep_list_that_matches_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("1\n")
    with pytest.raises(DataError, match='matches none of 16 samples: it has "1", the source "000000"'):
        open_records({"name": "shards", "urls": str(folder), "keep": str(tmp_path / "keep.txt")})
    with pytest.raises(DataError, match="no such file"):
        read_keys(tmp_path / "none.txt")
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="has a column key; this one has a, b"):
        read_keys(tmp_path / "bad.csv")


def test_split_by_group_parts_no_group(tmp_path: Path) -> None:
    write_shards(tmp_path, [40, 40])
    base = {"name": "shards", "urls": str(tmp_path), "group_by": "book", "validation_fraction": 0.3}
    sides = {split: open_records({**base, "split": split}) for split in ("train", "validation")}
    groups = {split: set(groups_of(records, "book")) for split, records in sides.items()}
    assert not groups["train"] & groups["validation"]
    assert len(sides["train"]) + len(sides["validation"]) == 80
    assert 0.15 <= len(sides["validation"]) / 80 <= 0.6
    with pytest.raises(DataError, match="colour"):
        open_records({**base, "split": "train", "group_by": "colour"})


def test_split_of_keys_is_a_pure_function_of_the_key() -> None:
    keys = [f"{i:06d}" for i in range(4000)]
    chosen = in_validation(keys, 0.05)
    assert 0.04 < chosen.mean() < 0.06
    assert in_validation(keys[:2000], 0.05).tolist() == chosen[:2000].tolist()


@pytest.mark.parametrize("groups", [["a"] * 10, ["a"] * 50 + ["b"] * 50, list("abcdefg") * 9])
def test_few_groups_still_give_both_sides_where_they_can(groups: list[str]) -> None:
    chosen = in_validation(groups, 0.05)
    assert chosen.any()
    assert len(set(groups)) == 1 or not chosen.all()


def test_a_written_split_is_read_back(folder: Path, tmp_path: Path) -> None:
    records = open_records(str(folder))
    keys = [records.name(i)[1] for i in range(16)]
    path = write_split(tmp_path / "split.csv", keys, groups_of(records, "book"), fraction=0.2)
    base = {"name": "shards", "urls": str(folder), "group_by": "book", "validation_fraction": 0.2}
    for split in ("train", "validation"):
        by_file = open_records({**base, "split": split, "split_file": str(path)})
        assert by_file.fingerprint == open_records({**base, "split": split}).fingerprint
    path.write_text("key,split\n000001,train\n")
    with pytest.raises(DataError, match="does not know 15 keys"):
        open_records({**base, "split": "train", "split_file": str(path)})


def test_reader_spans_gaps_and_names_short_files(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(range(256)) * 400)
    reader = MemberReader()
    assert reader.read(path, {"a": Place(0, 3), "b": Place(90_000, 2)}) == {"a": b"\0\1\2", "b": bytes([144, 145])}
    assert reader.read(path, {"a": Place(10, 3), "b": Place(20, 0)}) == {"a": b"\n\x0b\x0c", "b": b""}
    with pytest.raises(BadSampleError, match=r"unreadable.*short"):
        reader.read(path, {"a": Place(102_300, 200)})
    with pytest.raises(BadSampleError, match="unreadable"):
        reader.read(tmp_path / "none", {"a": Place(0, 1)})
    assert pickle.loads(pickle.dumps(reader)).read(path, {"a": Place(1, 1)}) == {"a": b"\1"}
    for number in range(200):
        (tmp_path / str(number)).write_bytes(b"z")
        assert reader.read(tmp_path / str(number), {"a": Place(0, 1)}) == {"a": b"z"}
    assert len(reader._files) <= 64
    reader.close()


@pytest.fixture
def memory(folder: Path) -> Iterator[str]:
    """The shards on fsspec's in-memory file system."""
    import fsspec

    fs = fsspec.filesystem("memory")
    for path in folder.iterdir():
        fs.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    yield "memory://bucket"
    fs.rm("/bucket", recursive=True)


def open_remote(url: str, cache: Path, **settings: float) -> TarRecords:
    part = as_source(url)
    assert isinstance(part, Shards)
    return part.open(ShardCache(folder=str(cache), **settings))


def test_remote_shards_through_the_cache(memory: str, tmp_path: Path) -> None:
    records = open_remote(f"{memory}/shard-00{{0,2,3}}.tar", tmp_path / "cache")
    assert len(records) == 16
    assert [records[i].key for i in (0, 7, 15)] == ["000000", "000007", "000015"]
    assert len(open_remote(f"{memory}/shard-*.tar", tmp_path / "cache")) == 16
    with pytest.raises(DataError, match=r"1 of 2 shards are missing.*shard-009"):
        open_remote(f"{memory}/shard-00{{0,9}}.tar", tmp_path / "cache")


def test_the_cache_keeps_to_its_cap(memory: str, tmp_path: Path) -> None:
    records = open_remote(f"{memory}/shard-00{{0,2,3}}.tar", tmp_path / "cache", max_gb=30_000 / 1e9)
    for i in (0, 7, 15, 0, 7):
        assert records[i].key == f"{i:06d}"
    kept = list((tmp_path / "cache").glob("*.tar"))
    assert len(kept) < 3
    assert not list((tmp_path / "cache").glob(".*"))


def test_a_remote_manifest_and_its_hashes(folder: Path, tmp_path: Path) -> None:
    import fsspec

    describe(folder)
    fs = fsspec.filesystem("memory")
    for path in folder.iterdir():
        fs.pipe_file(f"/other/{path.name}", path.read_bytes())
    records = open_remote("memory://other/shard-00{0,2}.tar", tmp_path / "cache")
    assert len(records) == 13
    assert not (tmp_path / "cache").exists(), "counts come from the manifest"
    raw = bytearray(fs.cat_file("/other/shard-002.tar"))
    raw[700] ^= 1
    fs.pipe_file("/other/shard-002.tar", bytes(raw))
    assert records[0].key == "000000"
    with pytest.raises(DataError, match="its sha256 is"):
        records[5]
    fs.rm("/other", recursive=True)


@pytest.mark.parametrize("described", [False, True])
def test_an_evicted_shard_is_verified_when_it_comes_again(described: bool, folder: Path, tmp_path: Path) -> None:
    import fsspec

    if described:
        describe(folder)
    fs = fsspec.filesystem("memory")
    home, cache = f"/again{described}", tmp_path / "cache"
    for path in folder.iterdir():
        fs.pipe_file(f"{home}/{path.name}", path.read_bytes())
    records = open_remote(f"memory:/{home}/shard-002.tar", cache)

    def evict() -> None:
        for path in cache.glob("*.tar"):
            path.unlink()
        records.reader.close()

    assert records[0].key == "000005"
    evict()
    assert records[2].key == "000007", "fetched again, in spite of what was known of its place"
    raw = fs.cat_file(f"{home}/shard-002.tar")
    fs.pipe_file(f"{home}/shard-002.tar", raw.replace(b"number 12", b"number 99"))
    evict()
    with pytest.raises(DataError, match="its sha256 is" if described else "came anew with other bytes"):
        records[3]
    fs.rm(home, recursive=True)


def test_the_cache_is_not_asked_for_every_sample(memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = open_remote(f"{memory}/shard-00{{0,2}}.tar", tmp_path / "cache")
    asked: list[str] = []
    real = ShardCache.local

    def local(self: ShardCache, url: str, **known: Any) -> Path:
        asked.append(url)
        return real(self, url, **known)

    monkeypatch.setattr(ShardCache, "local", local)
    for i in range(13):
        assert records[i].key == f"{i:06d}"
    assert len(asked) == 2


def test_settings_are_checked_with_their_path(folder: Path) -> None:
    def fault(**values: object) -> str:
        with pytest.raises(ConfigError) as error:
            validate(Data, {"sources": [{"name": "shards", "urls": str(folder)}], **values}, where="x")
        return str(error.value)

    assert 'sources.0.urlz: unknown field; did you mean "urls"' in fault(sources=[{"name": "shards", "urlz": "a"}])
    assert 'unknown source "shard"; did you mean "shards"' in fault(sources=["shard"])
    assert "streams: 7 does not divide batch_size: 64" in fault(batch_size=64, streams=7)
    assert "captions: 3, but no source gives more than 1" in fault(captions=3)
    one = {"name": "shards", "urls": "a"}
    assert "every source a weight, or none" in fault(sources=[{**one, "weight": 1}, one])
    assert "labels: not read with kind: caption; set kind: label" in fault(sources=[{**one, "labels": {"field": "id"}}])
    told = {"captions": {"fields": ["txt"]}, "labels": {"field": "id", "templates": ["a {}"]}}
    assert "labels.templates: not used where captions say" in fault(sources=[{**one, "kind": "label", **told}])
    assert "5 captions a picture" in fault(sources=[{**one, "captions": {"pick": "all", "count": 5}}])


@pytest.mark.skipif(not OPENSTAX.is_dir(), reason="../shared/data/openstax_figures is not here")
def test_openstax_is_all_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLP_CACHE", str(tmp_path))
    records = open_records(f"{OPENSTAX}/train-{{000000..000003}}.tar")
    assert len(records) == 7998
    assert records.notes == {}
    assert {tuple(sorted(records.read(i).members)) for i in range(len(records))} == {("jpg", "json")}
    validation = open_records(
        {"name": "shards", "urls": f"{OPENSTAX}/train-*.tar", "split": "validation", "group_by": "book"}
    )
    assert 0.02 * 7998 < len(validation) < 0.11 * 7998


def test_an_unreadable_json_is_its_own_group(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [*samples(0, 3), ("x.json", b"{broken")])
    assert groups_of(open_records(str(tmp_path)), "book") == ["book 0", "book 1", "book 2", "x"]
