from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.build import Build
from tests.data.tars import picture
from vlp.data import open_records
from vlp.data.fields import Fields
from vlp.data.schema import DataError
from vlp.data.sources import as_source
from vlp.types import BadSampleError


def write_pictures(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(number))


def row(records: object, i: int) -> dict[str, object]:
    return json.loads(records[i].members["json"])  # type: ignore[index,no-any-return]


@pytest.mark.parametrize("end", ["csv", "tsv", "jsonl", "parquet"])
def test_rows_in_are_rows_out_and_words_stay_words(end: str, tmp_path: Path) -> None:
    captions = ["NA", "null", "None", "", "nan", "007", "a, b; c", '5" wide', "猫"]
    names = [f"{i}.png" for i in range(len(captions))]
    write_pictures(tmp_path, names)
    path = tmp_path / f"t.{end}"
    if end == "parquet":
        pq.write_table(pa.table({"image": names, "caption": captions}), path)
    elif end == "jsonl":
        path.write_text("\n".join(json.dumps({"image": n, "caption": c}) for n, c in zip(names, captions)))
    elif end == "tsv":
        path.write_text("image\tcaption\n" + "".join(f"{n}\t{c}\n" for n, c in zip(names, captions)))
    else:
        quoted = ['"' + c.replace('"', '""') + '"' for c in captions]
        path.write_text("image,caption\n" + "".join(f"{n},{c}\n" for n, c in zip(names, quoted)))
    records = open_records({"name": "csv", "path": str(path)})
    assert [row(records, i)["caption"] for i in range(len(records))] == captions
    assert records[3].members["png"] == picture(3)
    assert records.name(3) == (path.name, "00000003")


def test_a_stray_quote_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('image,caption\n1.png,ok\n2.png,"swallows\n3.png,the next\n4.png,row" then more\n5.png,ok\n')
    with pytest.raises(DataError, match=r"line 5.*quoting: none"):
        open_records({"name": "csv", "path": str(path)})
    assert len(open_records({"name": "csv", "path": str(path), "quoting": "none"})) == 5
    path.write_text("image,caption\n1.png,a,b\n2.png,ok\n3.png\n")
    with pytest.raises(DataError, match="2 rows have not the 2 columns of the first line.*lines 2, 4"):
        open_records({"name": "csv", "path": str(path)})


def test_columns_and_files_that_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("imge,caption\n../nope.png,x\n,y\nnotes.txt,z\n")
    with pytest.raises(DataError, match='did you mean "imge"'):
        open_records({"name": "csv", "path": str(path)})
    records = open_records({"name": "csv", "path": str(path), "image": "imge"})
    for i, reason in enumerate(("unreadable", "no_image", "no_image")):
        with pytest.raises(BadSampleError) as error:
            records[i]
        assert error.value.reason == reason
    with pytest.raises(DataError, match=r'no such table.*did you mean "t.csv"'):
        open_records({"name": "csv", "path": str(tmp_path / "tt.csv")})
    path.write_text("url,image\nx,http://host/a.jpg\n")
    with pytest.raises(DataError, match="holds urls"):
        open_records({"name": "csv", "path": str(path)})


def test_pictures_inside_parquet(tmp_path: Path) -> None:
    pictures = [{"bytes": picture(i), "path": None} for i in range(3)]
    pq.write_table(pa.table({"image": pictures, "text": ["a", "b", "c"]}), tmp_path / "t.parquet")
    records = open_records({"name": "csv", "path": str(tmp_path / "t.parquet")})
    assert records[2].members["jpg"] == picture(2)
    assert row(records, 2) == {"text": "c"}


def test_a_folder_with_texts(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["b/2.png", "a/1.png", ".hidden/3.png"])
    (tmp_path / "a" / "1.txt").write_text("one")
    (tmp_path / "b" / "2.json").write_text('{"caption": "two"}')
    records = open_records({"name": "folder", "path": str(tmp_path)})
    assert [records.name(i)[1] for i in range(len(records))] == ["a/1", "b/2"]
    assert records[0].members["txt"] == b"one"
    assert row(records, 1) == {"caption": "two"}


def test_a_folder_with_a_table(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["x/1.png", "x/2.png", "x/3.png"])
    (tmp_path / "captions.csv").write_text("file_name,caption\nx/3.png,three\nx/1.png,one\nx/9.png,nine\n")
    records = open_records({"name": "folder", "path": str(tmp_path)})
    assert [row(records, i)["caption"] for i in range(len(records))] == ["three", "one"]
    assert records.notes == {"row_without_picture": 1, "picture_without_row": 1}


def fingerprint(**source: str) -> str:
    return open_records(source).fingerprint  # type: ignore[arg-type]


@pytest.mark.parametrize("end", ["csv", "parquet"])
def test_the_fingerprint_of_a_table_follows_its_bytes_and_its_pictures(end: str, tmp_path: Path) -> None:
    write_pictures(tmp_path, ["1.png", "2.png", "3.png"])
    path = tmp_path / f"t.{end}"

    def write(first: str, caption: str = "one") -> str:
        names, captions = [first, "3.png", "none.png"], [caption, "two", "three"]
        if end == "parquet":
            held = pa.array([{"bytes": None, "path": name} for name in names])
            pq.write_table(pa.table({"image": held, "caption": captions}), path)
        else:
            path.write_text("image,caption\n" + "".join(f"{n},{c}\n" for n, c in zip(names, captions)))
        return fingerprint(name="csv", path=str(path))

    first = write("1.png")
    assert write("2.png") != first, "another picture, as many bytes"
    assert write("1.png", "eno") != first
    assert write("1.png") == first
    overwrite(tmp_path / "2.png")
    assert write("1.png") == first, "a picture that the table does not name"
    overwrite(tmp_path / "3.png")
    assert write("1.png") != first


