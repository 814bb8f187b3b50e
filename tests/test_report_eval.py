"""The page of an evaluation alone: each part from files made by hand, empty folders, damaged and hostile files."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.test_report import EVIL, jpeg, lines, parse, words
from vlp.report import OPEN, render, write_report
from vlp.report.bars import WIDTH, bar, top_of, wilson
from vlp.report.grids import Thumbnails
from vlp.report.ranked import main_metric
from vlp.report.read import Artefacts, read_run
from vlp.report.reliability import diagrams
from vlp.report.results import share

FAULT = "was left out, since a file"


def record(dataset: str, task: str, metrics: dict[str, float], **more: Any) -> dict[str, Any]:
    return {
        "dataset": dataset, "model": "tiny", "pretrained": "", "task": task, "metrics": metrics, "language": "en",
        "n": 200, "ci95": {}, "chance": {}, "contains_chance": {}, "head": "global", "selection": {"split": "none"},
        "weights_hash": "abc123", "data_hash": "d" * 64, "test_label_reads": 1, "skips": {}, "seconds": 7.5,
        "step": None, "code_version": "0.1+c0ffee", "artefacts": f"eval/{dataset}", **more,
    }  # fmt: skip


def png(size: tuple[int, int] = (60, 40)) -> str:
    out = io.BytesIO()
    Image.new("RGBA", size, (255, 0, 0, 128)).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


CONFUSION = {
    "names": ["cat", f"dog{EVIL}", "cow"], "support": [10, 20, 0], "recall": [0.4, 0.85, None],
    "pairs": [{"true": 0, "predicted": 1, "count": 6, "examples": [1, 2]}],
    "worst": [{"class": 0, "examples": [{"row": 1, "predicted": 1}, {"row": 99, "predicted": 1}]}],
    "best": [{"class": 1, "examples": [{"row": 3, "predicted": 1}]}],
}  # fmt: skip
RELIABILITY = {
    "bins": 4, "count": [0, 20, 0, 60], "confidence": [None, 0.4, None, 0.9], "accuracy": [None, 0.5, None, 0.8]
}  # fmt: skip
CORRUPTIONS = {
    "severities": [1, 5], "clean": 0.8, "accuracy": {f"fog{EVIL}": [0.6, 0.2], "snow": [0.4, 0.4]}, "sheet": png()
}  # fmt: skip
GROUPS = {"groups": {f"on{EVIL}": {"items": 40, "acc": 0.75, "chance": 0.5, "ci95": [0.6, 0.9]},
                     "under": {"items": 9, "acc": 0.5, "chance": 0.5, "ci95": [0.2, 0.8]},
                     "by": {"items": 3, "acc": 0.25}}}  # fmt: skip
WRONG = {
    "items": 52, "wrong": 17,
    "examples": [{"rows": [1], "texts": [f"a cat on a mat{EVIL}", "a mat on a cat"], "scores": [[0.25, 0.3]],
                  "group": f"on{EVIL}", "box": [1, 2, 30, 40]}],
}  # fmt: skip
PAIRS = {
    "items": 4, "wrong": 1,
    "examples": [{"rows": [1, 2], "texts": ["old kisses young", "young kisses old"],
                  "scores": [[0.2, 0.3], [0.4, 0.1]]}],
}  # fmt: skip
FEW_SHOT = {
    "runs": [{"seed": seed, "shots": shots, "acc1": 0.1 * math.log2(shots) + 0.01 * seed + 0.4}
             for shots in (4, 1) for seed in (1, 2, 3)],
}  # fmt: skip
LEGEND = {f"sky{EVIL}": "#ea580c", "sea": "red;background:url(x)"}
SEGMENTATION = {
    "name": "maskclip", "iou": {f"sky{EVIL}": 0.5, "sea": None}, "pixels": {"sea": 0},
    "overlays": [{"row": 1, "png": png(), "legend": LEGEND, "pixel_accuracy": 0.25}],
}  # fmt: skip
MULTILABEL = {
    "names": ["dog", f"person{EVIL}", "kite"], "support": [3, 9, 0], "average_precision": [0.2, 0.9, None],
    "worst": [{"class": 0, "average_precision": 0.2, "missed": [0], "false": [1, 2]}],
}  # fmt: skip
ANOMALY = {
    "grid": [1, 2],
    "examples": [{"row": 1, "object": f"bolt{EVIL}", "anomalous": False, "score": 0.9, "map": [0.1, 0.9]},
                 {"row": 2, "object": "bolt", "anomalous": True, "score": 0.2, "map": None}],
}  # fmt: skip
BY_LABEL = {
    "num_images": 4,
    "text_to_image": [{"query": None, "text": f"a man in red{EVIL}", "label": "7", "image": 3, "rank": 2,
                       "found": [0, 3], "scores": [0.9, 0.8], "correct": [False, True]}],
    "image_to_image": [{"query": 2, "text": "key", "label": f"8{EVIL}", "image": 1, "rank": 3, "found": [0],
                        "scores": [0.7], "correct": [False]}],
}  # fmt: skip
FILES = {
    "confusion": CONFUSION, "reliability": RELIABILITY, "corruptions": CORRUPTIONS, "caption_selection": GROUPS,
    "caption_selection_examples": WRONG, "winoground_examples": PAIRS, "few_shot": FEW_SHOT,
    "segmentation": SEGMENTATION, "multilabel": MULTILABEL, "anomaly": ANOMALY, "label_retrieval": BY_LABEL,
}  # fmt: skip
RECORDS = [
    record("toys", "zeroshot_classification", {"acc1": 0.5, "ece": 0.1}, ci95={"acc1": [0.4, 0.6]},
           chance={"acc1": 0.25}),
    record("farm", "zeroshot_classification", {"acc1": 0.75}, artefacts=None),
    record("coin", "zeroshot_classification", {"acc1": 0.3}, ci95={"acc1": [0.2, 0.4]}, chance={"acc1": 0.25},
           contains_chance={"acc1": True}),
    record("toys", "few_shot", {"acc1@1shot": 0.42, "acc1@4shot": 0.62, "acc1@4shot_std": 0.01, "acc1_zeroshot": 0.47},
           ci95={"acc1@4shot": [0.55, 0.69]}, selection={"split": "validation", "C@4shot": "0.1", "train_hash": "zz"}),
    record("toys", "image_caption_selection", {"acc": 0.7, "acc_swap": 0.6}, ci95={"acc_swap": [0.55, 0.65]},
           chance={"acc": 0.5, "acc_swap": 0.5}, test_label_reads=2),
    record(f"set{EVIL}", "health", {"rankme_image": 12.0}),
]  # fmt: skip


def store(folder: Path, files: dict[str, Any], *, pictures: int = 4) -> Path:
    (folder / "thumbnails").mkdir(parents=True, exist_ok=True)
    for row in range(pictures):
        (folder / "thumbnails" / f"{row}.jpg").write_bytes(jpeg(size=(64, 48)))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps({"schema": 1, **content}), encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "measured"
    store(out / "eval" / "toys", {"items": {"dataset": "toys"}, **FILES})
    lines(out / "results.jsonl", RECORDS)
    return out


def page_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def part(page: str, title: str) -> str:
    """The section whose heading begins so."""
    found = [text for text in page.split("<section>") if text.startswith(f"<h2>{title}")]
    assert len(found) == 1, title
    return found[0]


def held(tmp_path: Path, **files: Any) -> Artefacts:
    return Artefacts("toys", store(tmp_path / "toys", {}), files=files)


def test_a_page_without_training_has_every_part_and_no_fault(folder: Path) -> None:
    page = page_of(folder)
    text = words(page)
    for title in (
        "All results", "Measures", "Compositional tests: toys", "Classes: toys", "Segmentation: toys, maskclip",
        "Labels: toys", "Anomalies: toys", "What queries find: toys, by label", "Corrupted pictures: toys",
        "How sure, and how often right", "From few pictures", "Provenance",
    ):  # fmt: skip
        assert title in text
    assert FAULT not in text
    assert "Measured on 4 data sets, by 4 tasks" in text
    assert "Where the time went" not in text
    assert "No step was recorded yet" not in text


def test_nothing_escapes_and_nothing_is_loaded(folder: Path) -> None:
    page = page_of(folder)
    parsed = parse(page)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 8
    assert not {"script", "link", "iframe", "a"} & {name for name, _ in parsed.seen}
    for name, attributes in parsed.seen:
        assert not any(key.startswith("on") for key in attributes)
        assert (attributes.get("src") or "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")
        if name == "img":
            assert attributes["alt"]
        if name == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
    assert "url(" not in page


def test_the_overview_has_a_row_a_result_under_its_task_best_first(folder: Path) -> None:
    text = part(page_of(folder), "All results")
    body = next(one for one in text.split("<tbody>") if "acc1</code>" in one)
    rows = re.findall(r"<tr>(.*?)</tr>", body)
    assert [re.sub(r"<.*?>.*", "", row.removeprefix("<td>")) for row in rows] == ["farm", "toys", "coin"]
    assert "mean 51.67 %" in body
    assert ["*" in row for row in rows] == [False, False, True]
    assert 'aria-label="50.0 %, 95 % interval 40.0 % to 60.0 %, chance 25.0 %"' in rows[1]
    assert "40.00 \N{EN DASH} 60.00" in rows[1]
    assert "few shot" in text
    assert "acc1@4shot</code>" in text
    assert "Not shown to be better than chance: 1 of 5" in text
    assert f"health of set{EVIL}".replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;") in text


@pytest.mark.parametrize(
    ("task", "metrics", "main"),
    [
        ("zeroshot_classification", ["acc5", "acc1"], "acc1"),
        ("zeroshot_classification_corrupted", ["acc1", "acc1_corrupted", "acc1_fog"], "acc1_corrupted"),
        ("zeroshot_retrieval", ["image_retrieval_recall@1", "image_retrieval_recall@5"], "image_retrieval_recall@5"),
        ("zeroshot_retrieval", ["image_retrieval_recall@1", "image_retrieval_mean_rank"], "image_retrieval_recall@1"),
        ("few_shot", ["acc1@1shot", "acc1@16shot", "acc1@16shot_std", "acc1_zeroshot"], "acc1@16shot"),
        ("composed_image_retrieval", ["recall@1_image", "recall@5_image", "recall@1_mean"], "recall@1_mean"),
        ("composed_image_retrieval", ["recall@10_mean", "macro_recall@10_mean"], "macro_recall@10_mean"),
        ("zeroshot_segmentation", ["mean_iou", "pixel_accuracy"], "mean_iou"),
        ("image_caption_selection", ["text_acc", "image_acc", "acc"], "acc"),
        ("zeroshot_classification", ["mean_average_precision"], "mean_average_precision"),
        ("zeroshot_segmentation_reco", ["mean_iou", "pixel_accuracy"], "mean_iou"),
        ("label_retrieval", ["class_to_image_mAP", "text_to_image_mAP", "image_to_image_mAP"], "text_to_image_mAP"),
        ("conditional_image_retrieval", ["recall@1_image", "recall@2_image", "recall@1_mean"], "recall@1_mean"),
        ("anomaly_detection", ["image_auroc", "pixel_auroc"], "image_auroc"),
        ("health", ["rankme_image"], None),
    ],
)
def test_the_main_measure_of_a_task(task: str, metrics: list[str], main: str | None) -> None:
    assert main_metric(task, metrics) == main


def test_a_bar_ends_where_the_value_lies() -> None:
    drawn = bar(0.1, ends=(0.05, 0.15), chance=0.02, top=0.2, weak=False)
    assert f'width="{WIDTH / 2}"' in drawn
    assert f'x1="{WIDTH / 10}"' in drawn
    assert f"M{WIDTH / 4} 5V11M{WIDTH / 4} 8H{WIDTH * 0.75}" in drawn
    assert "var(--accent)" in drawn
    assert "var(--accent)" not in bar(0.1, weak=True)
    assert bar(12.0, weak=False) == "\N{EN DASH}"
    assert [top_of([0.07, None, 0.0]), top_of([0.3, 0.5]), top_of([0.51]), top_of([])] == [0.1, 0.5, 1.0, 1.0]


def test_the_interval_of_a_counted_share() -> None:
    assert wilson(0, 800) == (0, pytest.approx(0.00478, abs=1e-5))
    assert wilson(10, 20) == (pytest.approx(0.2993, abs=1e-4), pytest.approx(0.7007, abs=1e-4))
    assert wilson(20, 20)[1] == 1


def test_names_of_shares_are_told_from_other_numbers() -> None:
    names = ("acc1@4shot_std", "lp_acc1", "text_acc", "mean_iou", "mean_average_precision", "macro_recall@10_mean")
    assert {share(name, 0.5) for name in names} == {"50.00 %"}
    assert {share(name, 0.5) for name in ("ece", "temperature", "rankme_image", "image_retrieval_mean_rank")} == {"0.5"}


def test_classes_show_what_they_were_taken_for(folder: Path) -> None:
    page = part(page_of(folder), "Classes: toys")
    for said in ("Found worst", "taken for dog", "Found best", "not stored", "40.0 %", "85.0 %"):
        assert said in page
    assert 'aria-label="40.0 %, 95 % interval 16.8 % to 68.7 %"' in page
    best = page.split("Accuracy of each class")[1]
    assert best.index("dog") < best.index("cat") < best.index("cow")


def test_old_files_and_two_heads_have_sections_too(folder: Path) -> None:
    old = {key: value for key, value in CONFUSION.items() if key not in ("worst", "best")}
    store(folder / "eval" / "toys", {"confusion_tokens": old})
    page = part(page_of(folder), "Classes: toys, by tokens")
    assert "Most confused" in page
    assert "Found worst" not in page


def test_many_classes_are_folded(tmp_path: Path) -> None:
    many = {"names": [f"c{n}" for n in range(61)], "support": [1] * 61, "recall": [0.0] * 61, "pairs": []}
    store(tmp_path / "eval" / "toys", {"confusion": many})
    lines(tmp_path / "results.jsonl", RECORDS[:1])
    assert "<summary>Accuracy of each class (61)</summary>" in page_of(tmp_path)


def test_the_reliability_diagram_places_its_bins(tmp_path: Path) -> None:
    drawn = diagrams(held(tmp_path, reliability=RELIABILITY))
    # ECE = (20 |0.5 - 0.4| + 60 |0.8 - 0.9|) / 80; sure = (8 + 54) / 80; right = (10 + 48) / 80
    assert "n = 80, ECE 10.0 %; on average 77.5 % sure, 72.5 % right" in drawn
    dots = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn)
    assert [(float(x), float(y)) for x, y in dots] == [(154.4, 108.0), (297.4, 48.0)]  # of 40..326 and 208..8
    assert drawn.count("<rect") == 4  # two bins, in the diagram and in the histogram
    assert "25 \N{EN DASH} 50 %" in drawn
    assert "29.9 \N{EN DASH} 70.1" in drawn
    assert diagrams(held(tmp_path, reliability={"count": [0], "confidence": [None], "accuracy": [None]})) == ""


def test_corruptions_are_a_table_with_heat_and_a_sheet(folder: Path) -> None:
    page = part(page_of(folder), "Corrupted pictures: toys")
    assert "as they are, 80.0, and corrupted, 40.0 on average, 50 % of that" in page
    snow = next(row for row in re.findall(r"<tr>.*?</tr>", page) if "snow" in row)
    assert re.findall(r">([\d.]+)<", snow) == ["40.0", "40.0", "40.0"]
    opacity = [float(value) for value in re.findall(r"/ ([\d.]+)\)", page)]
    assert opacity[:3] == [0.55] * 3  # the clean row has the most
    assert min(opacity) == pytest.approx(0.14)  # 0.55 * 0.2 / 0.8
    assert page.count("data:image/jpeg") == 1
    assert "at each severity of fog" in page


def test_a_sheet_that_is_no_picture_is_said(tmp_path: Path) -> None:
    store(tmp_path / "eval" / "toys", {"corruptions_tokens": {**CORRUPTIONS, "sheet": "no base64!"}})
    lines(tmp_path / "results.jsonl", RECORDS[:1])
    page = part(page_of(tmp_path), "Corrupted pictures: toys, by tokens")
    assert "unreadable" in page


def test_compositional_tests_show_groups_and_wrong_answers(folder: Path) -> None:
    page = part(page_of(folder), "Compositional tests: toys")
    text = words(f"<section>{page}".split("</section>")[0] + "</section>")
    for said in ("acc_swap", "By group: toys", "60.00 \N{EN DASH} 90.00", "1 of 17 wrong answers to 52 questions",
                 "true: a cat on a mat", "a mat on a cat 0.300", "its part at 1, 2 of 30 x 40 pixels",
                 "of picture 1: old kisses young picture 1: 0.200 picture 2: 0.400"):  # fmt: skip
        assert said in text
    rows = [row for row in re.findall(r"<tr>.*?</tr>", page) if "star" in row]
    assert len(rows) == 1
    assert "under" in rows[0]
    assert "<b>picture 2: 0.400 </b>" in page


def test_groups_that_are_measures_are_told_once(folder: Path) -> None:
    store(folder / "eval" / "toys", {"caption_selection": {"groups": {"swap": {"items": 5, "acc": 0.6}}}})
    page = page_of(folder)
    assert "By group" not in page
    assert "acc_swap" in page


def test_few_shot_curves_have_draws_mean_and_zeroshot(folder: Path) -> None:
    page = part(page_of(folder), "From few pictures")
    assert "accuracy of toys by pictures a class: 42.0 % from 1, 62.0 % from 4; zero-shot 47.0 %" in page
    assert page.count("<circle") == 6
    assert "stroke-dasharray" in page
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>.*?</tr>", page)]
    assert ["1", "42.00 %", "1.00", "\N{EN DASH}"] in rows
    assert ["4", "62.00 %", "1.00", "55.00 \N{EN DASH} 69.00"] in rows


def test_one_draw_has_no_spread_and_no_zeroshot(tmp_path: Path) -> None:
    store(tmp_path / "eval" / "toys", {"few_shot": {"runs": [{"seed": 1, "shots": 2, "acc1": 0.5}]}})
    lines(tmp_path / "results.jsonl", RECORDS[1:2])
    page = part(page_of(tmp_path), "From few pictures")
    assert "stroke-dasharray" not in page
    assert "nan" not in page


def test_segmentation_shows_overlays_with_their_colours(folder: Path) -> None:
    page = part(page_of(folder), "Segmentation: toys, maskclip")
    assert page.count("data:image/jpeg") == 1
    assert 'alt="true classes and classes found in picture 1 of toys"' in page
    assert "25.0 % of the pixels right" in page
    assert re.findall(r'<i style="(.*?)">', page) == ["background:#ea580c", "background:transparent"]
    assert "50.0 %" in page


def test_several_labels_show_what_is_missed_and_taken(folder: Path) -> None:
    page = part(page_of(folder), "Labels: toys")
    assert page.count("data:image/jpeg") == 3
    every = page.split("Average precision of each class")[1]
    assert every.index("person") < every.index("dog") < every.index("kite")


def test_anomalies_show_mistakes_and_where_they_score(folder: Path) -> None:
    page = part(page_of(folder), "Anomalies: toys")
    assert page.index("Normal, and scored most") < page.index("0.900") < page.index("Anomalous") < page.index("0.200")
    assert page.count("data:image/jpeg") == 3  # two pictures, one map
    assert 'alt="where picture 1 scores"' in page


def test_queries_by_label_ask_by_words_or_by_a_picture(folder: Path) -> None:
    page = part(page_of(folder), "What queries find: toys, by label")
    for said in ("Caption → pictures of the same label", "label 7", "rank 2 of 4", "Picture → pictures", "rank 3 of 4"):
        assert said in page
    assert page.count("picture right") == 2  # one found, one beside those that were
    assert page.count("data:image/jpeg") == 5


def test_where_results_come_from_is_folded(folder: Path) -> None:
    page = part(page_of(folder), "Provenance")
    assert "Of each result (6)" in page
    assert "validation; C@4shot 0.1" in page
    assert "nothing was chosen" in page
    assert '<span class="mark">2</span>' in page
    assert "dddddddddd</code>" in page
    assert "d" * 64 in page  # whole, in a title
    assert "zz" not in page


def test_results_without_any_file(tmp_path: Path) -> None:
    lines(tmp_path / "results.jsonl", RECORDS)
    text = words(page_of(tmp_path))
    assert "All results" in text
    assert "Compositional tests: toys" in text  # its measures need no file
    assert FAULT not in text
    (tmp_path / "eval" / "empty").mkdir(parents=True)
    assert FAULT not in words(page_of(tmp_path))


def test_a_results_file_with_nothing_in_it(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text("")
    text = words(page_of(tmp_path))
    assert "No evaluation was recorded yet" in text
    assert "All results" not in text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("confusion", {**CONFUSION, "pairs": [{"true": 77, "predicted": 1, "count": 6, "examples": []}]}),
        ("confusion", {**CONFUSION, "worst": 3}),
        ("reliability", {**RELIABILITY, "accuracy": [0.5]}),
        ("reliability", {"bins": 4}),
        ("corruptions", {**CORRUPTIONS, "accuracy": {"fog": [0.5]}}),
        ("caption_selection_examples", {"examples": [{"rows": [1], "texts": ["a"], "scores": [[]]}]}),
        ("caption_selection_examples", {"examples": [{"rows": ["../../x"], "texts": ["a"], "scores": [[1.0]]}]}),
        ("few_shot", {"runs": [{"shots": 0, "acc1": 0.5}]}),
        ("few_shot", {"runs": [{"shots": "many", "acc1": 0.5}]}),
        ("segmentation", {"iou": {"sky": 0.5}, "overlays": [{"row": 1}]}),
        ("multilabel", {**MULTILABEL, "worst": [{"class": 5}]}),
        ("anomaly", {**ANOMALY, "grid": [3, 3]}),
        ("label_retrieval", {"text_to_image": [{"text": "a"}]}),
        ("retrieval", {"text_to_image": [{"text": "a"}], "image_to_text": []}),
    ],
)
def test_a_file_of_another_shape_costs_its_part_and_is_said(folder: Path, name: str, content: Any) -> None:
    store(folder / "eval" / "toys", {name: content})
    page = page_of(folder)
    parse(page)
    assert page.count(FAULT) == 1
    assert "toys: " in page
    assert "All results" in page


@pytest.mark.parametrize("name", FILES)
def test_a_torn_file_costs_its_part_and_is_said(folder: Path, name: str) -> None:
    (folder / "eval" / "toys" / f"{name}.json").write_text('{"schema": 1, "runs": [')
    text = words(page_of(folder))
    assert f"eval/toys/{name}.json: 1 unreadable" in text
    assert FAULT not in text


def test_records_of_another_shape_do_not_stop_the_page(tmp_path: Path) -> None:
    odd = record("odd", "zeroshot_classification", {"acc1": 0.5}, ci95=[1, 2], chance="none", skips=None, selection=7)
    (tmp_path / "results.jsonl").write_text(
        "\n".join(
            [json.dumps(odd), '{"metrics": 3}', "[1]", '{"dataset": 5, "task": null, "metrics": {"acc1": "nan"}}']
        )
    )
    text = words(page_of(tmp_path))
    assert "50.00 %" in text
    assert "results.jsonl: 2 unreadable" in text


def test_no_file_outside_the_thumbnails_is_shown(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(jpeg())
    with pytest.raises(ValueError, match="invalid literal"):
        Thumbnails().picture(held(tmp_path), "../../secret")  # type: ignore[arg-type]


def test_sections_of_many_data_sets_are_folded_and_share_the_room(tmp_path: Path) -> None:
    for number in range(OPEN + 3):
        store(tmp_path / "eval" / f"set{number}", {"confusion": CONFUSION})
    lines(tmp_path / "results.jsonl", RECORDS[:1])
    page = render(read_run(tmp_path))
    assert f"Classes: 3 more data sets, set{OPEN}, set{OPEN + 1}, set{OPEN + 2}" in page
    room = Thumbnails(budget=3 * len(Thumbnails().picture(held(tmp_path), 1)))
    room.share(3)
    assert room.picture(held(tmp_path), 1).startswith("<img")
    assert "left out" in room.picture(held(tmp_path), 1)
    room.share(2)
    assert room.picture(held(tmp_path), 1).startswith("<img")


def test_where_room_is_short_fewer_rows_are_shown_and_those_whole() -> None:
    room = Thumbnails()
    assert room.fits(7, 10) == 10
    room.share(20)
    assert room.fits(7, 10) == 3
    assert Thumbnails(budget=10).fits(7, 10) == 1


def test_languages_and_prefixes_stand_apart(tmp_path: Path) -> None:
    both = [record("x", "zeroshot_retrieval", {"image_retrieval_recall@5": v}, language=w) for v, w in ((0.5, "en"), (0.25, "de"))]  # fmt: skip  # noqa: E501
    lines(tmp_path / "results.jsonl", [*both, record("x", "zeroshot_classification", {"acc1": 0.1}, prefix="label")])
    store(tmp_path / "eval" / "x-label_prefix", {"items": {"dataset": "x"}, "confusion": CONFUSION})
    page = page_of(tmp_path)
    assert "zero-shot retrieval, de" in page
    assert "Classes: x, label prefix" in page
    assert len(read_run(tmp_path).latest) == 3


def test_many_measures_are_folded_and_tiles_left_to_the_overview(tmp_path: Path) -> None:
    many = [record(f"set{n}", "zeroshot_classification", {"acc1": 0.5, "acc5": 0.9, "ece": 0.1}) for n in range(21)]
    lines(tmp_path / "results.jsonl", many)
    page = page_of(tmp_path)
    assert "All 63 measures" in page
    assert 'class="tile"' not in page
