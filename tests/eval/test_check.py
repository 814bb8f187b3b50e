"""`vlp eval check`: data that are there, short, broken or absent, and what is said of each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.check import as_table, check, run_check
from tests.eval.colours import jpeg, write_shard

DIGITS = [str(digit) for digit in range(10)]


def digits(root: Path, *, shards: int = 1, names: list[str] = DIGITS, each: int = 1) -> Path:
    """Ten labelled pictures a shard in CLIP_benchmark's layout."""
    samples = [{"jpg": jpeg("red"), "cls": digit.encode()} for digit in DIGITS for _ in range(each)]
    for number in range(shards):
        write_shard(root / "test" / f"{number}.tar", samples)
    (root / "test" / "nshards.txt").write_text(str(shards))
    (root / "classnames.txt").write_text("\n".join(names) + "\n")
    (root / "zeroshot_classification_templates.txt").write_text('a photo of the number: "{c}".\n')
    return root


def suite(folder: Path, *benchmarks: str) -> str:
    path = folder / "s.yaml"
    path.write_text("\n".join(["name: s", "data: sets", "benchmarks:", *(f"  - {one}" for one in benchmarks)]))
    return str(path)


def zeroshot(name: str, more: str = "", data: str = "") -> str:
    return f"{{name: zeroshot, dataset: {name.replace('/', '-')}, data: {{set: {name}{data}}}{more}}}"


def test_one_set_is_there_one_is_broken_one_is_absent(tmp_path, capsys):
    digits(tmp_path / "sets" / "wds_mnist")
    digits(tmp_path / "sets" / "wds_vtab-svhn", shards=3)
    (tmp_path / "sets" / "wds_vtab-svhn" / "test" / "1.tar").unlink()
    path = suite(tmp_path, zeroshot("mnist", data=", limit: 10"), zeroshot("vtab/svhn"), zeroshot("stl10"))
    here, broken, absent = check([path])
    assert (here.state, here.pictures, here.expected, here.shards) == ("ready", 10, 10, 1)
    assert (here.classes, here.labels, here.templates) == ("10 folder", "0-9", "1 folder")
    assert here.where.endswith("sets/wds_mnist")
    assert (broken.state, broken.pictures, broken.shards) == ("broken", 20, 2)
    assert "says 3 shards, 1 missing: 1.tar" in broken.notes[0]
    assert (absent.state, absent.benchmark) == ("missing", "zeroshot")
    said = "\n".join(absent.notes)
    assert f"  {tmp_path}/sets/{{stl10,wds_stl10," in said
    assert "hf download clip-benchmark/wds_stl10 --repo-type dataset --local-dir sets/wds_stl10" in said
    assert as_table([here, broken, absent]).row_count == 3
    assert run_check([path]) == 1
    assert "1 ready, 1 broken, 1 missing" in " ".join(capsys.readouterr().err.split())
    assert run_check([suite(tmp_path, zeroshot("mnist", data=", limit: 10"))]) == 0


def test_sets_and_groups_are_checked_by_name(tmp_path):
    digits(tmp_path / "mnist")
    (row,) = check(["mnist", f"data={tmp_path}"])
    assert (row.state, row.pictures, row.expected) == ("fewer", 10, 10_000)
    assert row.notes == ("9990 of 10000 pictures are missing: 10 were found",)
    rows = check(["imagenet_robustness", "sugar_crepe", f"data={tmp_path}"])
    assert [row.state for row in rows] == ["missing"] * 6
    assert rows[-1].dataset == "sugar_crepe"  # a set before a group of that name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data=x"], "nothing to check"),
        (["mnits"], 'did you mean "mnist"'),
        (["mnist", "k=1"], "k=1: changes a suite, and none was named"),
    ],
)
def test_words_that_say_nothing_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        check(words)


def test_labels_names_and_templates_that_do_not_fit_are_broken(tmp_path):
    root = digits(tmp_path / "sets" / "mnist", names=DIGITS[:8])
    (root / "zeroshot_classification_templates.txt").write_text("a digit\n")
    (row,) = check([suite(tmp_path, zeroshot("mnist"))])
    assert row.state == "broken"
    assert "no slot {} or {c}" in row.notes[0]
    (root / "zeroshot_classification_templates.txt").unlink()
    (row,) = check([suite(tmp_path, zeroshot("mnist"))])
    assert row.templates == "1 photo, by default"
    assert row.notes[0] == "8 class names, where the published set has 10"
    assert row.notes[1] == "2 of the first 10 samples: bad_label, cls is 8, there are 8 classes"
    (row,) = check([suite(tmp_path, zeroshot("mnist", f", names: {json.dumps(DIGITS)}, templates: photo"))])
    assert (row.state, row.classes, row.templates) == ("fewer", "10 suite", "1 photo")
    (root / "classnames.txt").unlink()
    (row,) = check([suite(tmp_path, zeroshot("mnist"))])
    assert "no class names" in row.notes[0]


def test_repeated_class_names_are_no_fault(tmp_path):
    digits(tmp_path / "sets" / "mnist", names=[*DIGITS[:9], "0"])
    (row,) = check([suite(tmp_path, zeroshot("mnist", data=", limit: 10"))])
    assert row.state == "ready"


def test_data_that_are_no_known_set_are_counted_too(tmp_path):
    write_shard(tmp_path / "own" / "a.tar", [{"jpg": jpeg("red"), "json": b'{"caption": "red"}'}] * 3)
    read = "{name: retrieval, dataset: own, data: own}"
    other = "{name: retrieval, dataset: other, data: {path: nowhere, made_by: magic}}"
    blind = "{name: retrieval, dataset: blind, data: own, captions: {fields: [text]}}"
    first, second, third = check([suite(tmp_path, read, other, blind), f"data={tmp_path}"])
    assert (first.state, first.pictures, first.shards, first.expected) == ("ready", 3, 1, None)
    assert second.state == "missing"
    assert "make it with: magic" in second.notes
    assert (third.state, third.notes) == ("broken", ("3 of the first 3 samples: no_caption, no text",))


