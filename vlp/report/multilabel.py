"""Pictures with several labels: average precision by class, and what the worst classes miss and take for their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from vlp.report.bars import percent
from vlp.report.classes import ByClass, by_class
from vlp.report.grids import Thumbnails, picture
from vlp.report.page import Html, figure, join, section, table, tag
from vlp.report.progress import number
from vlp.report.read import Artefacts

SHOWN = 4  # pictures of each kind
_KINDS = ("missed", "false")
NOTE = "Missed: pictures that show the class and score least; taken: those that do not and score most."


def multilabel(artefacts: Artefacts, thumbnails: Thumbnails) -> Html:
    """A section a head: the worst classes with pictures, then every class."""
    return join(_section(title, file, artefacts, thumbnails) for title, file in artefacts.by_heads("multilabel"))


def _section(title: str, file: Mapping[str, Any], artefacts: Artefacts, thumbnails: Thumbnails) -> Html:
    names, support = [str(name) for name in file.get("names") or []], file.get("support") or []
    average = [number(value) for value in file.get("average_precision") or []]
    shown = partial(thumbnails.picture, artefacts)
    worst = []
    for one in file.get("worst") or []:
        place = int(one["class"])
        pictures = [_pictures(one[kind], shown) for kind in _KINDS]
        worst.append([names[place], percent(average[place]), figure(support[place]), *pictures])
    rows = [ByClass(*row) for row in zip(names, average, support, strict=False)]
    head = ["Class", "Average precision", "n", "Missed", "Taken"]
    parts = [tag("h3", "Found worst"), table(head, worst, numeric=(1, 2))] if worst else []
    every = by_class("Average precision of each class", ("Precision", "n"), rows)
    return section(f"Labels: {title}", *parts, every, note=NOTE if worst else None)


def _pictures(rows: Sequence[int], shown: Callable[[int], Html]) -> Html:
    return tag("div", *(picture(shown(row), "") for row in rows[:SHOWN]), class_="pictures small")
