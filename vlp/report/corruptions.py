"""Accuracy under corruptions as a table with heat, and one picture under all of them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

from vlp.report.grids import Thumbnails
from vlp.report.page import Html, fold, join, section, tag
from vlp.report.read import Artefacts

SHEET = 1800  # longest side of the sheet of pictures
_STRONGEST = 0.55  # opacity of the heat of the highest accuracy: text stays readable on it, by day and by night


def corruptions(artefacts: Artefacts, thumbnails: Thumbnails) -> Html:
    """A section a head: a row a corruption, a column a severity; the sheet of pictures is folded away."""
    return join(_section(title, file, thumbnails) for title, file in artefacts.by_heads("corruptions"))


def _section(title: str, file: Mapping[str, Any], thumbnails: Thumbnails) -> Html:
    severities, clean = [int(severity) for severity in file["severities"]], float(file["clean"])
    rows = {str(name): [float(value) for value in values] for name, values in file["accuracy"].items()}
    if not rows or not severities:
        return Html("")
    if wrong := [name for name, values in rows.items() if len(values) != len(severities)]:
        raise ValueError(f"{wrong[0]} has {len(rows[wrong[0]])} accuracies for {len(severities)} severities")
    every = [value for values in rows.values() for value in values]
    top, mean = max([clean, *every]) or 1.0, sum(every) / len(every)
    kept = f", {100 * mean / clean:.0f} % of that" if clean else ""
    note = (
        f"Accuracy in percent of the pictures as they are, {100 * clean:.1f}, and corrupted, {100 * mean:.1f} on "
        f"average{kept} (made on the fly, arXiv 1903.12261). Severity 1 is mild, 5 strong."
    )
    head = tag("tr", tag("th", "Corruption"), *(tag("th", s, class_="num") for s in (*severities, "mean")))
    body = [
        tag("tr", tag("td", name.replace("_", " ")), *(_cell(value, top) for value in (*values, _mean(values))))
        for name, values in {"none": [clean] * len(severities), **rows}.items()
    ]
    table = tag("div", tag("table", tag("thead", head), tag("tbody", *body), class_="heat"), class_="scroll")
    return section(f"Corrupted pictures: {title}", table, _sheet(file.get("sheet"), rows, thumbnails), note=note)


def _cell(value: float, top: float) -> Html:
    opacity = _STRONGEST * min(max(value / top, 0.0), 1.0)
    return tag("td", f"{100 * value:.1f}", class_="num", style=f"background:rgb(42 99 196 / {opacity:.2f})")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _sheet(encoded: Any, names: Mapping[str, Any], thumbnails: Thumbnails) -> Html | None:
    if not encoded:
        return None
    alt = f"one picture, clean and at each severity of {', '.join(names)}"
    picture = thumbnails.inside(decoded(encoded), alt=alt, side=SHEET)
    return fold("One picture under each of them", tag("div", picture, class_="scroll whole"))


def decoded(encoded: Any) -> bytes:
    """The bytes of base64 text; none of what is not base64, which is then shown as unreadable."""
    try:
        return base64.b64decode(str(encoded), validate=True)
    except (binascii.Error, ValueError):
        return b""
