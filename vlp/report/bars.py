"""Shares as small horizontal bars with their interval and a notch at chance, and the interval of a counted share."""

from __future__ import annotations

import math
from collections.abc import Iterable

from vlp.report.page import DASH, Html, tag

WIDTH, HEIGHT = 180, 16
Ends = tuple[float, float]
_STAR = "not shown to be better than chance"
LEGEND = (
    "Bars: the value, grey where it is not shown to be better than chance (then starred, too); thin line: its 95 % "
    "interval; orange notch: what guessing reaches."
)


def bar(value: float, *, ends: Ends | None = None, chance: float | None = None, top: float = 1.0, weak: bool) -> Html:
    """The drawing, from 0 to `top`; a dash where the value lies outside 0..1. `weak`: not shown to beat chance."""
    if not 0 <= value <= 1:
        return Html(DASH)
    parts = [_rect(WIDTH, "var(--rule)"), _rect(_x(value, top), "var(--faint)" if weak else "var(--accent)")]
    if chance is not None and 0 <= chance <= 1:
        x = _x(chance, top)
        parts.append(tag("line", x1=x, x2=x, y1=1, y2=HEIGHT - 1, stroke="var(--s1)", stroke_width=2))
    if ends is not None:
        low, high = (_x(end, top) for end in ends)
        path = f"M{low} 5V11M{low} 8H{high}M{high} 5V11"
        parts += [
            tag("path", d=path, fill="none", stroke="var(--card)", stroke_width=3.4),
            tag("path", d=path, fill="none", stroke="var(--ink)", stroke_width=1.3),
        ]
    said = f"{percent(value)}" + (f", 95 % interval {percent(ends[0])} to {percent(ends[1])}" if ends else "")
    said += f", chance {percent(chance)}" if chance is not None else ""
    return tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=said, class_="bar")


def axis(top: float) -> Html:
    """What the two ends of the bars below mean."""
    return tag("div", tag("span", "0"), tag("span", f"{100 * top:g} %"), class_="ends")


def top_of(values: Iterable[float | None]) -> float:
    """A round end of the bars that has room for all values."""
    most = max((value for value in values if value is not None and value <= 1), default=1.0)
    return next((end for end in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5) if most <= end), 1.0)


def star(weak: bool) -> Html | None:
    """The mark of what is not shown to be better than chance."""
    return tag("abbr", " *", title=_STAR, class_="star") if weak else None


def wilson(hits: float, count: float, *, z: float = 1.959964) -> Ends:
    """Interval of a share at 95 % (Wilson 1927): unlike a bootstrap it has a width also for no hits at all."""
    if count == 0:
        return math.nan, math.nan
    share, spread = hits / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(max(0.0, share * (1 - share)) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def percent(value: float | None) -> str:
    """With one decimal; a dash for nothing."""
    return DASH if value is None else f"{100 * value:.1f} %"


def _rect(width: float, colour: str) -> Html:
    return tag("rect", x=0, y=4, width=width, height=8, rx=2, fill=colour)


def _x(value: float, top: float) -> float:
    return round(WIDTH * min(max(value, 0.0), top) / top, 1)
