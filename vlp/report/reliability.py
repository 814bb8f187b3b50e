"""Reliability diagrams (Niculescu-Mizil and Caruana 2005): how often what is said with a confidence is right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from vlp.report.bars import wilson
from vlp.report.curves import Frame, axes, path
from vlp.report.page import DASH, Html, figure, fold, join, table, tag
from vlp.report.progress import number
from vlp.report.read import Artefacts

NOTE = (
    "Pictures by the probability of the class that came first: dots are the share of them that is right over their "
    "mean probability, with the 95 % interval that their number leaves; on the dashed line probabilities can be taken "
    "at their word, below it the model is too sure. At the bottom: how many pictures each bin has. ECE is the mean "
    "distance from that line over all pictures (Guo et al. 2017)."
)
WIDTH, HEIGHT, PLOT, HISTOGRAM = 334, 286, 208, 36
_MARKS = [(mark, f"{mark} %") for mark in (0, 25, 50, 75, 100)]


class Bin(NamedTuple):
    """Pictures whose probability lies in low..high: how many, their mean probability, the share that is right."""

    low: float
    high: float
    pictures: int
    confidence: float
    accuracy: float


def diagrams(artefacts: Artefacts) -> Html:
    """A figure a head with its numbers folded away; nothing where there is no `reliability.json`."""
    return join(_figure(title, _bins(file)) for title, file in artefacts.by_heads("reliability"))


def _bins(file: Mapping[str, Any]) -> list[Bin]:
    """The bins that have pictures; ValueError where columns are not of one length."""
    counts, total = file["count"], len(file["count"])
    rows = zip(counts, file["confidence"], file["accuracy"], strict=True)
    return [
        Bin(place / total, (place + 1) / total, int(count), float(confidence), float(accuracy))
        for place, (count, confidence, accuracy) in enumerate(rows)
        if count and number(confidence) is not None and number(accuracy) is not None
    ]


def _figure(title: str, bins: list[Bin]) -> Html:
    total = sum(one.pictures for one in bins)
    if not total:
        return Html("")
    sure = sum(one.pictures * one.confidence for one in bins) / total
    right = sum(one.pictures * one.accuracy for one in bins) / total
    error = sum(one.pictures * abs(one.accuracy - one.confidence) for one in bins) / total
    said = (
        f"n = {figure(total)}, ECE {100 * error:.1f} %; on average {100 * sure:.1f} % sure, {100 * right:.1f} % right"
    )
    frame = Frame(40, WIDTH - 8, 8, PLOT, 0, 100, 0, 100)
    drawing = tag(
        "svg",
        *axes(frame, across=_MARKS),
        *(_column(one, frame) for one in bins),
        tag("path", d=path([frame.place(0, 0), frame.place(100, 100)]), stroke="var(--faint)", stroke_dasharray="4 4"),
        *(_point(one, frame) for one in bins),
        *_histogram(bins, frame),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"reliability diagram of {title}: {said}",
    )
    head = ["Probability", "Mean", "Right", "95 % interval", "n"]
    numbers = fold("In numbers", table(head, map(_row, bins), numeric=(1, 2, 3, 4)))
    return tag("figure", tag("figcaption", title, tag("br"), tag("span", said)), drawing, numbers)


def _column(one: Bin, frame: Frame) -> Html:
    (left, bottom), (right, top) = frame.place(100 * one.low, 0), frame.place(100 * one.high, 100 * one.accuracy)
    size = {"x": _r(left + 0.8), "y": _r(top), "width": _r(right - left - 1.6), "height": _r(bottom - top)}
    return tag("rect", **size, fill="var(--raw)", fill_opacity=0.45)


def _point(one: Bin, frame: Frame) -> Html:
    """The dot with its interval; what it stands for comes up under a mouse."""
    low, high = (frame.place(100 * one.confidence, 100 * end) for end in _ends(one))
    x, y = frame.place(100 * one.confidence, 100 * one.accuracy)
    says = f"{figure(one.pictures)} pictures, {100 * one.confidence:.1f} % sure, {100 * one.accuracy:.1f} % right"
    whisker = tag("path", d=path([low, high]), stroke="var(--accent)", stroke_width=1.4)
    dot = tag("circle", cx=_r(x), cy=_r(y), r=3, fill="var(--accent)")
    return tag("g", tag("title", says), whisker, dot)


def _histogram(bins: list[Bin], frame: Frame) -> list[Html]:
    most, base = max(one.pictures for one in bins), HEIGHT - 4
    parts = [tag("line", x1=frame.left, x2=frame.right, y1=base, y2=base, stroke="var(--faint)")]
    for one in bins:
        left, right = frame.place(100 * one.low, 0)[0], frame.place(100 * one.high, 0)[0]
        tall = max(1.0, HISTOGRAM * one.pictures / most)
        shape = {"x": _r(left + 0.8), "y": _r(base - tall), "width": _r(right - left - 1.6), "height": _r(tall)}
        parts.append(tag("rect", **shape, fill="var(--faint)"))
    label = {"x": frame.left - 6, "text_anchor": "end"}
    return [*parts, tag("text", f"{figure(most)}", y=base - HISTOGRAM + 8, **label), tag("text", "0", y=base, **label)]


def _row(one: Bin) -> list[str]:
    low, high = _ends(one)
    span = f"{100 * one.low:.0f} {DASH} {100 * one.high:.0f} %"
    shares = [f"{100 * value:.1f} %" for value in (one.confidence, one.accuracy)]
    return [span, *shares, f"{100 * low:.1f} {DASH} {100 * high:.1f}", figure(one.pictures)]


def _ends(one: Bin) -> tuple[float, float]:
    return wilson(one.accuracy * one.pictures, one.pictures)


def _r(value: float) -> float:
    return round(value, 1)