def test_samples_without_the_caption_of_a_language_are_counted_and_no_fault(tmp_path):
    samples = [b'{"texts": {"en": "red"}}', b'{"texts": {"en": "red", "sw": "nyekundu"}}']
    write_shard(tmp_path / "own" / "a.tar", [{"jpg": jpeg("red"), "json": sample} for sample in samples])
    swahili = "{name: retrieval, dataset: own, data: own, captions: {fields: [texts], language: sw}}"
    (row,) = check([suite(tmp_path, swahili), f"data={tmp_path}"])
    assert (row.state, row.notes) == ("ready", ("1 of the first 2 samples: no_caption, no texts",))


def test_a_torn_shard_is_broken(tmp_path):
    root = digits(tmp_path / "sets" / "mnist", each=4)
    shard = root / "test" / "0.tar"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    (row,) = check([suite(tmp_path, zeroshot("mnist"))])
    assert row.state == "broken"
    assert "damaged at byte" in row.notes[0]


def test_files_beside_pictures_are_checked_against_the_published_ones(tmp_path):
    root = tmp_path / "sets" / "sugar_crepe"
    (root / "val2017").mkdir(parents=True)
    (root / "val2017" / "1.jpg").write_bytes(jpeg("red"))
    (root / "swap_obj.json").write_text("{}")
    (row,) = check(["sugar_crepe/swap_obj", f"data={tmp_path / 'sets'}"])
    assert row.state == "broken"
    assert "is not the published one (SHA-256 073cdb8e253d...)" in row.notes[0]
    (row,) = check(["sugar_crepe/add_att", f"data={tmp_path / 'sets'}"])
    assert row.notes[0].endswith("add_att.json is missing")


def labelled(labels: list[int]) -> list[dict[str, bytes]]:
    return [{"jpg": jpeg("red"), "cls": str(label).encode()} for label in labels]


def test_what_probes_learn_from_and_choose_on_is_looked_at_too(tmp_path):
    for name, labels in (("test", [0, 1]), ("train", [0, 1, 1]), ("val", [0, 2])):
        write_shard(tmp_path / "own" / f"{name}.tar", labelled(labels))
    probe = "{{name: linear_probe, dataset: own, data: own/test.tar, train: own/{}.tar, validation: {}{}}}"
    rows = check([suite(tmp_path, probe.format("train", "own/val.tar", "")), f"data={tmp_path}"])
    assert [(row.dataset, row.state, row.pictures, row.labels) for row in rows] == [
        ("own", "ready", 2, "0-1"), ("own, train", "ready", 3, "0-1"), ("own, validation", "ready", 2, "0-2")
    ]  # fmt: skip
    rows = check([suite(tmp_path, probe.format("train", "own/val.tar", ", names: [a, b]")), f"data={tmp_path}"])
    assert [row.state for row in rows] == ["ready", "ready", "broken"]
    assert rows[2].notes == ("1 of the first 2 samples: bad_label, cls is 2, there are 2 classes",)
    rows = check([suite(tmp_path, probe.format("tst", "{path: own/v.tar, made_by: magic}", "")), f"data={tmp_path}"])
    assert [row.state for row in rows] == ["ready", "missing", "missing"]
    assert "make it with: magic" in rows[2].notes
    rows = check([suite(tmp_path, probe.format("test", "own/val.tar", "")), f"data={tmp_path}"])
    assert (rows[1].state, rows[1].notes) == (
        "broken", ("`train` is what is measured: the result would be of pictures that were learned",)
    )  # fmt: skip


def test_other_data_beside_is_counted_and_other_splits_have_no_published_number(tmp_path):
    digits(tmp_path / "sets" / "mnist")
    digits(tmp_path / "sets" / "mnist").joinpath("test").rename(tmp_path / "sets" / "mnist" / "train")
    digits(tmp_path / "sets" / "mnist")
    read = "{name: knn, dataset: m, data: {set: mnist, limit: 10}, train: {set: mnist, split: train}}"
    test, train = check([suite(tmp_path, read)])
    assert (test.state, test.expected, train.state, train.expected) == ("ready", 10, "ready", None)
    write_shard(tmp_path / "n.tar", labelled([0]))
    odd = "{name: anomaly, dataset: a, data: n.tar, normal: nowhere.tar}"
    assert [row.dataset for row in check([suite(tmp_path, odd), f"data={tmp_path}"])] == ["a", "a, normal"]


def test_several_labels_and_a_folder_of_pictures(tmp_path):
    facts = [
        {"jpg": jpeg("red"), "json": json.dumps({"shows": shows}).encode()} for shows in (["a"], ["b", "c"], ["d"])
    ]
    write_shard(tmp_path / "many.tar", facts)
    read = "{name: multilabel, dataset: m, data: many.tar, label: shows, names: [a, b, c]}"
    (row,) = check([suite(tmp_path, read), f"data={tmp_path}"])
    assert (row.state, row.labels, row.classes) == ("broken", "0-2", "3 suite")
    assert "1 of the first 3 samples: bad_label, shows holds 'd'" in row.notes[0]
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "1.jpg").write_bytes(jpeg("red"))
    own = "{name: zeroshot, dataset: p, data: {name: folder, path: photos}}"
    (row,) = check([suite(tmp_path, own), f"data={tmp_path}"])
    assert (row.state, row.pictures, row.classes, row.labels) == ("ready", 2, "2 folder", "0-1")
    assert check([str(tmp_path / "photos")])[0].classes == "2 folder"
