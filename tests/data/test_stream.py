from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.tars import write_shards
from vlp.data import open_records
from vlp.data.schema import DataError
from vlp.data.stream import Stream, WebDataset


def part(urls: str, **settings: object) -> WebDataset:
    return WebDataset.model_validate({"urls": urls, "samples_per_epoch": 16, "shuffle": 0, **settings})


def test_a_pass_gives_everything_and_then_goes_on(tmp_path: Path) -> None:
    write_shards(tmp_path, [5, 8, 3])
    stream = Stream(part(f"{tmp_path}/shard-00{{0..2}}.tar"), seed=0)
    first, second = ([stream.next() for _ in range(16)] for _ in range(2))
    assert sorted(sample.key for sample in first) == [f"{i:06d}" for i in range(16)]
    assert sorted(sample.key for sample in second) == [f"{i:06d}" for i in range(16)]
    assert len({sample.index for sample in first + second}) == 32
    assert set(first[0].members) == {"png", "json"}, "webdataset's end-of-shard marker is no sample"


@pytest.mark.parametrize(("shards", "each"), [([16], 8), ([5, 8, 3], 3)])
def test_ranks_share_a_pass(shards: list[int], each: int, tmp_path: Path) -> None:
    urls = "::".join(map(str, write_shards(tmp_path, shards)))
    streams = [Stream(part(urls), seed=0, rank=rank, world=2) for rank in range(2)]
    first, second = ({stream.next().key for _ in range(each)} for stream in streams)
    assert len(first) == len(second) == each
    assert not first & second


def test_shuffled_in_a_buffer(tmp_path: Path) -> None:
    write_shards(tmp_path, [30])
    stream = Stream(part(f"{tmp_path}/shard-000.tar", shuffle=10), seed=0)
    keys = [stream.next().key for _ in range(30)]
    assert keys != sorted(keys)


def test_nothing_but_damage_is_an_error_not_a_loop(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"<html>" * 500)
    with pytest.raises(DataError, match=r"no sample.*ReadError"):
        Stream(part(str(tmp_path / "a.tar")), seed=0).next()


def test_pipes_only_when_asked_for(tmp_path: Path) -> None:
    path = write_shards(tmp_path, [4])[0]
    with pytest.raises(DataError, match="allow_pipe"):
        Stream(part(f"pipe:cat {path}"), seed=0)
    stream = Stream(part(f"pipe:cat {path}", allow_pipe=True), seed=0)
    assert stream.next().key == "000000"


def test_no_positions(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="vlp data build"):
        open_records({"name": "webdataset", "urls": "x", "samples_per_epoch": 1})