def overwrite(path: Path) -> None:
    """The same size, other content, a later time."""
    later = path.stat().st_mtime_ns + 10**6
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(later, later))


def test_a_table_of_bytes_names_its_column(tmp_path: Path) -> None:
    columns = {name: [picture(i + shift) for i in range(2)] for name, shift in (("large", 0), ("small", 5))}
    pq.write_table(pa.table({**columns, "caption": ["a", "b"]}), tmp_path / "t.parquet")
    prints = {fingerprint(name="csv", path=str(tmp_path / "t.parquet"), image=name) for name in columns}
    assert len(prints) == 2


@pytest.mark.parametrize("layout", ["texts", "table", "classes"])
def test_the_fingerprint_of_a_folder_follows_its_files(layout: str, tmp_path: Path) -> None:
    write_pictures(tmp_path, ["x/1.png", "x/2.png"])
    for name in ("x/1.txt", "x/2.txt"):
        (tmp_path / name).write_text("a cat")
    (tmp_path / "captions.csv").write_text("file_name,caption\nx/1.png,cat\nx/2.png,dog\n")
    source = {"name": "folder", "path": str(tmp_path), "layout": layout}
    seen = [fingerprint(**source)]
    assert fingerprint(**source) == seen[0]
    overwrite(tmp_path / "x" / "2.png")
    seen.append(fingerprint(**source))
    overwrite(tmp_path / "x" / "1.txt")
    seen.append(fingerprint(**source))
    (tmp_path / "captions.csv").write_text("file_name,caption\nx/1.png,dog\nx/2.png,cat\n")
    seen.append(fingerprint(**source))
    assert [a != b for a, b in itertools.pairwise(seen)] == [True, layout == "texts", layout == "table"]


def test_class_folders(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["cat/1.png", "dog/deep/2.png", "cat/3.png"])
    records = open_records({"name": "folder", "path": str(tmp_path), "kind": "label"})
    assert records.classes == ("cat", "dog")
    assert [records[i].members["cls"] for i in range(3)] == [b"0", b"0", b"1"]


def test_a_mask_beside_its_picture_is_no_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pictures(tmp_path, ["a/1.jpg", "a/1.mask.png", "a/2.mask.png", "a/3.mask.x.png", "b/1.png", "b/3.mask.png"])
    source = {"name": "folder", "path": str(tmp_path)}
    records = open_records(source)
    files = [records.file(i) for i in range(len(records))]  # type: ignore[attr-defined]
    assert files == ["a/1.jpg", "a/2.mask.png", "a/3.mask.x.png", "b/1.png", "b/3.mask.png"]
    assert records.notes == {"mask_of_picture": 1, "not_in_class_folder": 0}
    assert "1 mask_of_picture (<key>.mask.png beside" in caplog.text
    (tmp_path / "captions.csv").write_text("file_name,caption\na/1.jpg,one\na/1.mask.png,its mask\nb/1.png,two\n")
    records = open_records(source)
    assert [row(records, i)["caption"] for i in range(len(records))] == ["one", "its mask", "two"], "the table names it"
    assert records.notes == {"mask_of_picture": 0, "row_without_picture": 0, "picture_without_row": 3}


@pytest.mark.parametrize("end", ["csv", "tsv"])
@pytest.mark.parametrize(
    ("image", "text"), [("filepath", "title"), ("image", "text"), ("img", "alt_text"), ("jpg", "txt")]
)
def test_captions_are_found_by_the_usual_names(end: str, image: str, text: str, tmp_path: Path) -> None:
    write_pictures(tmp_path, ["1.png"])
    comma = "," if end == "csv" else "\t"
    (tmp_path / f"t.{end}").write_text(f"{image}{comma}{text}\n1.png{comma}a cat\n")
    source = as_source({"name": "csv", "path": str(tmp_path / f"t.{end}")})
    stage, sample = source.caption_stage(), open_records(source)[0]
    assert stage is not None
    assert stage.texts(Fields(sample)) == ["a cat"]
    built = Build().run([tmp_path / f"t.{end}"], tmp_path / "out")["columns"]
    assert (built["image"], built["captions"]) == (image, (text,)), "`vlp data build` makes the same guess"
    named = as_source({"name": "csv", "path": "t.csv", "captions": {"fields": ["other"]}}).caption_stage()
    assert named is not None
    assert named.fields == ("other",)


def test_folders_that_do_not_work(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_records({"name": "folder", "path": str(tmp_path / "none")})
    with pytest.raises(DataError, match="no pictures"):
        open_records({"name": "folder", "path": str(tmp_path)})
    write_pictures(tmp_path, ["1.png"])
    with pytest.raises(DataError, match="no captions found"):
        open_records({"name": "folder", "path": str(tmp_path)})


def test_a_hugging_face_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"picture": datasets.Image(), "text": datasets.Value("string"), "kind": datasets.ClassLabel(names=["x", "y"])}
    )
    rows = {
        "picture": [{"bytes": picture(i), "path": None} for i in range(5)],
        "text": [f"text {i}" for i in range(5)],
        "kind": [i % 2 for i in range(5)],
    }
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "set"))
    records = open_records({"name": "huggingface", "path": str(tmp_path / "set")})
    assert len(records) == 5
    assert records[4].members["jpg"] == picture(4)
    assert row(records, 4) == {"text": "text 4", "kind": 0}
    assert records.classes == ("x", "y")
    assert records.fingerprint == open_records({"name": "huggingface", "path": str(tmp_path / "set")}).fingerprint
    with pytest.raises(DataError, match='did you mean "picture"'):
        open_records({"name": "huggingface", "path": str(tmp_path / "set"), "image": "pictur"})
