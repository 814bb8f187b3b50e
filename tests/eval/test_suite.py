"""Suites from YAML to records and files, with a model whose results are known."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from eval import record
from eval import suite as suites
from eval.__main__ import app
from eval.retrieve import Retrieval
from eval.suite import Suite, as_table, load_suite, run_suite
from tests.eval.colours import COLOURS, ColourDual, colour_shard, jpeg, write_shard
from vlp.config import ConfigError
from vlp.data.schema import DataError
from vlp.embed import Encoder
from vlp.log import console
from vlp.models import pretrained
from vlp.models.model import Model
from vlp.models.pretrained import save
from vlp.report import write_report

ONE_EACH = """
name: colours
benchmarks:
  - {name: retrieval, dataset: pairs, data: one.tar}
  - {name: health, dataset: pairs, data: one.tar}
  - name: zeroshot
    dataset: labelled
    data: two.tar
    names: [red, green, blue, yellow, white]
    templates: ["{}", "a {c}."]
"""


@pytest.fixture(autouse=True)
def _hashed(monkeypatch):
    monkeypatch.setattr(pretrained, "weights_hash", lambda dual: "0" * 16)


@pytest.fixture
def suite(tmp_path):
    colour_shard(tmp_path / "one.tar", per_colour=1)
    colour_shard(tmp_path / "two.tar", per_colour=3, broken=1)
    (tmp_path / "suite.yaml").write_text(ONE_EACH)
    return load_suite(tmp_path / "suite.yaml")


def test_every_benchmark_writes_a_record_with_known_numbers(suite, tmp_path):
    records = run_suite(ColourDual(), suite, out=tmp_path / "out", step=7, model_name="colours")
    pairs, health, labelled = records
    for name in ("image_retrieval_recall@1", "text_retrieval_recall@1"):
        assert pairs.metrics[name] == 1.0
        assert pairs.ci95[name] == (1.0, 1.0)
        assert pairs.chance[name] == pytest.approx(0.2)
        assert pairs.contains_chance[name] is False
    assert pairs.contains_chance["image_retrieval_recall@5"] is True  # five pictures: everyone reaches 1
    assert (pairs.n, pairs.counts, pairs.skips) == (5, {"images": 5, "texts": 5}, {})
    assert health.metrics["temperature"] == pytest.approx(0.1)
    assert 0 <= health.metrics["alignment"] < 0.01
    assert labelled.metrics["acc1"] == 1.0 == labelled.metrics["mean_per_class_recall"]
    assert "acc5" not in labelled.metrics  # of five classes it says nothing
    assert labelled.n == 15
    assert sum(labelled.skips.values()) == 1
    assert labelled.task == "zeroshot_classification"
    assert labelled.templates_hash != labelled.classes_hash
    assert {row.test_label_reads for row in records} == {1}
    assert {row.step for row in records} == {7}
    assert all(row.data_hash and row.weights_hash and row.code_version and row.seconds >= 0 for row in records)


def test_lines_have_the_keys_of_clip_benchmark_and_add_up(suite, tmp_path):
    for step in (1, 2):
        run_suite(ColourDual(), suite, out=tmp_path / "out", step=step)
    path = tmp_path / "out" / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 6
    for line in lines:
        assert {"dataset", "model", "pretrained", "task", "metrics", "language"} <= set(line)
        assert line["schema_version"] == 1
    assert [row.step for row in record.read(path)] == [1, 1, 1, 2, 2, 2]
    path.write_text("{}\n")
    with pytest.raises(ValueError, match=r"results\.jsonl:1"):
        list(record.read(path))


def test_a_picture_is_encoded_once_for_all_benchmarks_on_it(suite, tmp_path):
    dual = ColourDual()
    run_suite(Encoder(dual, batch_size=100), suite, out=tmp_path / "out")
    assert [shape[0] for kind, shape in dual.calls if kind == "image"] == [5, 15]
    assert sum(shape[0] for kind, shape in dual.calls if kind == "text") == 5 + 2 * 5


def test_files_for_reports_and_search(suite, tmp_path):
    run_suite(ColourDual(), suite, out=tmp_path / "out")
    folder = tmp_path / "out" / "eval" / "pairs"
    features, items = load_file(folder / "features.safetensors"), json.loads((folder / "items.json").read_text())
    assert features["image"].shape == (5, 3) == features["text"].shape
    assert items["keys"] == [f"s{number:07d}" for number in range(5)]
    assert items["shards"] == ["one.tar"] * 5
    assert items["indices"] == list(range(5)) == items["caption_image"]
    assert items["captions"][0] == "picture 0 is red"
    shown = json.loads((folder / "retrieval.json").read_text())
    assert (shown["num_images"], shown["num_texts"], shown["k"]) == (5, 5, 5)
    for query in shown["text_to_image"]:
        assert query["found"][0] == query["image"]
        assert query["correct"] == [True, False, False, False, False]
        assert query["text"] == items["captions"][query["caption"]]
    for query in shown["image_to_text"]:
        assert query["texts"] == [items["captions"][row] for row in query["found"]]
    thumbnails = {int(path.stem) for path in (folder / "thumbnails").glob("*.jpg")}
    assert thumbnails == set(range(5))
    assert Image.open(folder / "thumbnails" / "0.jpg").getpixel((5, 5))[0] > 200
    labelled = tmp_path / "out" / "eval" / "labelled"
    items = json.loads((labelled / "items.json").read_text())
    assert items["names"] == list(COLOURS)
    assert items["labels"] == [c for c in range(5) for _ in range(3)]
    confusion = json.loads((labelled / "confusion.json").read_text())
    assert confusion["pairs"] == []
    assert confusion["recall"] == [1.0] * 5


def test_mistakes_are_listed_with_pictures(suite, tmp_path):
    dual = ColourDual()
    dual.table[[1, 3]] = dual.table[[3, 1]]  # red and blue taken for each other
    found = run_suite(dual, suite, out=tmp_path / "out")[2]
    confusion = json.loads((tmp_path / "out" / "eval" / "labelled" / "confusion.json").read_text())
    assert found.metrics["acc1"] == pytest.approx(0.6)
    assert {(p["true"], p["predicted"], p["count"]) for p in confusion["pairs"]} == {(0, 2, 3), (2, 0, 3)}
    assert confusion["pairs"][0]["examples"] in ([0, 1, 2], [6, 7, 8])
    assert (tmp_path / "out/eval/labelled/thumbnails/0.jpg").is_file()
    assert [one["class"] for one in confusion["worst"]] == [0, 2]
    assert {one["predicted"] for one in confusion["worst"][0]["examples"]} == {2}
    assert sorted(one["class"] for one in confusion["best"]) == [1, 3, 4]
    reliability = json.loads((tmp_path / "out" / "eval" / "labelled" / "reliability.json").read_text())
    assert (sum(reliability["count"]), len(reliability["count"])) == (15, reliability["bins"])
    assert [one is None for one in reliability["accuracy"]] == [count == 0 for count in reliability["count"]]
    right = sum(share * n for share, n in zip(reliability["accuracy"], reliability["count"]) if n)
    assert right == pytest.approx(9)


def test_files_of_other_suites_stay_as_long_as_their_rows_mean_the_same(suite, tmp_path):
    out, folder = tmp_path / "out", tmp_path / "out" / "eval" / "pairs"
    run_suite(ColourDual(), suite, out=out)
    captions = json.loads((folder / "items.json").read_text())["captions"]
    text = load_file(folder / "features.safetensors")["text"]
    labelled = {"name": "zeroshot", "dataset": "pairs", "data": str(tmp_path / "one.tar"), "names": list(COLOURS)}
    run_suite(ColourDual(), Suite(name="t", benchmarks=[labelled]), out=out)
    items = json.loads((folder / "items.json").read_text())
    assert items["captions"] == captions
    assert items["labels"] == list(range(5))
    assert torch.equal(load_file(folder / "features.safetensors")["text"], text)
    assert {file.stem for file in (folder / "thumbnails").iterdir()} == set("01234")
    other = ColourDual()
    other.table += torch.rand(6, 3)
    other.encode_image = lambda image: torch.rand(len(image), 3)
    run_suite(other, Suite(name="t", benchmarks=[labelled]), out=out)
    assert "text" not in load_file(folder / "features.safetensors")  # features of two models are not to be compared
    assert json.loads((folder / "items.json").read_text())["captions"] == []
    fewer = {**labelled, "data": {"path": labelled["data"], "limit": 2}}
    run_suite(ColourDual(), Suite(name="t", benchmarks=[fewer]), out=out)
    assert {file.name for file in folder.glob("*.json")} == {
        "items.json", "confusion.json", "reliability.json", "zeroshot_hits.json"
    }  # fmt: skip
    assert {file.stem for file in (folder / "thumbnails").iterdir()} == set("01")


def test_what_does_not_fit_the_weights_stands_in_every_record_and_on_top_of_the_report(suite, tmp_path):
    dual = ColourDual()
    dual.mismatches = ("x.pt: was trained with <QuickGELU>",)
    records = run_suite(dual, suite, out=tmp_path / "out")
    assert {row.warnings for row in records} == {dual.mismatches}
    assert next(record.read(tmp_path / "out" / "results.jsonl")).warnings == dual.mismatches
    page = write_report(tmp_path / "out").read_text()
    assert page.count("x.pt: was trained with &lt;QuickGELU&gt;") == 1
    assert page.index("x.pt: was") < page.index("All results")


def test_lists_of_captions_any_of_them_finds(suite, tmp_path):
    part = Retrieval(dataset="pairs", data=str(tmp_path / "one.tar"), captions={"fields": ["captions"]}, k=(1, 2))
    values = part.run(ColourDual())
    assert values["image_retrieval_recall@1"] == 1.0 == values["text_retrieval_recall@1"]
    assert values["text_retrieval_recall@2"] == 1.0


def test_pictures_without_captions_leave_and_are_counted(tmp_path):
    samples = [{"jpg": jpeg(colour), "txt": f"{colour}".encode()} for colour in COLOURS]
    samples.insert(1, {"jpg": jpeg("red"), "json": b"{}"})
    samples.insert(3, {"jpg": jpeg("red"), "txt": b"  "})
    write_shard(tmp_path / "t.tar", samples)
    plan = Suite(
        name="t", benchmarks=[{"name": "retrieval", "dataset": "t", "data": str(tmp_path / "t.tar"), "k": [1]}]
    )
    (found,) = run_suite(ColourDual(), plan, out=tmp_path / "out")
    assert found.n == 5
    assert found.skips == {"no_caption": 1, "empty_caption": 1}
    assert found.metrics["image_retrieval_recall@1"] == 1.0
    shown = json.loads((tmp_path / "out/eval/t/retrieval.json").read_text())
    assert [query["image"] for query in shown["image_to_text"]] == [0, 2, 4, 5, 6]  # rows of items.json
    assert all(query["found"][0] == query["image"] for query in shown["text_to_image"])


def test_limit_takes_the_first_pictures(suite, tmp_path):
    plan = {"name": "retrieval", "dataset": "p", "data": {"path": str(tmp_path / "one.tar"), "limit": 3}}
    first = Suite(name="t", benchmarks=[plan])
    (found,) = run_suite(ColourDual(), first, out=tmp_path / "out")
    assert found.n == 3
    assert found.data_hash != run_suite(ColourDual(), suite, out=tmp_path / "out")[0].data_hash


def test_paths_start_at_the_data_override_the_file_or_here(tmp_path, monkeypatch):
    colour_shard(tmp_path / "elsewhere" / "one.tar")
    (tmp_path / "sub").mkdir()
    text = "name: s\ndata: nowhere\nbenchmarks: [{name: retrieval, dataset: d, data: one.tar}]\n"
    (tmp_path / "sub" / "s.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    plan = load_suite("sub/s.yaml", ["data=elsewhere"])
    assert run_suite(ColourDual(), plan, out=tmp_path / "out")[0].n == 10
    plan = load_suite("sub/s.yaml", ["data=../elsewhere"])
    assert run_suite(ColourDual(), plan, out=tmp_path / "out")[0].n == 10
    colour_shard(tmp_path / "one.tar")  # here, where the suite did not say it would be
    with pytest.raises(DataError, match=r'(?s)no data at "one.tar".*nowhere/one\.tar.*data=FOLDER'):
        run_suite(ColourDual(), load_suite("sub/s.yaml"), out=tmp_path / "out")


def suite_in_a_process(rank, world, folder):
    pretrained.weights_hash = lambda dual: "0" * 16
    return [row.metrics for row in run_suite(ColourDual(), load_suite(folder / "suite.yaml"), out=folder / "out")]


OF_A_MODEL = """
name: all
benchmarks:
  - {name: retrieval, dataset: a, data: a.tar, captions: {fields: [captions]}, n_boot: 20}
  - {name: retrieval, dataset: a, data: a.tar, captions: {fields: [captions]}, head: tokens, rerank: 4, n_boot: 20}
  - {name: health, dataset: a, data: a.tar}
  - {name: zeroshot, dataset: a, data: a.tar, names: NAMES, n_boot: 20}
  - {name: zeroshot, dataset: a, data: a.tar, names: NAMES, adapter: token_zeroshot, n_boot: 20}
  - {name: multilabel, dataset: a, data: a.tar, label: class, names: NAMES, n_boot: 20}
  - {name: label_retrieval, dataset: a, data: a.tar, label: class, queries: [pictures], n_boot: 20}
  - {name: corruptions, dataset: a, data: a.tar, names: NAMES, corruptions: [fog], severities: [1], n_boot: 20}
  - {name: linear_probe, dataset: a, data: a.tar, train: b.tar, C: 1.0, n_boot: 20}
  - {name: knn, dataset: a, data: a.tar, train: b.tar, n_boot: 20}
  - {name: few_shot, dataset: a, data: a.tar, train: b.tar, shots: [1, 2], seeds: [1], C: 1.0, n_boot: 20}
