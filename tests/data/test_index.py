from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.tars import add, samples, write_tar
from tests.faults.damage import resealed
from vlp.data import index as shard_index
from vlp.data.schema import DataError
from vlp.data.tarwalk import BLOCK


def test_a_whole_tar_has_no_damage_and_right_places(tmp_path: Path) -> None:
    members = samples(0, 5)
    path = write_tar(tmp_path / "a.tar", members)
    index = shard_index.build(path)
    assert index.damage is None
    assert index.notes == ()
    raw = path.read_bytes()
    found = {
        f"{index.key(i)}.{extension}": raw[place.offset : place.offset + place.size]
        for i in range(len(index))
        for extension, place in index.members(i).items()
    }
    assert found == dict(members)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_as_tarfile_reads_them(form: int, tmp_path: Path) -> None:
    deep = "folder/" * 12 + "x" * 60 + ".jpg"
    names = ["plain.jpg", "a/b/c.jpg", deep, "./dotted.JPG"]
    if form != tarfile.USTAR_FORMAT:
        names += ["y" * 300 + ".jpg", "图片/猫.jpg"]
    path = write_tar(tmp_path / "a.tar", [(name, name.encode()) for name in names], format=form)
    index = shard_index.build(path)
    assert index.damage is None
    wanted = [name.removeprefix("./").rsplit(".", 1)[0] for name in names]
    assert list(index.keys()) == wanted
    raw = path.read_bytes()
    for i, name in enumerate(names):
        (place,) = index.members(i).values()
        assert raw[place.offset : place.offset + place.size] == name.encode()
    assert index.extensions == ("jpg",)


