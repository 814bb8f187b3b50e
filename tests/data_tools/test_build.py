"""`build` from every kind of input: rows in = samples + skips, texts and bytes as they were."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_tools.build import Build
from data_tools.shards import Raw, find_shards, samples
from vlp.data import open_records
from vlp.data.schema import DataError


def picture(number: int, *, format: str = "JPEG", size: tuple[int, int] = (20, 14)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (number * 20 % 256, 90, 200)).save(buffer, format)
    return buffer.getvalue()


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"p{number}.jpg").write_bytes(picture(number))
    return folder


def read(out: Path) -> list[Raw]:
    return [sample for shard in find_shards([str(out)]) for sample in samples(shard)]


def facts(out: Path) -> list[dict[str, Any]]:
    return [json.loads(sample.members["json"]) for sample in read(out)]


def balanced(result: dict[str, Any]) -> bool:
    return bool(result["rows"] == result["samples"] + sum(result["skipped"].values()))


def test_folder_with_texts_beside(tmp_path):
    folder = pictures(tmp_path / "in/sub", 5)
    for number in range(4):
        (folder / f"p{number}.txt").write_text(f"picture {number}\n")
    (folder / "p3.jpg").write_bytes(picture(3)[:-200])
    (folder / "notes.md").write_text("no picture")
    result = Build(shard_size=2).run([tmp_path / "in"], tmp_path / "out")
    assert result["rows"] == 5
    assert result["skipped"] == {"truncated_image": 1, "empty_caption": 1}
    assert balanced(result)
    found = read(tmp_path / "out")
    assert [sample.members["txt"] for sample in found] == [b"picture 0", b"picture 1", b"picture 2"]
    assert found[1].members["jpg"] == picture(1)  # the bytes as they were


def test_masks_beside_pictures_are_no_rows(tmp_path):
    folder = pictures(tmp_path / "in", 3)
    for number in range(3):
        (folder / f"p{number}.txt").write_text(f"picture {number}\n")
    (folder / "p0.mask.png").write_bytes(picture(0, format="PNG"))
    (folder / ".hidden.jpg").write_bytes(picture(1))
    result = Build().run([folder], tmp_path / "out")
    assert (result["rows"], result["samples"], result["left_out"]) == (3, 3, {"mask_of_picture": 1})
    source = open_records({"name": "folder", "path": str(folder)})
    assert (len(source), source.notes) == (3, {"mask_of_picture": 1}), "as training and evaluation read it"


def test_folder_of_classes(tmp_path):
    for name in ("cat", "ant"):
        pictures(tmp_path / "in" / name, 3)
    result = Build().run([tmp_path / "in"], tmp_path / "out")
    assert result["samples"] == 6
    assert json.loads((tmp_path / "out/classes.json").read_text())["names"] == ["ant", "cat"]
    assert [(f["label"], f["class"]) for f in facts(tmp_path / "out")] == [(0, "ant")] * 3 + [(1, "cat")] * 3
    assert read(tmp_path / "out")[5].members["cls"] == b"1"


def test_csv_keeps_texts_as_they_are(tmp_path):
    pictures(tmp_path, 6)
    texts = ["NA", "null", "1.50", '"quoted", with comma', "", "  spaced  "]
    with open(tmp_path / "t.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "caption", "id"])
        rows.writerows([f"p{i}.jpg", text, f"k{i}"] for i, text in enumerate(texts))
    result = Build(key="id", extra=("id",)).run([tmp_path / "t.csv"], tmp_path / "out")
    assert result["skipped"] == {"empty_caption": 1}
    assert balanced(result)
    assert [f["caption"] for f in facts(tmp_path / "out")] == ["NA", "null", "1.50", '"quoted", with comma', "spaced"]
    assert [sample.key for sample in read(tmp_path / "out")] == ["k0", "k1", "k2", "k3", "k5"]


def test_csv_faults_are_counted_by_reason(tmp_path):
    pictures(tmp_path, 3)
    (tmp_path / "gone.gif").write_bytes(b"<html>404</html>")
    lines = ["image,caption,key", "p0.jpg,good,a", "p1.jpg,too,many,b", "missing.jpg,no file,c", "gone.gif,html,d"]
    lines += ["http://x.org/p.jpg,remote,e", "p1.jpg,again,a", "p1.jpg,dots,a.b", ",nothing,f"]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    with open(tmp_path / "t.csv", "ab") as file:
        file.write(b"p2.jpg,\xff\xfe,g\n")
    result = Build(key="key").run([tmp_path / "t.csv"], tmp_path / "out")
    assert result["skipped"] == {
        "bad_row": 1,
        "no_image": 2,
        "not_image": 1,
        "remote_image": 1,
        "dup_key": 1,
        "bad_key": 1,
        "bad_encoding": 1,
    }
    assert result["samples"] == 1
    assert balanced(result)


def test_a_stray_quote_is_named_and_tsv_does_not_mind_quotes(tmp_path):
    pictures(tmp_path, 2)
    (tmp_path / "t.csv").write_text('image,caption\np0.jpg,"open\np1.jpg,next\n')
    with pytest.raises(DataError, match=r"t\.csv, line .*--quoting none"):
        Build().run([tmp_path / "t.csv"], tmp_path / "out")
    (tmp_path / "t.tsv").write_text('image\tcaption\np0.jpg\t"open\np1.jpg\tnext\n')
    assert Build().run([tmp_path / "t.tsv"], tmp_path / "out")["samples"] == 2
    assert [f["caption"] for f in facts(tmp_path / "out")] == ['"open', "next"]


def test_jsonl_with_lists_and_two_caption_columns(tmp_path):
    pictures(tmp_path, 3)
    rows = [{"image": f"p{i}.jpg", "title": f"t{i}", "text": [f"a{i}", f"b{i}"], "year": 1990 + i} for i in range(3)]
    text = "\n".join([json.dumps(rows[0]), "{broken", json.dumps(rows[1]), "[1]", "", json.dumps(rows[2])])
    (tmp_path / "t.jsonl").write_text(text)
    result = Build(captions=("title", "text"), extra=("year",)).run([tmp_path / "t.jsonl"], tmp_path / "out")
    assert result["skipped"] == {"bad_json": 2}
    assert balanced(result)
    assert facts(tmp_path / "out")[1] == {"year": 1991, "title": "t1", "text": ["a1", "b1"], "caption": "t1"}


def test_parquet_with_bytes_over_row_groups_and_workers_ranges(tmp_path):
    rows = [{"image": {"bytes": picture(i), "path": None}, "caption": f"number {i}", "label": i % 3} for i in range(23)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=4)
    result = Build(shard_size=5, label="label").run([tmp_path / "t.parquet"], tmp_path / "out")
    assert result["samples"] == 23
    found = read(tmp_path / "out")
    assert [sample.members["txt"].decode() for sample in found] == [f"number {i}" for i in range(23)]
    assert [sample.members["jpg"] for sample in found] == [picture(i) for i in range(23)]
    assert [f["label"] for f in facts(tmp_path / "out")] == [i % 3 for i in range(23)]


@pytest.mark.slow
def test_datasets_folder_and_two_workers(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [{"bytes": picture(i), "path": None} for i in range(12)], "text": [f"n {i}" for i in range(12)]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "in")
    Build(shard_size=4).run([tmp_path / "in"], tmp_path / "one")
    Build(shard_size=4, workers=2).run([tmp_path / "in"], tmp_path / "two")
    assert [f["caption"] for f in facts(tmp_path / "one")] == [f"n {i}" for i in range(12)]
    for name in ("000000.tar", "000001.tar", "000002.tar", "dataset.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_size_scales_down_and_other_formats_become_png(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(picture(1, size=(200, 100)))
    (tmp_path / "in/b.png").write_bytes(picture(2, format="PNG", size=(30, 90)))
    (tmp_path / "in/c.bmp").write_bytes(picture(3, format="BMP", size=(20, 20)))
    for name in "abc":
        (tmp_path / f"in/{name}.txt").write_text(name)
    Build(size=50).run([tmp_path / "in"], tmp_path / "out")
    a, b, c = read(tmp_path / "out")
    assert Image.open(io.BytesIO(a.members["jpg"])).size == (100, 50)
    assert b.members["png"] == picture(2, format="PNG", size=(30, 90))  # small enough: untouched
    assert Image.open(io.BytesIO(c.members["png"])).getpixel((0, 0)) == (60, 90, 200)


def test_unknown_columns_and_sources_are_named(tmp_path):
    pictures(tmp_path, 1)
    (tmp_path / "t.csv").write_text("image,caption\np0.jpg,x\n")
    with pytest.raises(DataError, match='no column "captoin"; did you mean "caption"'):
        Build(captions=("captoin",)).run([tmp_path / "t.csv"], tmp_path / "out")
    with pytest.raises(DataError, match=r"no file .*none\.csv"):
        Build().run([tmp_path / "none.csv"], tmp_path / "out")
    (tmp_path / "u.csv").write_text("x,y\n1,2\n")
    with pytest.raises(DataError, match="--image; columns: x, y"):
        Build().run([tmp_path / "u.csv"], tmp_path / "out")
