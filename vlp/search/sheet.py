"""A contact sheet: the query and what it found, as one HTML page that needs nothing beside itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlp.pictures import read_picture
from vlp.report.page import Html, document, figure, tag
from vlp.report.thumbnail import embedded, thumbnail
from vlp.search.index import Hit, Query

LEAD, SIDE = 160, 150  # sides of the query's picture and, at least, of the others


def contact_sheet(hits: Sequence[Hit], query: Query | str, out: str | Path, *, note: str = "") -> Path:
    """The path of the page: query on top, then every hit with its rank, score, caption and key."""
    asked = Query(text=query) if isinstance(query, str) else query
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    found = f"{figure(len(hits))} nearest pictures, best first; the score is the cosine with the query. {note}".strip()
    grid = tag("div", *(_card(rank, hit) for rank, hit in enumerate(hits, start=1)), class_="sheet")
    page = document(
        f"Search: {' '.join(asked.words) or 'a picture'}", _header(asked), tag("p", found, class_="note"), grid
    )
    out.write_text(page, encoding="utf-8", errors="backslashreplace")  # keys may be bytes that are no text
    return out


def _header(query: Query) -> Html:
    picture = balance = None
    if query.image is not None:
        small = thumbnail(read_picture(query.image), LEAD)
        picture = embedded(small, alt="the query's picture", least=LEAD) if small else None
    title = "this picture"
    if query.words:
        quoted = [f"\N{LEFT DOUBLE QUOTATION MARK}{word}\N{RIGHT DOUBLE QUOTATION MARK}" for word in query.words]
        title = ", ".join(quoted)
        if query.image is not None:
            weights = f"words {query.weights[0]:g} to picture {query.weights[1]:g}"
            balance = tag("p", f"and this picture, {weights}", class_="sub")
    words = tag("div", tag("p", "Search for", class_="sub"), tag("h1", title), balance)
    return tag("header", tag("div", picture, words, class_="lead"))


def _card(rank: int, hit: Hit) -> Html:
    image = tag("span", "no picture", class_="blank")
    if hit.thumbnail:
        image = embedded(hit.thumbnail, alt=hit.key, least=SIDE)
    where = f"{hit.shard} \N{MIDDLE DOT} {hit.key}" if hit.shard else hit.key
    return tag(
        "div",
        tag("div", image, class_="frame"),
        tag("div", tag("b", f"{rank}"), f"  {hit.score:.3f}", class_="cap", title=where),
        tag("div", hit.caption, class_="words", title=hit.caption),
        class_="picture",
    )
