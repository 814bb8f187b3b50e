"""The writer: plain tars, nothing half-written, and the same bytes after any number of interruptions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from data_tools.dataset import write_dataset
from data_tools.shards import find_shards, samples
from data_tools.write import Record, Reject, ShardWriter
from vlp.data import index as shard_index
from vlp.data.schema import DataError, file_sha256, read_manifest

ROOT = Path(__file__).resolve().parents[2]


class Numbers(NamedTuple):
    """A maker of tiny samples; inputs divisible by `bad` are rejected, and `stop_at` raises."""

    bad: int = 0
    stop_at: int = -1

    def items(self, start: int, stop: int) -> Iterator[Record | Reject]:
        for number in range(start, stop):
            if number == self.stop_at:
                raise KeyboardInterrupt
            if self.bad and number % self.bad == 0:
                yield Reject("divisible", str(number), "as told")
            else:
                yield Record(f"{number:04d}", {"txt": f"number {number}".encode(), "json": b'{"n": %d}' % number})


def write(out: Path, maker: Numbers, **settings: object) -> object:
    made_by = {"tool": "test", "bad": maker.bad}
    return write_dataset(out, maker, name="numbers", count=25, shard_size=10, made_by=made_by, **settings)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_tarfile_reads_what_the_writer_wrote(tmp_path):
    with ShardWriter(tmp_path / "a.tar") as writer:
        writer.write(Record("one", {"jpg": b"x" * 700, "txt": "größer 大".encode()}))
        writer.write(Record("zwei-ü", {"jpg": b"", "txt": b"t"}))
    with tarfile.open(tmp_path / "a.tar") as tar:
        members = {info.name: tar.extractfile(info).read() for info in tar}
        infos = tar.getmembers()
    assert members == {"one.jpg": b"x" * 700, "one.txt": "größer 大".encode(), "zwei-ü.jpg": b"", "zwei-ü.txt": b"t"}
    assert {(info.mtime, info.uid, info.gid, info.mode, info.uname) for info in infos} == {(0, 0, 0, 0o644, "")}
    index = shard_index.read(tmp_path / "a.tar")
    assert list(index.keys()) == ["one", "zwei-ü"]
    assert index.damage is None


@pytest.mark.parametrize("key", ["", "a.b", "../x", "a/b", "a\\b", "a\nb", "__x", "x" * 81])
def test_keys_that_would_break_readers_are_refused(tmp_path, key):
    with pytest.raises(DataError, match="key"), ShardWriter(tmp_path / "a.tar") as writer:
        writer.write(Record(key, {"txt": b"t"}))
    assert list(tmp_path.iterdir()) == []


def test_a_key_may_not_come_twice(tmp_path):
    with ShardWriter(tmp_path / "a.tar") as writer:
        writer.write(Record("a", {"txt": b"1"}))
        with pytest.raises(DataError, match="twice"):
            writer.write(Record("a", {"txt": b"2"}))


def test_rejects_are_counted_and_listed(tmp_path):
    written = write(tmp_path, Numbers(bad=7))
    assert written.samples == 21
    assert written.skipped == {"divisible": 4}
    lines = [json.loads(line) for line in (tmp_path / "skips.jsonl").read_text().splitlines()]
    assert [(line["key"], line["shard"]) for line in lines] == [
        ("0", "000000.tar"),
        ("7", "000000.tar"),
        ("14", "000001.tar"),
        ("21", "000002.tar"),
    ]
    assert [entry.samples for entry in read_manifest(tmp_path).shards] == [8, 9, 4]
    keys = [sample.key for shard in find_shards([str(tmp_path)]) for sample in samples(shard)]
    assert keys == [f"{n:04d}" for n in range(25) if n % 7]


def test_interrupted_and_run_again_gives_the_bytes_of_one_run(tmp_path):
    write(tmp_path / "whole", Numbers())
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "cut", Numbers(stop_at=15))
    assert sorted(contents(tmp_path / "cut")) == ["000000.tar", "000000.tar.index"]
    before = (tmp_path / "cut/000000.tar").stat().st_mtime_ns
    written = write(tmp_path / "cut", Numbers())
    assert written.kept == 1
    assert (tmp_path / "cut/000000.tar").stat().st_mtime_ns == before
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_shard_that_changed_is_written_again(tmp_path):
    write(tmp_path, Numbers())
    good = contents(tmp_path)
    raw = bytearray(good["000001.tar"])
    raw[600] ^= 1
    (tmp_path / "000001.tar").write_bytes(raw)
    (tmp_path / "000002.tar").unlink()
    assert write(tmp_path, Numbers()).kept == 1
    assert contents(tmp_path) == good


def test_a_folder_with_shards_of_others_is_left_alone(tmp_path):
    (tmp_path / "mine.tar").write_bytes(b"precious")
    with pytest.raises(DataError, match="other settings"):
        write(tmp_path, Numbers())
    assert (tmp_path / "mine.tar").read_bytes() == b"precious"


def test_a_shard_without_samples_is_no_shard(tmp_path):
    written = write(tmp_path, Numbers(bad=1))
    assert written.samples == 0
    assert read_manifest(tmp_path).shards == ()
    assert not list(tmp_path.glob("*.tar"))


@pytest.mark.slow
def test_killed_in_the_middle_and_run_again(tmp_path):
    def command(out: Path) -> list[str]:
        options = ["--count", "1200", "--shard-size", "100", "--workers", "2"]
        return [sys.executable, "-m", "data_tools", "scenes", str(out), *options]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command(tmp_path / "cut"), cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.DEVNULL
    )
    end = time.monotonic() + 60
    while len(list((tmp_path / "cut").rglob("*.tar"))) < 3 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    (tmp_path / "cut/train/.000011.tar.index.half.tmp").touch()  # as a kill at the worst moment leaves it
    assert not (tmp_path / "cut/train/dataset.json").exists(), "it was over before it was killed"
    for out in ("cut", "whole"):
        subprocess.run(command(tmp_path / out), cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert contents(tmp_path / "cut/train") == contents(tmp_path / "whole/train")
    for entry in read_manifest(tmp_path / "cut/train").shards:
        assert file_sha256(tmp_path / "cut/train" / entry.file) == entry.sha256