def test_a_size_in_base_256_and_folders_and_no_padding(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        folder = tarfile.TarInfo("d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        add(tar, "d/a.jpg", b"123")
    raw = path.read_bytes()
    head = bytearray(raw[BLOCK : 2 * BLOCK])
    head[124:136], head[148:156] = b"\x80" + (3).to_bytes(11, "big"), b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    path.write_bytes(raw[:BLOCK] + head + raw[2 * BLOCK : 3 * BLOCK] + bytes(1024))
    index = shard_index.build(path)
    assert index.damage is None
    assert list(index.keys()) == ["d/a"]
    assert index.members(0)["jpg"].size == 3


def notes(path: Path, **settings: str) -> dict[str, int]:
    return shard_index.build(path, **settings).counts()  # type: ignore[arg-type]


def test_duplicates_first_wins(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar", [("a.jpg", b"1"), ("a.txt", b"1"), ("a.jpg", b"22"), ("b.jpg", b"3"), ("a.jpg", b"4")]
    )
    index = shard_index.build(path)
    assert list(index.keys()) == ["a", "b"]
    assert {name: place.size for name, place in index.members(0).items()} == {"jpg": 1, "txt": 1}
    assert index.counts() == {"dup_key": 2}
    assert "bytes" in index.notes[0].example


def test_members_apart_are_joined_and_counted(tmp_path: Path) -> None:
    members = [(f"{i}.jpg", b"j") for i in range(5)] + [(f"{i}.txt", b"t") for i in range(5)]
    path = write_tar(tmp_path / "a.tar", members)
    index = shard_index.build(path)
    assert len(index) == 5
    assert set(index.members(3)) == {"jpg", "txt"}
    assert index.counts() == {"orphan_member": 5}


def test_dots_in_keys(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("img.v1.jpg", b"1"), ("img.v2.jpg", b"2")])
    assert notes(path) == {"dotted_key": 1}
    index = shard_index.build(path, key_split="last-dot")
    assert list(index.keys()) == ["img.v1", "img.v2"]
    mask = write_tar(tmp_path / "b.tar", [("a.jpg", b"1"), ("a.mask.png", b"2"), ("a.json", b"{}")])
    assert notes(mask) == {}


def test_hostile_members_never_become_samples(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo("k.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        for name in ("/etc/passwd.jpg", "../up.jpg", "a/../../b.jpg", "c:\\x.jpg"):
            add(tar, name, b"x")
        for name in ("__meta__.json", ".hidden", "noending"):
            add(tar, name, b"x")
        add(tar, "good.jpg", b"x")
    index = shard_index.build(path)
    assert list(index.keys()) == ["good"]
    assert index.counts() == {"hostile_member": 9, "meta_member": 1, "no_key": 2}


def test_behind_a_sparse_member_the_walk_goes_on(tmp_path: Path) -> None:
    """GNU's map of a sparse file may go on in blocks of its own, which no size counts."""
    path = write_tar(tmp_path / "a.tar", [("s.jpg", b"data"), *samples(0, 2)])
    raw = path.read_bytes()
    head = bytearray(raw[:BLOCK])
    head[156:157], head[482] = b"S", 1
    more = bytearray(BLOCK)
    more[504] = 1
    path.write_bytes(resealed(head) + bytes(more) + bytes(BLOCK) + raw[BLOCK:])
    index = shard_index.build(path)
    assert index.damage is None
    assert list(index.keys()) == ["000000", "000001"]
    assert index.counts() == {"hostile_member": 1}
    assert index.notes[0].example == "s.jpg (sparse_file)"


def test_side_index_round_trip(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [*samples(0, 7), ("000003.png", b"again")])
    index = shard_index.build(path)
    shard_index.write(path, index)
    first = shard_index.index_path(path).read_bytes()
    again = shard_index.read(path)
    assert list(again.keys()) == list(index.keys())
    assert [again.members(i) for i in range(7)] == [index.members(i) for i in range(7)]
    assert again.notes == index.notes
    shard_index.write(path, shard_index.build(path))
    assert shard_index.index_path(path).read_bytes() == first, "made twice, the same bytes"
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []


def test_damage_survives_the_side_index(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", samples(0, 4))
    path.write_bytes(path.read_bytes()[:-10240])
    shard_index.read_or_build(path)
    again = shard_index.read(path)
    assert again.damage is not None
    assert again.damage == shard_index.build(path).damage


def test_a_stale_side_index_is_made_again(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", samples(0, 4))
    assert len(shard_index.read_or_build(path)) == 4
    write_tar(path, samples(0, 9))
    with pytest.raises(DataError, match="made for a tar of"):
        shard_index.read(path)
    assert len(shard_index.read_or_build(path)) == 9
    same_size = path.read_bytes().replace(b"000002.", b"999999.")
    path.write_bytes(_checksummed(same_size))
    later = os.stat(shard_index.index_path(path)).st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))
    assert "999999" in list(shard_index.read_or_build(path).keys()), "same size, newer change"


def test_a_shard_of_equal_size_and_older_time_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", samples(0, 4))
    shard_index.read_or_build(path)
    path.write_bytes(_checksummed(path.read_bytes().replace(b"000002.", b"999999.")))
    os.utime(path, ns=(10**18, 10**18))  # as a download with the server's time
    with pytest.raises(DataError, match="equal size and other bytes"):
        shard_index.read(path)
    assert "999999" in list(shard_index.read_or_build(path).keys())
    assert "999999" in list(shard_index.read(path).keys()), "written again"


def test_a_side_index_survives_a_copy_and_an_older_one_is_made_again(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", samples(0, 4))
    side = shard_index.write(path, shard_index.build(path))
    current = side.read_bytes()
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in (path, side):
        (copy / file.name).write_bytes(file.read_bytes())
    assert shard_index.fresh(copy / "a.tar") is not None
    side.write_bytes(current.replace(b"index 2", b"index 1", 1))
    assert len(shard_index.read_or_build(path)) == 4
    assert side.read_bytes() == current


@pytest.mark.parametrize("change", ["large member", "small member", "name", "time"])
def test_the_content_hash_follows_what_a_tar_holds_and_not_its_place(change: str, tmp_path: Path) -> None:
    def content(name: str, first: str, text: bytes, picture: bytes, time: int) -> str:
        with tarfile.open(tmp_path / name, "w") as tar:
            add(tar, "0.jpg", bytes(200_000))  # so that what differs lies in neither end of the file
            add(tar, first, text)
            member = tarfile.TarInfo("1.jpg")
            member.size, member.mtime = len(picture), time
            tar.addfile(member, io.BytesIO(picture))
            add(tar, "2.jpg", bytes(200_000))
        os.utime(tmp_path / name, ns=(time, time))
        built = shard_index.build(tmp_path / name)
        assert built.damage is None
        return built.content

    was: dict[str, Any] = {"first": "1.json", "text": b"a cat", "picture": bytes(9000), "time": 7}
    other: dict[str, dict[str, Any]] = {
        "large member": {"picture": bytes(8990) + b"0123456789"},
        "small member": {"text": b"a dog"},
        "name": {"first": "9.json"},
        "time": {"time": 8},
    }
    assert content("a.tar", **was) == content("b.tar", **was)
    assert content("a.tar", **was) != content("c.tar", **{**was, **other[change]})


def _checksummed(raw: bytes) -> bytes:
    """Headers of members 999999 with their checksum written again."""
    out = bytearray(raw)
    for start in range(0, len(raw), BLOCK):
        if out[start : start + 7] == b"999999.":
            out[start + 148 : start + 156] = b" " * 8
            out[start + 148 : start + 156] = b"%06o\0 " % sum(out[start : start + BLOCK])
    return bytes(out)


@pytest.mark.parametrize("damage", [b"junk", b"vlp shard index 9\n", None])
def test_a_damaged_side_index_is_refused_and_made_again(damage: bytes | None, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", samples(0, 4))
    side = shard_index.write(path, shard_index.build(path))
    raw = side.read_bytes()
    side.write_bytes(damage if damage is not None else raw[:-3] + b"xyz")
    with pytest.raises(DataError, match="not a shard index"):
        shard_index.read(path)
    assert len(shard_index.read_or_build(path)) == 4


def test_beside_a_read_only_folder_the_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "data" / "a.tar", samples(0, 4))
    real = shard_index.write_atomic

    def refuse(target: Path, content: bytes) -> None:
        if Path(target).parent == path.parent:
            raise PermissionError(13, "read-only")
        real(target, content)

    monkeypatch.setattr(shard_index, "write_atomic", refuse)
    assert len(shard_index.read_or_build(path, cache=tmp_path / "cache")) == 4
    assert not shard_index.index_path(path).exists()
    assert len(list((tmp_path / "cache").iterdir())) == 1
    monkeypatch.setattr(shard_index, "build", lambda *a, **k: pytest.fail("the cached index was not used"))
    assert len(shard_index.read_or_build(path, cache=tmp_path / "cache")) == 4


def test_a_missing_shard(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such shard"):
        shard_index.build(tmp_path / "none.tar")


def test_an_empty_tar_has_no_samples(tmp_path: Path) -> None:
    index = shard_index.build(write_tar(tmp_path / "a.tar", []))
    assert len(index) == 0
    assert index.damage is None
    shard_index.write(tmp_path / "a.tar", index)
    assert len(shard_index.read(tmp_path / "a.tar")) == 0


def test_random_bytes_never_crash_the_walk(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", samples(0, 6), format=tarfile.PAX_FORMAT)
    raw, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(raw)
        for at in rng.integers(0, len(raw), 3):
            broken[at] = int(rng.integers(256))
        path.write_bytes(bytes(broken[: int(rng.integers(1, len(raw)))]))
        index = shard_index.build(path)
        places = [place for i in range(len(index)) for place in index.members(i).values()]
        assert all(place.offset + place.size <= path.stat().st_size for place in places)


def test_a_pax_header_that_lies(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("a.jpg")
        member.pax_headers = {"size": "12x"}
        tar.addfile(member)
    path = tmp_path / "a.tar"
    path.write_bytes(stream.getvalue())
    damage = shard_index.build(path).damage
    assert damage is not None
    assert "pax size" in damage.detail


@pytest.mark.parametrize("content", [b"", b"\xff\xd8 a picture" * 99, b"short", b"\x1f\x8b gzip" * 99])
def test_what_is_no_tar_gets_no_index_beside_it(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content)
    found = shard_index.read_or_build(tmp_path / "a", cache=tmp_path / "cache")
    assert (len(found), found.damage is not None) == (0, True)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
