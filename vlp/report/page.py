"""HTML that is escaped by construction: `tag` escapes every plain string, only `Html` passes as it is."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

DASH = "\N{EN DASH}"


class Html(str):
    """Text that is markup already; everything else is escaped by `tag`."""

    __slots__ = ()


_VOID = frozenset({"img", "br", "hr", "meta", "line", "path", "circle", "rect"})
# The page may load nothing: even a hole in the escaping could not fetch or run anything
STYLE = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def tag(name: str, *children: Any, **attributes: Any) -> Html:
    """`<name ...>children</name>`; children are escaped unless Html; `class_` is class, `stroke_width` stroke-width."""
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    opening = "".join(f' {key}="{html.escape(str(value))}"' for key, value in given.items())
    if name in _VOID:
        return Html(f"<{name}{opening}>" if name in ("img", "br", "hr", "meta") else f"<{name}{opening}/>")
    return Html(f"<{name}{opening}>{join(children)}</{name}>")


def join(children: Iterable[Any]) -> Html:
    """The children one after another, escaped where they are plain; None leaves nothing."""
    return Html(
        "".join(part if isinstance(part, Html) else html.escape(str(part)) for part in children if part is not None)
    )


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], *, numeric: Iterable[int] = ()) -> Html:
    """A table whose columns in `numeric` are set right with figures of equal width."""
    right = frozenset(numeric)
    cells = [
        tag("tr", *(tag("td", cell, class_="num" if i in right else None) for i, cell in enumerate(row)))
        for row in rows
    ]
    titles = tag("tr", *(tag("th", cell, class_="num" if i in right else None) for i, cell in enumerate(head)))
    return tag("div", tag("table", tag("thead", titles), tag("tbody", *cells)), class_="scroll")


def section(title: str, *children: Any, note: Any = None) -> Html:
    """A titled part of the page, or nothing when it has no children."""
    if not any(child for child in children):
        return Html("")
    return tag("section", tag("h2", title), tag("p", note, class_="note") if note else None, *children)


def fold(title: str, *children: Any) -> Html:
    """A part that is closed until it is asked for."""
    return tag("details", tag("summary", title), *children)


def document(title: str, *body: Any) -> str:
    """A whole page that needs nothing from outside: style and pictures lie in it."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(STYLE)),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', tag('main', *body)), lang='en')}\n"


def figure(value: Any, digits: int = 4) -> str:
    """A number for people: `digits` significant places, thousands apart, a dash for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return DASH
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or (abs(value) >= 10 ** (digits - 1) and abs(value) < 1e15):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def duration(seconds: float) -> str:
    """`7.2 s`, `3 min 05 s` or `2 h 07 min`."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
