"""Damaged shards: what a run says when it opens them, what it reads, what `vlp data verify` counts; nothing is lost."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.data.tars import Letters, describe, samples, write_shards, write_tar
from tests.faults.damage import TAR_FAULTS, TarFault, header_offsets, write_damaged
from vlp.data import Data, Feed, open_records
from vlp.data import index as shard_index
from vlp.data.index import index_path
from vlp.data.reasons import REMEDIES
from vlp.data.schema import DataError, read_manifest, write_manifest
from vlp.data.shards import TarRecords
from vlp.data.transforms import Preprocess

SIZES = (3, 20, 2)  # samples of the shards; the second is damaged
KEYS = [f"{i:06d}" for i in range(sum(SIZES))]
DAMAGE = [fault for fault in TAR_FAULTS if fault.reason]
ROWS = {fault.row for fault in TAR_FAULTS} | {33, 34}


def feed(urls: Any, **settings: Any) -> Feed:
    source = {"name": "shards", "urls": str(urls), **settings}
    data = Data.model_validate({"sources": [source], "workers": 0, "batch_size": 5, "augment": None})
    return Feed(data, tokenizer=Letters(), preprocess=Preprocess(size=16), seed=0)


def served(it: Feed) -> list[str]:
    """Keys of one epoch that reach the model."""
    batches = [it.batch(step) for step in range(round(it.steps_per_epoch))]
    return sorted(
        key.split(":")[1] for batch in batches for key, valid in zip(batch.keys, batch.valid.tolist()) if valid
    )


def verify(*folders: Path | str, out: Path | None = None, **settings: Any) -> dict[str, Any]:
    from data_tools import TOOLS

    return TOOLS.build({"name": "verify", "deep": True, **settings}).run([str(folder) for folder in folders], out)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    for path in write_shards(folder, SIZES):
        shard_index.write(path, shard_index.build(path))
    describe(folder)
    return folder


def copied(whole: Path, folder: Path, *, index: bool = True, manifest: bool = True) -> Path:
    """The shards in a folder of their own; returns the one that is to be damaged."""
    shutil.copytree(whole, folder)  # with the times of the files
    for path in folder.glob("*.index"):
        if not index:
            path.unlink()
    if not manifest:
        (folder / "dataset.json").unlink()
    return folder / "shard-001.tar"


def damaged(whole: Path, folder: Path, fault: TarFault, **beside: bool) -> Path:
    shard = copied(whole, folder, **beside)
    if fault.format != tarfile.USTAR_FORMAT:  # the same samples under names that are too long for ustar
        members = [(f"{name[:6]}{'x' * 120}{name[6:]}", raw) for name, raw in samples(3, 23)]
        write_tar(shard, members, format=fault.format)
    write_damaged(shard, fault)
    return shard


@pytest.mark.parametrize("manifest", [True, False])
@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("fault", DAMAGE, ids=lambda fault: fault.name)
def test_a_damaged_tar(fault: TarFault, index: bool, manifest: bool, whole: Path, tmp_path: Path) -> None:
    shard = damaged(whole, tmp_path / "set", fault, index=index, manifest=manifest)
    lost = 20 - fault.readable

    with pytest.raises(DataError) as error:  # before the first step; without an index of it, when it is first read
        served(feed(shard.parent))
    message = str(error.value)
    known = f"manifest 20, readable {fault.readable}" if manifest else f"readable {fault.readable}"
    for part in (str(shard), "damaged at byte ", f"({fault.reason})", known, "Fetch or write the shard again"):
        assert part in message

    it = feed(shard.parent, damaged="keep")
    (records,) = it.plan.records
    notes = dict(records.notes)
    assert len(records) + notes.pop("missing_sample", 0) == sum(SIZES) - (0 if manifest else lost)
    assert notes.pop("damaged_shard") == 1
    assert notes in ({}, {"torn_sample": 1})
    assert [key[:6] for key in served(it)] == KEYS[: 3 + fault.readable] + KEYS[23:], "each whole sample, once"

    result = verify(shard.parent)
    assert result["readable"] == sum(SIZES) - lost
    assert result["missing"] == (lost if manifest else 0)
    assert result["manifest"] == (result["readable"] + result["missing"] if manifest else None)
    assert result["reasons"][fault.reason] == 1
    assert not result["ok"]
    assert "at byte" in result["examples"][fault.reason][0]
    assert set(result["reasons"]) <= REMEDIES.keys()


def test_a_tar_that_only_looks_damaged(whole: Path, tmp_path: Path) -> None:
    for number, fault in enumerate(fault for fault in TAR_FAULTS if not fault.reason):
        shard = damaged(whole, tmp_path / str(number), fault, index=False, manifest=False)
        assert served(feed(shard.parent)) == KEYS
        assert verify(shard.parent)["faults"] == 0


def test_a_fault_is_told_before_the_first_step_where_there_is_an_index(whole: Path, tmp_path: Path) -> None:
    fault = next(fault for fault in DAMAGE if fault.row == 4)  # of equal size
    with pytest.raises(DataError, match="damaged at byte"):
        feed(damaged(whole, tmp_path / "a", fault).parent)
    late = feed(damaged(whole, tmp_path / "b", fault, index=False).parent)  # nobody looked into the shard yet
    with pytest.raises(DataError, match="damaged at byte"):
        served(late)


def test_rot_that_keeps_the_time_loses_nothing_either(tmp_path: Path) -> None:
    large = bytes(100_000)  # so that the rot lies in neither end of the file
    shard = write_tar(tmp_path / "a.tar", [*samples(3, 13), ("x.bin", large), *samples(13, 23), ("y.bin", large)])
    before = shard.stat()
    shard_index.write(shard, shard_index.build(shard))
    raw, at = shard.read_bytes(), header_offsets(shard)[21]
    shard.write_bytes(raw[:at] + b"\xa5" * 100 + raw[at + 100 :])
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert served(feed(shard)) == [*KEYS[3:23]], "the index knows where the members lie, the headers are not needed"
    assert verify(shard)["reasons"]["bad_header"] == 1, "and a walk sees it"


def test_a_torn_sample_is_told_by_its_key(whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fault = next(fault for fault in DAMAGE if fault.name == "cut at a member")
    shard = damaged(whole, tmp_path / "set", fault)
    open_records({"name": "shards", "urls": str(shard.parent), "damaged": "keep"})
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert f"{shard}: 1 torn_sample, such as 000013" in said
    assert f"{shard}: 10 missing_sample" in said
    assert re.search(r"1 damaged_shard at byte \d+: 10 samples are used", said)


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("count", [19, 21, 2000])
def test_a_manifest_with_other_counts(count: int, index: bool, whole: Path, tmp_path: Path) -> None:
    shard = copied(whole, tmp_path / "set", index=index)
    manifest = read_manifest(shard.parent)
    assert manifest is not None
    wrong = tuple(e.model_copy(update={"samples": count}) if e.file == shard.name else e for e in manifest.shards)
    write_manifest(shard.parent, manifest.model_copy(update={"shards": wrong}))
    told, by = (feed, shard.parent) if index else (served, feed(shard.parent))
    with pytest.raises(DataError, match=f"shard-001.tar: dataset.json says {count} samples, the tar has 20; run"):
        told(by)  # with a side index it is told before the first step, without when the shard is first read
    result = verify(shard.parent)
    assert result["reasons"] == {"wrong_count": 1}
    assert result["missing"] == max(0, count - 20)


def test_shards_that_changed_since_a_checkpoint_are_named(whole: Path, tmp_path: Path) -> None:
    from vlp.data.plan import changed_shards

    shard = copied(whole, tmp_path / "set")
    before = feed(shard.parent)
    assert changed_shards(before.plan.shards(), feed(shard.parent).plan.shards()) == []
    members = [(name, raw.replace(b"number 9", b"number 8")) for name, raw in samples(3, 23)]
    write_tar(shard, members)
    index_path(shard).unlink()
    describe(shard.parent)
    now = feed(shard.parent)
    assert now.fingerprint != before.fingerprint, "which a checkpoint keeps, and a resume compares"
    assert changed_shards(before.plan.shards(), now.plan.shards()) == ["set/shard-001.tar holds other data"]
    (shard.parent / "shard-002.tar").rename(shard.parent / "shard-009.tar")
    describe(shard.parent)
    assert changed_shards(now.plan.shards(), feed(shard.parent).plan.shards()) == [
        "set/shard-002.tar is gone",
        "set/shard-009.tar is new",
    ]


def test_a_shard_that_changes_under_a_run(whole: Path, tmp_path: Path) -> None:
    shard = copied(whole, tmp_path / "set", manifest=False)
    records = open_records(str(shard))
    assert isinstance(records, TarRecords)
    records._indexes.clear()  # as in a loader worker that has not met the shard
    write_tar(shard, samples(50, 70))
    with pytest.raises(DataError, match="changed since this process opened it; start again"):
        records[0]
