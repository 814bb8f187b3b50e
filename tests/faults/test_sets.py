"""Sets of shards that are not what was asked for: missing, mixed up, too few; keys that come twice or lie apart."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools import TOOLS
from tests.data.tars import Letters, describe, picture, samples, write_shards, write_tar
from vlp.data import Data, Feed
from vlp.data import index as shard_index
from vlp.data.index_format import MAGIC
from vlp.data.schema import DataError
from vlp.data.transforms import Preprocess

TEXT = b'{"caption": "a cat"}'
PICTURE = picture(0)


class SetFault(NamedTuple):
    """`make` fills a folder and returns what is asked for: a pattern of shards, or a source."""

    row: int
    name: str
    make: Callable[[Path], Any]
    error: str = ""  # of opening it; empty: it opens
    keys: tuple[str, ...] = ()  # of the samples that reach the model in one epoch
    notes: dict[str, int] = {}
    skips: dict[str, int] = {}
    verified: dict[str, int] | None = None  # what `verify` counts; None: it stops with an error of its own


def shards(folder: Path) -> Path:
    """5 and 6 samples, described, with side indexes."""
    for path in write_shards(folder, [5, 6]):
        shard_index.write(path, shard_index.build(path))
    describe(folder)
    return folder


def without_second(folder: Path) -> Path:
    (shards(folder) / "shard-001.tar").unlink()
    return folder


def page(folder: Path) -> dict[str, Any]:
    (folder / "0.tar").write_bytes(b"<!DOCTYPE html><html>404</html>" * 40)
    return {"name": "shards", "urls": str(folder), "damaged": "keep"}


def tar(*members: tuple[str, bytes]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write_tar(folder / "0.tar", members)
        return folder

    return make


def two_tars(folder: Path) -> Path:
    for number in (0, 1):
        write_tar(folder / f"{number}.tar", samples(number, number + 2))
    return folder


def with_index(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    """A side index of the first shard that is not what was written."""

    def make(folder: Path) -> Path:
        side = shard_index.index_path(shards(folder) / "shard-000.tar")
        side.write_bytes(change(side.read_bytes()))
        return folder

    return make


def resealed(raw: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A side index with other arrays and a checksum that bears them out."""
    line, _, body = raw[len(MAGIC) :].partition(b"\n")
    other = zlib.compress(change(zlib.decompress(body)))
    head = line.replace(b'"crc32": %d' % zlib.crc32(body), b'"crc32": %d' % zlib.crc32(other))
    return MAGIC + head + b"\n" + other


def cut_parquet(folder: Path) -> dict[str, Any]:
    pq.write_table(pa.table({"image": [PICTURE], "caption": ["a cat"]}), folder / "t.parquet")
    (folder / "t.parquet").write_bytes((folder / "t.parquet").read_bytes()[:-20])
    return {"name": "csv", "path": str(folder / "t.parquet")}


