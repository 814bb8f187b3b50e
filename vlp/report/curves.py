"""Line charts as inline SVG: one vertical axis each, colours from the page's style, nothing to load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from vlp.report.page import Html, figure, tag

MAX_POINTS = 600  # a line is thinned to this many bins, keeping the lowest and highest of each
Points = list[tuple[float, float]]
Size = Literal["small", "middle", "wide"]
SIZES: dict[Size, tuple[int, int]] = {
    "small": (334, 150),
    "middle": (513, 200),
    "wide": (1052, 260),
}  # as the page shows them


class Line(NamedTuple):
    """One series: points in order of x; `faint` lines are the raw data behind a smooth one."""

    name: str
    points: Points
    faint: bool = False
    dots: bool = False


class Frame(NamedTuple):
    """The rectangle of the data in the drawing, and the range of values that it shows."""

    left: float
    right: float
    top: float
    bottom: float
    x0: float
    x1: float
    y0: float
    y1: float

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Position in the drawing of a data point."""
        across = (x - self.x0) / (self.x1 - self.x0)
        up = (y - self.y0) / (self.y1 - self.y0)
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)


def chart(title: str, lines: Sequence[Line], *, unit: str = "", size: Size = "small", zero: bool = False) -> Html:
    """A figure of the lines over the training step; empty when no line has a finite point. `zero`: y starts at 0."""
    clean = [line._replace(points=thin(finite(line.points))) for line in lines]
    clean = [line for line in clean if line.points]
    if not clean:
        return Html("")
    width, height = SIZES[size]
    named = [line for line in clean if line.name and not line.faint]
    labels = [line.name for line in named] if len(named) > 1 else []
    frame = _frame(clean, width=width, height=height, zero=zero, margin=_label_room(labels))
    caption = tag("figcaption", title, tag("span", f" {unit}") if unit else None)
    drawing = tag(
        "svg",
        *axes(frame, across=[(x, short(x)) for x in ticks(frame.x0, frame.x1, width // 100 + 1)]),
        *_lines(clean, frame),
        *(_labels(named, frame) if labels else ()),
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=f"{title} {unit} over steps".strip(),
    )
    return tag("figure", caption, drawing, class_="wide" if size == "wide" else None)


def finite(points: Points) -> Points:
    """The points whose value is a finite number."""
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def smooth(points: Points, *, span: float = 0.02) -> Points:
    """Moving average over about `span` of the points (at least 5), from both sides, so that it does not lag."""
    keep = 1 - 1 / max(5.0, span * len(points))
    values = [y for _, y in points]
    ahead, behind = _average(values, keep), _average(values[::-1], keep)[::-1]
    return [(x, (a + b) / 2) for (x, _), a, b in zip(points, ahead, behind, strict=True)]


def _average(values: Sequence[float], keep: float) -> list[float]:
    """Exponential moving average, unbiased at the start."""
    total = weight = 0.0
    result = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        result.append(total / weight)
    return result


def thin(points: Points) -> Points:
    """At most 2 * MAX_POINTS points: of each bin the lowest and the highest, in their order, and the last point."""
    if len(points) <= 2 * MAX_POINTS:
        return points
    kept: Points = []
    for start in range(MAX_POINTS):
        part = points[start * len(points) // MAX_POINTS : (start + 1) * len(points) // MAX_POINTS]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers (1, 2, 2.5 or 5 times a power of ten) inside low..high."""
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= next((m for m in (1, 2, 2.5, 5, 10) if (high - low) / (step * m) <= count), 10)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _frame(lines: Sequence[Line], *, width: int, height: int, zero: bool, margin: float) -> Frame:
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    low, high = (min(0.0, min(ys)) if zero else min(ys)), max(ys)
    if high - low < 1e-9 * max(abs(high), 1e-30):  # a constant: some room above and below
        room = abs(high) * 0.1 or 1.0
        low, high = (low if zero and low == 0 else low - room), high + room
    room = 0.05 * (high - low)
    x0, x1 = min(xs), max(xs)
    return Frame(
        46, width - 10 - margin, 8, height - 24, x0, x1 if x1 > x0 else x0 + 1, low - (0 if zero else room), high + room
    )


def axes(frame: Frame, *, across: Sequence[tuple[float, str]]) -> list[Html]:
    """Lines at round values, their numbers, and below the data the marks `across`: (x, what is said there)."""
    parts = []
    for value in ticks(frame.y0, frame.y1, 4):
        _, y = frame.place(frame.x0, value)
        parts.append(tag("line", x1=frame.left, x2=frame.right, y1=_r(y), y2=_r(y), stroke="var(--rule)"))
        parts.append(tag("text", short(value), x=frame.left - 6, y=_r(y + 3.5), text_anchor="end"))
    for value, said in across:
        x, _ = frame.place(value, frame.y0)
        parts.append(tag("text", said, x=_r(x), y=frame.bottom + 16, text_anchor="middle"))
    parts.append(tag("line", x1=frame.left, x2=frame.right, y1=frame.bottom, y2=frame.bottom, stroke="var(--faint)"))
    return parts


def _lines(lines: Sequence[Line], frame: Frame) -> list[Html]:
    parts = []
    colours = iter(range(len(lines)))
    for line in sorted(lines, key=lambda one: not one.faint):  # faint ones lie behind
        colour = "var(--raw)" if line.faint else f"var(--s{next(colours) % 6})"
        spots = [frame.place(x, y) for x, y in line.points]
        if len(spots) > 1:
            width = 1 if line.faint else 1.8
            parts.append(
                tag("path", d=path(spots), fill="none", stroke=colour, stroke_width=width, stroke_linejoin="round")
            )
        if line.dots or len(spots) == 1:
            parts += [_dot(line, spot, point, colour) for spot, point in zip(spots, line.points, strict=True)]
    return parts


def _dot(line: Line, spot: tuple[float, float], point: tuple[float, float], colour: str) -> Html:
    says = f"{line.name} {figure(point[1])} at step {figure(point[0])}".strip()
    return tag("g", tag("title", says), tag("circle", cx=_r(spot[0]), cy=_r(spot[1]), r=3, fill=colour))


def _labels(lines: Sequence[Line], frame: Frame) -> list[Html]:
    """Names at the ends of the lines, moved apart where they would overlap."""
    ends = sorted((frame.place(*line.points[-1])[1], i, line.name) for i, line in enumerate(lines))
    heights = [y for y, _, _ in ends]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + 13)
    over = max(0.0, heights[-1] - frame.bottom)
    return [
        tag("text", name, x=frame.right + 8, y=_r(y - over + 3.5), style=f"fill:var(--s{i % 6})")
        for y, (_, i, name) in zip(heights, ends, strict=True)
    ]


def _label_room(labels: Sequence[str]) -> float:
    return 14 + 6.2 * max(map(len, labels)) if labels else 0.0


def short(value: float) -> str:
    """A tick's number: 12k, 0.25, 1e-5."""
    if abs(value) >= 10_000:
        for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= size:
                return f"{value / size:.4g}{letter}"
    if value and abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{round(value, 10):.6g}"


def path(spots: Sequence[tuple[float, float]]) -> str:
    """The `d` of straight lines through positions of the drawing."""
    return "M" + "L".join(f"{_r(x)} {_r(y)}" for x, y in spots)


def _r(value: float) -> float:
    return round(value, 1)