"""


def model_in_a_process(rank, world, folder, out):
    """The records of the command, as every process has them."""
    seen = []
    torch.manual_seed(0)
    save(Model(arch="vlp-nano").build(), folder / f"nano{rank}")
    measure, place = suites.run_suite, str(folder / f"nano{rank}")

    def kept(*given, **how):
        seen.extend(measure(*given, **{**how, "model_name": "nano"}))
        return seen

    suites.run_suite = kept
    try:
        for more in ([], ["--no-cache"]):  # the second time everything was measured before
            words = [place, str(folder / "all.yaml"), "--device", "cpu", "--out", str(out), "--batch-size", "3"]
            result = CliRunner().invoke(
                app, [*words, *(more or ["--cache", str(out / "cache")])], catch_exceptions=False
            )
            assert result.exit_code == 0
    finally:
        suites.run_suite = measure
    return [(row.dataset, row.task, row.head, row.metrics, row.n, row.skips) for row in seen]


@pytest.mark.slow
def test_two_processes_find_what_one_does_by_every_kind_of_benchmark(tmp_path, spawn, monkeypatch):
    monkeypatch.undo()  # the weights are hashed
    colour_shard(tmp_path / "a.tar", per_colour=3, broken=2)
    colour_shard(tmp_path / "b.tar", per_colour=4)
    (tmp_path / "all.yaml").write_text(OF_A_MODEL.replace("NAMES", json.dumps(list(COLOURS))))
    alone = model_in_a_process(0, 1, tmp_path, tmp_path / "alone")
    one, two = spawn(model_in_a_process, 2, tmp_path, tmp_path / "out")
    assert one == two
    assert len(one) == 22
    assert one[:11] == one[11:]
    for own, other in zip(one, alone, strict=True):
        assert own[:3] == other[:3]
        assert own[3] == pytest.approx(other[3], abs=1e-4, nan_ok=True)
        assert own[4:] == other[4:]
    assert len(list(record.read(tmp_path / "out" / "results.jsonl"))) == 11
    features = [load_file(tmp_path / name / "eval/a/features.safetensors") for name in ("alone", "out")]
    for name in ("image", "text"):
        torch.testing.assert_close(features[0][name], features[1][name], atol=2e-3, rtol=0)
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.slow
def test_torchrun_starts_processes_that_know_each_other(tmp_path):
    colour_shard(tmp_path / "a.tar", per_colour=2)
    (tmp_path / "s.yaml").write_text("name: s\nbenchmarks: [{name: health, dataset: a, data: a.tar}]\n")
    torch.manual_seed(0)
    save(Model(arch="vlp-nano").build(), tmp_path / "nano")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "eval"]
    words = [str(tmp_path / "nano"), str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out"), "--no-cache"]
    told = subprocess.run(
        [*launcher, *words, "--device", "cpu"], capture_output=True, text=True, timeout=120, check=False
    )
    assert told.returncode == 0, told.stderr
    assert len(list(record.read(tmp_path / "out" / "results.jsonl"))) == 1
    assert told.stdout.count("report.html") == 1


@pytest.mark.slow
def test_two_processes_find_the_same_and_one_writes(suite, tmp_path, spawn):
    alone = [row.metrics for row in run_suite(ColourDual(), suite, out=tmp_path / "alone")]
    assert spawn(suite_in_a_process, 2, tmp_path) == [alone, alone]
    assert len(list(record.read(tmp_path / "out" / "results.jsonl"))) == 3


def test_missing_data_says_what_makes_them_before_anything_is_encoded(suite, tmp_path):
    dual = ColourDual()
    values = suite.model_dump(mode="json")
    values["benchmarks"][2]["data"] = {"path": "three.tar", "made_by": "make demo"}
    with pytest.raises(DataError, match=r"(?s)three\.tar.*make it with: make demo"):
        run_suite(dual, Suite.model_validate(values), out=tmp_path / "out")
    assert not dual.calls


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("benchmarks.0.blok=3", r'benchmarks\.0\.blok: unknown field; did you mean "block"'),
        ("benchmarks.0.name=retreival", 'unknown benchmark "retreival"; did you mean "retrieval"'),
        ("benchmarks.0.dataset=../x", r"benchmarks\.0\.dataset"),
        ("benchmarks.1.data=two.tar", 'dataset "pairs" stands already for other data'),
        ("benchmarks=[]", "benchmarks"),
        ("benchmarks.0.data={limit: 3}", "give one of"),
    ],
)
def test_faults_name_their_place(suite, tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        load_suite(tmp_path / "suite.yaml", [override])


def test_unreadable_data_sets_are_errors(tmp_path):
    shard = write_shard(tmp_path / "bad.tar", [{"jpg": b"nothing", "txt": b"red"}])
    with pytest.raises(DataError, match="none of 1 pictures"):
        Retrieval(dataset="d", data=str(shard)).run(ColourDual())
    shard = write_shard(tmp_path / "mute.tar", [{"jpg": jpeg("red"), "cls": b"0"}])
    with pytest.raises(DataError, match="no picture has a caption"):
        Retrieval(dataset="d", data=str(shard)).run(ColourDual())


def test_the_table_marks_what_is_at_chance(suite, tmp_path):
    dual = ColourDual()
    dual.table[1:] = torch.rand(5, 3)
    records = run_suite(dual, suite, out=tmp_path / "out")
    with console.capture() as shown:
        console.print(as_table(records, title="t"), width=80)
    lines = shown.get().splitlines()
    assert any("image_retrieval_recall@5" in line and "*" in line for line in lines)
    assert max(map(len, lines)) <= 80