KEYS = tuple(f"{i:06d}" for i in range(11))
INDEXED = {"keys": KEYS, "verified": {"bad_index": 1}}
DOTTED = tar(("i.v1.png", PICTURE), ("i.v1.json", TEXT), ("i.v2.png", PICTURE), ("i.v2.json", TEXT))
SET_FAULTS = (
    SetFault(10, "shards of a pattern missing", lambda f: f"{shards(f)}/shard-00{{0..3}}.tar",
             r"2 of 4 shards are missing .*shard-002\.tar, .*shard-003\.tar",
             verified={"missing_shard": 2, "no_manifest": 2}),
    SetFault(10, "a shard of dataset.json missing", without_second, r"1 of 2 shards are missing .*shard-001\.tar",
             verified={"missing_shard": 1}),
    SetFault(11, "glob matches nothing", lambda f: f"{shards(f)}/shart-*.tar",
             r'no shard matches ".*shart-\*\.tar" \(in '),
    SetFault(12, "a web page as the only shard", page, r"no samples \(1 damaged_shard\); run `vlp data verify`",
             verified={"no_manifest": 1, "not_a_tar": 1}),
    SetFault(14, "a key twice, adjacent", tar(("a.png", PICTURE), ("a.json", TEXT), ("a.png", b"2"), ("a.json", TEXT)),
             keys=("a",), notes={"dup_key": 1}, verified={"no_manifest": 1, "dup_key": 1}),
    SetFault(14, "a member twice", tar(("a.png", PICTURE), ("a.png", b"2"), ("a.json", TEXT)),
             notes={"dup_key": 1}, skips={"no_caption": 1},  # whose is the JSON? the second picture's, more likely
             verified={"no_manifest": 1, "dup_key": 1, "no_caption": 1}),
    SetFault(15, "a key twice, apart",
             tar(("a.png", PICTURE), ("a.json", TEXT), ("b.png", PICTURE), ("b.json", TEXT), ("a.png", b"2")),
             keys=("a", "b"), notes={"dup_key": 1}, verified={"no_manifest": 1, "dup_key": 1}),
    SetFault(15, "a key in two shards", two_tars, keys=("000000", "000001", "000001", "000002"),
             verified={"no_manifest": 2, "dup_key": 1}),
    SetFault(16, "members of a sample apart", tar(*samples(0, 6)[::2], *samples(0, 6)[1::2]), keys=KEYS[:6],
             notes={"orphan_member": 6}, verified={"no_manifest": 1, "orphan_member": 6}),
    SetFault(17, "dots in keys", DOTTED, notes={"dotted_key": 1}, skips={"no_caption": 1},
             verified={"no_manifest": 1, "dotted_key": 1, "no_image": 1, "no_caption": 1}),
    SetFault(17, "dots in keys, last-dot",
             lambda f: {"name": "shards", "urls": str(DOTTED(f)), "key_split": "last-dot"}, keys=("i.v1", "i.v2"),
             verified={"no_manifest": 1, "dotted_key": 1, "no_image": 1, "no_caption": 1}),
    SetFault(75, "side index cut", with_index(lambda raw: raw[:-9]), **INDEXED),
    SetFault(75, "side index with a flipped bit", with_index(lambda raw: raw[:-9] + b"\1" + raw[-8:]), **INDEXED),
    SetFault(75, "side index of another shard's arrays",
             with_index(lambda raw: resealed(raw, lambda body: b"\xff" * 8 + body[8:])), **INDEXED),
    SetFault(75, "side index that unpacks to 64 MB",
             with_index(lambda raw: resealed(raw, lambda body: body + bytes(64 << 20))), **INDEXED),
    SetFault(75, "parquet cut", cut_parquet, r"t\.parquet: no parquet file, or not whole: .*; fetch or write it again"),
)  # fmt: skip
ROWS = {fault.row for fault in SET_FAULTS} | {13}


def feed(source: Any, **settings: Any) -> Feed:
    source = source if isinstance(source, dict) else {"name": "shards", "urls": str(source)}
    place = {name: settings.pop(name) for name in ("rank", "world") if name in settings}
    given = {"workers": 0, "batch_size": 2, "augment": None, **settings}
    data = Data.model_validate({"sources": [source], **given})
    return Feed(data, tokenizer=Letters(), preprocess=Preprocess(size=16), seed=0, **place)


@pytest.mark.parametrize("fault", SET_FAULTS, ids=lambda fault: fault.name)
def test_a_set_that_is_not_what_was_asked_for(fault: SetFault, tmp_path: Path) -> None:
    source = fault.make(tmp_path)
    found = source["urls"] if isinstance(source, dict) and "urls" in source else source
    if fault.verified is not None:  # first, as opening mends what it may
        result = TOOLS.build({"name": "verify", "deep": True}).run([str(found)])
        assert result["reasons"] == fault.verified
        if result["manifest"] is not None:
            assert result["readable"] + result["missing"] == result["manifest"] == 11
    elif not isinstance(found, dict):
        with pytest.raises(DataError, match="no shard matches"):
            TOOLS.build({"name": "verify"}).run([str(found)])
    if fault.error:
        with pytest.raises(DataError, match=rf"^data.sources.0 .*{fault.error}"):
            feed(source)
        return
    it = feed(source)
    assert it.plan.records[0].notes == fault.notes
    batches = [it.batch(step) for step in range(round(it.steps_per_epoch))]
    served = [key for batch in batches for key, valid in zip(batch.keys, batch.valid.tolist()) if valid]
    assert sorted(key.rpartition(":")[2] for key in served) == sorted(fault.keys)
    assert len(set(served)) == len(served), "no sample twice"
    assert Counter(skip.reason for batch in batches for skip in batch.skips) == fault.skips


def test_samples_of_one_key_in_two_shards_are_positives_if_asked(tmp_path: Path) -> None:
    batch = feed(two_tars(tmp_path), batch_size=4, same_caption_same_label=True).batch(0)
    label = dict(zip(batch.keys, batch.label.tolist()))
    assert label["0.tar:000001"] == label["1.tar:000001"]
    assert len(set(label.values())) == 3


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_one_shard_for_four_ranks_of_two_workers(tmp_path: Path) -> None:
    write_shards(tmp_path, [13])
    served = []
    for rank in range(4):
        it = feed(tmp_path, batch_size=4, workers=2, rank=rank, world=4)
        served += [key for batch in it.batches(0, 4) for key in batch.keys if key]
    assert sorted(served) == [f"shard-000.tar:{key}" for key in (*KEYS, "000011", "000012")]
