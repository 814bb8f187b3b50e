"""Compositional tests: accuracy by kind of question, and questions that were answered wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlp.report.bars import LEGEND, bar, star
from vlp.report.grids import Thumbnails, cut, picture
from vlp.report.overview import cells
from vlp.report.page import DASH, Html, figure, fold, join, section, table, tag
from vlp.report.progress import number
from vlp.report.read import Artefacts
from vlp.report.results import Record, task_of

Entry = Mapping[str, Any]
TASKS = ("compositional_captions", "compositional_pictures", "image_caption_selection")
BENCHMARKS = ("caption_selection", "caption_negatives", "true_false", "winoground")  # how their files are called
SHOWN, MAX_OPEN = 8, 24
_HEAD = ("", "Value", "95 % interval", "Chance")


def compositional(artefacts: Artefacts, thumbnails: Thumbnails) -> Html:
    """What is asked in each record and file of such a test, and some wrong answers with pictures and texts."""
    parts = [_measures(record) for record in artefacts.records if record.get("task") in TASKS]
    for benchmark in BENCHMARKS:
        parts += [_groups(title, file) for title, file in artefacts.by_heads(benchmark) if _adds(file, artefacts)]
        wrong = artefacts.by_heads(f"{benchmark}_examples")
        parts += [_wrong(title, file, artefacts, thumbnails) for title, file in wrong]
    return section(f"Compositional tests: {artefacts.name}", join(parts), note=LEGEND) if any(parts) else Html("")


def _adds(file: Entry, artefacts: Artefacts) -> bool:
    """Whether it has groups that are no measures of a record: where groups are files, they are both."""
    told = {name for record in artefacts.records for name in record["metrics"]}
    return not {f"acc_{name}" for name in file.get("groups") or ()} <= told


def _measures(record: Record) -> Html:
    names = [name for name in record["metrics"] if number(record["metrics"][name]) is not None]
    rows = [cells(record, name, 1.0, name=tag("code", name))[:5] for name in names]
    return _titled(task_of(record), table(["Measure", *_HEAD], rows, numeric=(2, 3, 4)), len(rows))


def _groups(title: str, file: Entry) -> Html:
    """The accuracy of each group, best first; folded where there are many."""
    known = {str(name): one for name, one in file["groups"].items() if number(one["acc"]) is not None}
    ordered = sorted(known.items(), key=lambda item: (-item[1]["acc"], item[0]))
    rows = [[name, *_group(one), figure(one.get("items"))] for name, one in ordered]
    return _titled(f"By group: {title}", table(["Group", *_HEAD, "Items"], rows, numeric=(2, 3, 4, 5)), len(rows))


def _titled(title: str, shown: Html, rows: int) -> Html:
    """The table under its title, folded where it has many rows; nothing where it has none."""
    if not rows:
        return Html("")
    return fold(f"{title} ({rows})", shown) if rows > MAX_OPEN else Html(tag("h3", title) + shown)


def _group(one: Entry) -> list[Any]:
    value, chance = float(one["acc"]), number(one.get("chance"))
    ends = (float(one["ci95"][0]), float(one["ci95"][1])) if one.get("ci95") else None
    weak = chance is not None and ends is not None and ends[0] <= chance
    said = f"{100 * ends[0]:.2f} {DASH} {100 * ends[1]:.2f}" if ends else DASH
    drawn = bar(value, ends=ends, chance=chance, weak=weak)
    guessed = DASH if chance is None else f"{100 * chance:.2f} %"
    return [drawn, tag("span", f"{100 * value:.2f} %", star(weak)), said, guessed]


def _wrong(title: str, file: Entry, artefacts: Artefacts, thumbnails: Thumbnails) -> Html:
    examples = list(file.get("examples") or [])[:SHOWN]
    if not examples:
        return Html("")
    note = (
        f"{len(examples)} of {figure(file.get('wrong'))} wrong answers to {figure(file.get('items'))} questions, "
        "evenly spread over them. True texts are green; numbers are similarities, bold of the picture a text prefers."
    )
    shown = tag("div", *(_example(one, artefacts, thumbnails) for one in examples), class_="pair")
    return Html(tag("h3", f"Answered wrong: {title}") + tag("p", note, class_="note") + shown)


def _example(one: Entry, artefacts: Artefacts, thumbnails: Thumbnails) -> Html:
    """Its pictures, and under each text how similar each picture is to it; text i is true of picture i."""
    rows, texts, scores = one["rows"], [str(text) for text in one["texts"]], one["scores"]
    several = len(rows) > 1
    pictures = [
        picture(thumbnails.picture(artefacts, row), f"picture {place + 1}" if several else "")
        for place, row in enumerate(rows)
    ]
    of = [f"of picture {place + 1}: " if several else "true: " for place in range(len(rows))]
    said = [_text(text, [own[i] for own in scores], of[i] if i < len(of) else None) for i, text in enumerate(texts)]
    part = tag("p", _part(one["box"]), class_="rank") if one.get("box") else None
    group = tag("div", str(one["group"]), class_="rank") if one.get("group") else None
    ask = tag("div", tag("div", *pictures, class_="pictures"), group, part, class_="ask")
    return tag("div", ask, tag("ul", *said, class_="texts"), class_="query")


def _text(text: str, scores: Sequence[float], true: str | None) -> Html:
    """A text with the similarity of each picture; `true` says of which it is true."""
    several, most = len(scores) > 1, max(scores)
    numbers = [
        tag("b" if several and score == most else "span", f"picture {place}: " if several else None, f"{score:.3f} ")
        for place, score in enumerate(scores, start=1)
    ]
    return tag("li", true, cut(text, 240), " ", tag("span", *numbers, class_="score"), class_="right" if true else None)


def _part(box: Sequence[float]) -> str:
    left, top, width, height = (figure(float(side)) for side in box)
    return f"asked of its part at {left}, {top} of {width} x {height} pixels"
