"""A contact sheet: the query and what it found, as one HTML page that needs nothing beside itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlp.pictures import read_picture
from vlp.report.page import Html, document, figure, tag
from vlp.report.thumbnail import data_uri, thumbnail
from vlp.search.index import Hit, Query

LEAD = 200  # side of the query's picture


def contact_sheet(hits: Sequence[Hit], query: Query | str, out: str | Path, *, note: str = "") -> Path:
    """The path of the page: query on top, then every hit with its rank, score, caption and key."""
    asked = Query(text=query) if isinstance(query, str) else query
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    found = f"{figure(len(hits))} nearest pictures, best first; the score is the cosine with the query. {note}".strip()
    body = [_header(asked), tag("p", found, class_="note"), _grid(hits)]
    out.write_text(document(f"Search: {_title(asked)}", *body), encoding="utf-8")
    return out


def _title(query: Query) -> str:
    return query.text or "a picture"


def _header(query: Query) -> Html:
    picture = None
    if query.image is not None:
        small = thumbnail(read_picture(query.image), LEAD)
        picture = tag("img", src=data_uri(small), alt="the query's picture") if small else None
    both = query.text is not None and query.image is not None
    words = [
        tag("p", "Search for", class_="sub"),
        tag(
            "h1",
            f"\N{LEFT DOUBLE QUOTATION MARK}{query.text}\N{RIGHT DOUBLE QUOTATION MARK}"
            if query.text
            else "this picture",
        ),
        tag("p", f"and this picture, words {query.weights[0]:g} to picture {query.weights[1]:g}", class_="sub")
        if both
        else None,
    ]
    return tag("header", tag("div", picture, tag("div", *words), class_="lead"))


def _grid(hits: Sequence[Hit]) -> Html:
    return tag("div", *(_card(rank, hit) for rank, hit in enumerate(hits, start=1)), class_="sheet")


def _card(rank: int, hit: Hit) -> Html:
    image = (
        tag("img", src=data_uri(hit.thumbnail), alt=hit.key)
        if hit.thumbnail
        else tag("span", "no picture", class_="blank")
    )
    where = f"{hit.shard} \N{MIDDLE DOT} {hit.key}" if hit.shard else hit.key
    return tag(
        "div",
        tag("div", image, class_="frame"),
        tag("div", tag("b", f"{rank}"), f"  {hit.score:.3f}", class_="cap", title=where),
        tag("div", hit.caption, class_="words", title=hit.caption),
        class_="picture",
    )
