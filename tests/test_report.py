from __future__ import annotations

import io
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlp.report import render, write_report
from vlp.report.curves import Line, chart, short, smooth, thin, ticks
from vlp.report.grids import Thumbnails, sample
from vlp.report.page import DASH, Html, document, duration, figure, section, tag
from vlp.report.progress import stage_seconds
from vlp.report.provenance import hide_paths
from vlp.report.read import Artefacts, read_run
from vlp.report.thumbnail import embedded, thumbnail

EVIL = '<script>alert("x")</script>'
VOID = {"img", "meta", "br", "hr"}


class Strict(HTMLParser):
    """Collects text and tags; fails on a tag that is closed in the wrong order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, name: str, attrs: Any) -> None:
        self.seen.append((name, dict(attrs)))
        if name not in VOID:
            self.open.append(name)

    def handle_startendtag(self, name: str, attrs: Any) -> None:
        self.seen.append((name, dict(attrs)))

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parse(page: str) -> Strict:
    parser = Strict()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def words(page: str) -> str:
    return " ".join(" ".join(parse(page).words).split())


def jpeg(colour: str = "red", size: tuple[int, int] = (300, 200)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "JPEG")
    return out.getvalue()


def step(number: int, **more: Any) -> dict[str, Any]:
    return {
        "step": number, "samples": number * 64, "epoch": number / 100, "loss": 4.0 - number / 100,
        "terms": {"infonce": 4.0 - number / 100}, "lr": 1e-3, "scale": 14.3, "samples_per_s": 500.0, "data_wait": 0.04,
        "grad_norm": 1.0, "seconds": number * 0.5, "stages": {"data wait": 0.02 * number, "step": 0.4 * number}, **more,
    }  # fmt: skip


def result(**more: Any) -> dict[str, Any]:
    return {
        "dataset": "scenes", "model": "tiny", "pretrained": "demo", "task": "zeroshot_retrieval", "language": "en",
        "metrics": {"image_retrieval_recall@1": 0.0321, "text_retrieval_recall@1": 0.0012}, "n": 1000,
        "ci95": {"image_retrieval_recall@1": [0.0222, 0.0433], "text_retrieval_recall@1": [0.0, 0.0031]},
        "chance": {"image_retrieval_recall@1": 0.001, "text_retrieval_recall@1": 0.001},
        "contains_chance": {"image_retrieval_recall@1": False, "text_retrieval_recall@1": True},
        "weights_hash": "abc123", "data_hash": "def456", "seconds": 7.5, "step": 200, **more,
    }  # fmt: skip


def lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def artefacts(folder: Path) -> None:
    """What eval.suite leaves behind, by its docstring."""
    (folder / "thumbnails").mkdir(parents=True)
    for row in range(8):
        (folder / "thumbnails" / f"{row}.jpg").write_bytes(jpeg())
    captions = [f"caption {row} {EVIL}" for row in range(8)]
    items = {"schema": 1, "dataset": "scenes", "captions": captions, "caption_image": list(range(8))}
    texts = [
        {
            "caption": row, "text": captions[row], "image": row, "rank": 1 if row % 2 else 6,
            "found": [row if row % 2 else 7, 0, 1, 2, 3], "scores": [0.9, 0.8, 0.7, 0.6, 0.5],
            "correct": [bool(row % 2), False, False, False, False],
        }
        for row in range(7)
    ]  # fmt: skip
    images = [
        {
            "image": row, "rank": 1, "found": [row, 0, 1, 2, 3], "texts": captions[:5], "scores": [0.9] * 5,
            "correct": [True, *[False] * 4],
        }
        for row in range(7)
    ]  # fmt: skip
    both = {"schema": 1, "k": 5, "num_images": 8, "num_texts": 8, "text_to_image": texts, "image_to_text": images}
    confusion = {
        "schema": 1, "names": ["cat", f"dog{EVIL}"], "support": [10, 20], "recall": [0.4, 0.85],
        "pairs": [{"true": 0, "predicted": 1, "count": 6, "examples": [1, 2]}],
    }  # fmt: skip
    for name, value in (("items", items), ("retrieval", both), ("confusion", confusion)):
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "demo"
    folder.mkdir()
    lines(folder / "metrics.jsonl", [step(number) for number in range(10, 201, 10)])
    lines(folder / "results.jsonl", [result(step=100), result()])
    lines(folder / "skips.jsonl", [{"step": i, "reason": "truncated_image", "key": str(i)} for i in range(3)])
    (folder / "config.yaml").write_text(f"name: demo {EVIL}\nurls: /disk/someone/data/train.tar\n", encoding="utf-8")
    host = {"cores": 2, "threads": 1, "hostname": "secret-host", "versions": {"torch": "2.15.0"}, "commit": "c0ffee"}
    (folder / "host.json").write_text(json.dumps({**host, "command": "train.py /disk/someone/run.yaml"}))
    artefacts(folder / "eval" / "scenes")
    return folder


def test_page_holds_the_numbers(run: Path) -> None:
    out = write_report(run)
    assert out == run / "report.html"
    text = words(out.read_text(encoding="utf-8"))
    for expected in ("3.21 %", f"2.22 {DASH} 4.33", "0.10 %", "200 steps", "12,800 samples", "Earlier records (1)"):
        assert expected in text
    assert "truncated image" in text
    assert "c0ffee" in text
    assert "torch 2.15.0" in text
    assert "abc123" in text
    assert "1 min 20 s" in text  # stage "step": 0.4 s * 200
    assert "rank 6 of 8" in text
    assert "the right one" in text
    assert "Its own" not in text
    assert "not chosen by result" in text


def test_only_the_measure_that_contains_chance_is_marked(run: Path) -> None:
    lines(run / "results.jsonl", [result()])
    page = write_report(run).read_text(encoding="utf-8")
    rows = re.findall(r"<tr>.*?</tr>", page)
    marked = [row for row in rows if "contains chance" in row]
    assert len(marked) == 1
    assert "text_retrieval_recall@1" in marked[0]
    tiles = [part for part in page.split('class="tile"')[1:] if "contains chance" in part.split("</section>")[0][:600]]
    assert len(tiles) == 1


def test_everything_is_escaped_and_nothing_is_loaded(run: Path) -> None:
    page = write_report(run).read_text(encoding="utf-8")
    parsed = parse(page)
    names = {name for name, _ in parsed.seen}
    assert "script" not in names
    assert "link" not in names
    assert "iframe" not in names
    assert page.count("&lt;script&gt;") >= 10
    for _, attributes in parsed.seen:
        assert not any(key.startswith("on") for key in attributes)
        address = attributes.get("src") or attributes.get("href")
        assert address is None or address.startswith("data:image/jpeg;base64,")
    assert "url(" not in page
    assert "@import" not in page


def test_no_host_name_and_no_absolute_path(run: Path) -> None:
    page = write_report(run).read_text(encoding="utf-8")
    assert "secret-host" not in page
    assert "/disk/" not in page
    assert "…/train.tar" in page
    assert "…/run.yaml" in page


def test_pictures_right_and_wrong(run: Path) -> None:
    parsed = parse(write_report(run).read_text(encoding="utf-8"))
    classes = [attributes.get("class") for _, attributes in parsed.seen]
    # 7 caption queries: rows 1, 3, 5 found among 5; rows 0, 2, 4, 6 not, so their right picture stands apart
    assert classes.count("picture right") == 7
    assert classes.count("apart") == 4
    assert classes.count("picture") == 3 * 4 + 4 * 5 + 2  # two in the table of confusions
    assert classes.count("right") == 7  # li of the picture queries


def test_run_without_evaluation(tmp_path: Path) -> None:
    lines(tmp_path / "metrics.jsonl", [step(10)])
    text = words(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "No evaluation was recorded yet" in text
    assert "None was skipped" in text


def test_run_without_a_step(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: x\n")
    text = words(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "No step was recorded yet" in text


def test_no_run_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"not a run folder.*metrics\.jsonl"):
        write_report(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        write_report(tmp_path / "none")


def test_torn_lines_and_files_are_passed_over_and_said(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 210, "lo')
    (run / "eval" / "scenes" / "confusion.json").write_text('{"names": [')
    text = words(write_report(run).read_text(encoding="utf-8"))
    assert "metrics.jsonl: 1 unreadable" in text
    assert "eval/scenes/confusion.json: 1 unreadable" in text
    assert "200 steps" in text
    assert "Most confused" not in text


def test_values_that_are_not_finite_are_left_out_and_counted(tmp_path: Path) -> None:
    lines(tmp_path / "metrics.jsonl", [step(10), step(20, loss="nan"), step(30, loss="inf"), step(40)])
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "2 records have a loss that is not finite" in words(page)
    assert not re.search(r'd="[^"]*(nan|inf)', page)


def test_the_later_record_of_a_step_counts(tmp_path: Path) -> None:
    lines(tmp_path / "metrics.jsonl", [step(10), step(20, loss=9.0), step(20, loss=1.0)])
    assert [record["loss"] for record in read_run(tmp_path).steps] == [3.9, 1.0]


def test_stage_seconds_go_on_after_a_resume() -> None:
    records = [
        {"stages": {"step": 5.0}},
        {"stages": {"step": 9.0, "save": 1.0}},
        {"stages": {"step": 2.0}},
        {"stages": {"step": 3.0}},
    ]
    assert stage_seconds(records) == {"step": 12.0, "save": 1.0}


def test_queries_are_drawn_by_seed_and_not_by_result() -> None:
    queries = [{"rank": row} for row in range(100)]
    drawn = sample(queries, 10)
    assert drawn == sample([dict(query) for query in queries], 10)
    assert [query["rank"] for query in drawn] != list(range(10))
    assert len({q["rank"] for q in drawn}) == 10
    assert len(sample(queries[:3], 10)) == 3


def test_pictures_stop_at_the_budget(tmp_path: Path) -> None:
    (tmp_path / "thumbnails").mkdir()
    (tmp_path / "thumbnails" / "0.jpg").write_bytes(jpeg())
    (tmp_path / "thumbnails" / "1.jpg").write_bytes(b"no picture")
    held = Artefacts("x", tmp_path)
    one = Thumbnails()
    assert one.picture(held, 0).startswith("<img")
    assert "unreadable" in one.picture(held, 1)
    assert "not stored" in one.picture(held, 2)
    none = Thumbnails(budget=10)
    assert "left out" in none.picture(held, 0)
    assert none.left_out == 1


def test_a_large_report_stays_small(run: Path) -> None:
    noise = Image.effect_noise((150, 150), 90).convert("RGB")
    out = io.BytesIO()
    noise.save(out, "JPEG", quality=95)
    for number in range(11):
        folder = run / "eval" / f"set{number:02d}"
        artefacts(folder)
        for path in (folder / "thumbnails").glob("*.jpg"):
            path.write_bytes(out.getvalue())
    page = render(read_run(run))
    assert len(page.encode()) < 6_000_000
    assert "pictures were left out" in words(page)


def test_thumbnail_fits_and_transparent_is_white() -> None:
    picture = Image.new("RGBA", (400, 100), (0, 0, 0, 0))
    small = thumbnail(picture, 128)
    assert small is not None
    opened = Image.open(io.BytesIO(small))
    assert opened.size == (128, 32)
    assert opened.getpixel((5, 5)) == (255, 255, 255)
    assert picture.size == (400, 100)
    assert thumbnail(b"nonsense", 128) is None


def test_tag_escapes_text_and_attributes() -> None:
    assert (
        tag("p", "a<b", Html("<i>x</i>"), title='"&', class_="k")
        == '<p title="&quot;&amp;" class="k">a&lt;b<i>x</i></p>'
    )
    assert section("empty") == ""
    assert tag("img", src="x") == '<img src="x">'
    parse(document("t<", "x"))


def test_chart_places_points() -> None:
    drawing = chart("Loss", [Line("a", [(0.0, 0.0), (10.0, 1.0)]), Line("b", [(0.0, 1.0), (10.0, 0.5)])], zero=True)
    paths = re.findall(r'd="M([\d. ]+)L([\d. ]+)"', drawing)
    (ax0, ay0), (ax1, ay1) = (map(float, spot.split()) for spot in paths[0])
    assert ax0 == 46
    assert ax1 > ax0
    assert ay0 == 126
    assert ay1 < ay0
    assert re.search(r">a</text>", drawing)
    assert re.search(r">b</text>", drawing)
    assert chart("none", [Line("x", [(1.0, float("nan"))])]) == ""
    assert "<circle" in chart("one", [Line("", [(3.0, 2.0)])])


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (3.2, 7.9), (-2.0, 1e6), (1e-5, 5e-4), (0.999, 1.001)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high, 5)
    assert 2 <= len(found) <= 6
    assert all(low - 1e-9 <= value <= high * (1 + 1e-9) for value in found)
    assert len({round(b - a, 12) for a, b in itertools.pairwise(found)}) == 1 or high > 1e5


def test_smooth_keeps_a_constant_and_does_not_lag() -> None:
    assert [y for _, y in smooth([(float(x), 2.0) for x in range(50)])] == pytest.approx([2.0] * 50)
    ramp = smooth([(float(x), float(x)) for x in range(1000)])
    assert ramp[500][1] == pytest.approx(500.0, abs=1e-6)


def test_thin_keeps_extremes_and_the_end() -> None:
    points = [(float(x), 0.0) for x in range(10_000)]
    points[1234] = (1234.0, 7.0)
    points[1300] = (1300.0, -7.0)
    kept = thin(points)
    assert len(kept) <= 1201
    assert points[1234] in kept
    assert points[1300] in kept
    assert kept[-1] == points[-1]
    assert kept == sorted(kept)


def test_numbers_for_people() -> None:
    assert [figure(v) for v in (None, float("nan"), 3, 1234567, 0.123456, 12345.6)] == [
        DASH,
        DASH,
        "3",
        "1,234,567",
        "0.1235",
        "12,346",
    ]
    assert [duration(v) for v in (0.25, 45, 185, 7620)] == ["0.25 s", "45 s", "3 min 05 s", "2 h 07 min"]
    assert [short(v) for v in (0, 0.25, 12000, 1e-5, 3_000_000)] == ["0", "0.25", "12k", "1e-5", "3M"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("urls: /data/a/b-{000..003}.tar", "urls: …/b-{000..003}.tar"),
        ("runs/out/demo", "runs/out/demo"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("../shared/data/x", "../shared/data/x"),
        ("1/2 and a/b", "1/2 and a/b"),
        (r"C:\Users\me\x.tar", "…/x.tar"),
    ],
)
def test_hide_paths(text: str, shown: str) -> None:
    assert hide_paths(text) == shown


def test_a_small_picture_is_shown_larger() -> None:
    assert 'width="96"' in embedded(jpeg(size=(64, 32)), alt="x", least=96)
    assert 'width="48"' in embedded(jpeg(size=(32, 64)), alt="x", least=96)
    assert "width" not in embedded(jpeg(size=(128, 20)), alt="x", least=96)


def test_measures_over_steps_are_drawn_from_two_records_on(run: Path) -> None:
    lines(run / "results.jsonl", [result()])
    assert "Measures over steps" not in words(render(read_run(run)))
    lines(run / "results.jsonl", [result(step=100), result(step=200, metrics={"image_retrieval_recall@1": 0.5})])
    page = render(read_run(run))
    assert "Measures over steps" in words(page)
    assert "0.5 at step 200" in words(page)
