from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.tars import write_shards
from vlp.data.schema import DataError, DatasetManifest, shard_entry, write_manifest
from vlp.data.urls import resolve


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_shards(tmp_path / "set", [1] * 8)
    return tmp_path / "set"


def names(urls: list[str]) -> list[str]:
    return [Path(url).stem[-1] for url in urls]


def test_every_way_of_writing_it(folder: Path) -> None:
    assert names(resolve(f"{folder}/shard-00{{2..4}}.tar")) == ["2", "3", "4"]
    assert names(resolve(f"{folder}/shard-00[01].tar")) == ["0", "1"]
    assert names(resolve(f"{folder}/shard-000.tar::{folder}/shard-007.tar")) == ["0", "7"]
    assert names(resolve([f"{folder}/shard-00{{0,3}}.tar", f"{folder}/*5.tar"])) == ["0", "3", "5"]
    assert len(resolve(str(folder))) == 8
    assert len(resolve(f"file://{folder}/shard-*.tar")) == 8


def test_a_folder_with_a_manifest_gives_what_it_lists(folder: Path) -> None:
    entries = tuple(shard_entry(folder / f"shard-00{i}.tar", samples=1, index=False) for i in (5, 2))
    write_manifest(folder, DatasetManifest(name="x", shards=entries))
    assert names(resolve(str(folder))) == ["5", "2"]


def test_all_missing_shards_at_once(folder: Path) -> None:
    with pytest.raises(DataError) as error:
        resolve(f"{folder}/shard-00{{0..9}}.tar")
    assert "2 of 10 shards are missing" in str(error.value)
    assert "shard-008.tar" in str(error.value)
    assert "shard-009.tar" in str(error.value)


def test_a_glob_without_match_names_pattern_place_and_neighbours(folder: Path) -> None:
    with pytest.raises(DataError) as error:
        resolve(f"{folder}/shrad-*.tar")
    assert f"{folder}/shrad-*.tar" in str(error.value)
    assert str(Path.cwd()) in str(error.value)
    assert "shard-00" in str(error.value)
    with pytest.raises(DataError, match='did you mean "set"'):
        resolve(f"{folder.parent}/sets/shard-*.tar")


@pytest.mark.parametrize("url", ["pipe:cat x.tar", "-", "a.tar::pipe:rm -rf x"])
def test_pipes_are_refused(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "a.tar").write_bytes(b"")
    with pytest.raises(DataError, match="allow_pipe"):
        resolve(url)


def test_twice_and_nothing_and_bombs(folder: Path) -> None:
    with pytest.raises(DataError, match="listed twice"):
        resolve([f"{folder}/shard-000.tar"] * 2)
    with pytest.raises(DataError, match="empty"):
        resolve(" :: ")
    with pytest.raises(DataError, match="more than"):
        resolve("x{0..9999999999}.tar")
    (folder / "none").mkdir()
    with pytest.raises(DataError, match=r"without \*.tar"):
        resolve(str(folder / "none"))


def test_a_path_with_brackets_in_its_name(tmp_path: Path) -> None:
    odd = write_shards(tmp_path / "set [1] {a,b}", [1])[0]
    assert resolve(str(odd)) == [str(odd)]
