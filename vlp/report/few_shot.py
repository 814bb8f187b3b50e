"""Accuracy of probes over pictures a class: every draw, mean and spread of the draws, and zero-shot beside them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from vlp.report.curves import SIZES, Frame, axes, path
from vlp.report.page import DASH, Html, fold, table, tag
from vlp.report.progress import number
from vlp.report.read import Artefacts
from vlp.report.results import Record, interval, range_of, share

NOTE = (
    "Linear probes of frozen features from few pictures a class: dots are draws, the line is their mean, the band one "
    "standard deviation over the draws to either side. Dashed: zero-shot on the same pictures."
)
Draws = Mapping[int, Sequence[float]]  # accuracies by shots


def curves(artefacts: Artefacts) -> Html:
    """The figure of `few_shot.json`, its numbers folded away; nothing without draws."""
    draws: dict[int, list[float]] = {}
    for run in artefacts.files.get("few_shot", {}).get("runs") or []:
        draws.setdefault(int(run["shots"]), []).append(float(run["acc1"]))
    if not draws:
        return Html("")
    draws = dict(sorted(draws.items()))
    own = [record for record in artefacts.records if record.get("task") == "few_shot"]
    record: Record = own[0] if own else {"metrics": {}}
    zero = number(record["metrics"].get("acc1_zeroshot"))
    seeds = max(map(len, draws.values()))
    title = tag("span", f" accuracy in % over pictures a class, {seeds} draws each")
    numbers = fold("In numbers", _table(draws, record))
    return tag("figure", tag("figcaption", artefacts.name, title), _drawing(artefacts.name, draws, zero), numbers)


def _drawing(name: str, draws: Draws, zero: float | None) -> Html:
    width, height = SIZES["middle"]
    frame = _frame(draws, zero, width=width, height=height)
    said = ", ".join(f"{100 * statistics.fmean(own):.1f} % from {count}" for count, own in draws.items())
    beside = f"; zero-shot {100 * zero:.1f} %" if zero is not None else ""
    return tag(
        "svg",
        *axes(frame, across=[(math.log2(shots), str(shots)) for shots in draws]),
        *_band(draws, frame),
        *(_zeroshot(zero, frame) if zero is not None else ()),
        *_dots(draws, frame),
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=f"accuracy of {name} by pictures a class: {said}{beside}",
    )


def _frame(draws: Draws, zero: float | None, *, width: int, height: int) -> Frame:
    values = [100 * value for own in draws.values() for value in own] + ([100 * zero] if zero is not None else [])
    ends = [100 * end for own in draws.values() for end in _spread(own)]
    low, high = min(values + ends), max(values + ends)
    room = 0.08 * (high - low) or 1.0
    first, last = math.log2(min(draws)), math.log2(max(draws))
    margin = 64 if zero is not None else 12
    return Frame(46, width - margin, 8, height - 24, first - 0.2, last + 0.2, max(0.0, low - room), high + room)


def _spread(own: Sequence[float]) -> tuple[float, float]:
    """One standard deviation over the draws to either side of their mean."""
    mean, deviation = statistics.fmean(own), statistics.stdev(own) if len(own) > 1 else 0.0
    return mean - deviation, mean + deviation


def _band(draws: Draws, frame: Frame) -> list[Html]:
    low = [frame.place(math.log2(shots), 100 * _spread(own)[0]) for shots, own in draws.items()]
    high = [frame.place(math.log2(shots), 100 * _spread(own)[1]) for shots, own in draws.items()]
    mean = [frame.place(math.log2(shots), 100 * statistics.fmean(own)) for shots, own in draws.items()]
    return [
        tag("path", d=path([*low, *reversed(high)]) + "Z", fill="var(--raw)", fill_opacity=0.4),
        tag("path", d=path(mean), fill="none", stroke="var(--s0)", stroke_width=1.8),
    ]


def _zeroshot(zero: float, frame: Frame) -> list[Html]:
    _, y = frame.place(frame.x0, 100 * zero)
    line = path([(frame.left, y), (frame.right, y)])
    place: dict[str, Any] = {"x": frame.right + 6, "style": "fill:var(--s1)"}
    return [
        tag("path", d=line, stroke="var(--s1)", stroke_width=1.6, stroke_dasharray="5 4"),
        tag("text", "zero-shot", y=round(y - 2, 1), **place),
        tag("text", f"{100 * zero:.1f} %", y=round(y + 11, 1), **place),
    ]


def _dots(draws: Draws, frame: Frame) -> list[Html]:
    parts = []
    for shots, own in draws.items():
        for value in own:
            x, y = frame.place(math.log2(shots), 100 * value)
            dot = tag("circle", cx=round(x, 1), cy=round(y, 1), r=2.6, fill="var(--s0)", fill_opacity=0.75)
            parts.append(tag("g", tag("title", f"{shots} pictures a class: {100 * value:.2f} %"), dot))
    return parts


def _table(draws: Draws, record: Record) -> Html:
    rows = []
    for shots, own in draws.items():
        deviation = f"{100 * statistics.stdev(own):.2f}" if len(own) > 1 else DASH
        name = f"acc1@{shots}shot"
        rows.append([str(shots), share(name, statistics.fmean(own)), deviation, range_of(name, interval(record, name))])
    if (zero := number(record["metrics"].get("acc1_zeroshot"))) is not None:
        ends = range_of("acc1", interval(record, "acc1_zeroshot"))
        rows.append(["0 (zero-shot)", share("acc1", zero), DASH, ends])
    chance = number((record.get("chance") or {}).get(f"acc1@{max(draws)}shot"))
    if chance is not None:
        rows.append(["chance", share("acc1", chance), "", ""])
    head = ["Pictures a class", "Mean", "Std over draws", "95 % interval over pictures"]
    return table(head, rows, numeric=(1, 2, 3))
