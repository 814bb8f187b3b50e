"""Classification by class: which are mixed up, which are found worst and best, and the accuracy of every one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from vlp.report.bars import Ends, bar, percent, wilson
from vlp.report.grids import Thumbnails, picture
from vlp.report.page import DASH, Html, figure, fold, join, section, table, tag
from vlp.report.progress import number
from vlp.report.read import Artefacts

Entry = Mapping[str, Any]
PAIRS, EXAMPLES = 8, 4
MAX_OPEN = 60  # a table of more classes is folded


def classes(artefacts: Artefacts, thumbnails: Thumbnails) -> Html:
    """A section a head: confused pairs with pictures, worst and best classes with pictures, accuracy by class."""
    shown = partial(thumbnails.picture, artefacts)
    found = artefacts.by_heads("confusion")
    return join(_section(title, file, shown, rows=thumbnails.fits(2 * EXAMPLES, PAIRS)) for title, file in found)


class _Known(NamedTuple):
    """The classes of one file, and how a picture of its data set is shown."""

    names: list[str]
    support: Sequence[int]
    recall: list[float | None]
    shown: Callable[[int], Html]


def _section(title: str, file: Entry, shown: Callable[[int], Html], *, rows: int) -> Html:
    names = [str(name) for name in file.get("names") or []]
    if not names:
        return Html("")
    known = _Known(names, file.get("support") or [], [number(value) for value in file.get("recall") or []], shown)
    worst = sorted(file.get("pairs") or [], key=lambda pair: -pair["count"])[:rows]
    mixed = [_mixed(pair, known) for pair in worst]
    head = ["Is", "Taken for", "Times", "Of", "For example"]
    parts = [tag("h3", "Most confused"), table(head, mixed, numeric=(2, 3))] if mixed else []
    for key, heading in (("worst", "Found worst"), ("best", "Found best")):
        extreme = [_extreme(one, known) for one in (file.get(key) or [])[:rows]]
        if extreme:
            parts += [tag("h3", heading), table(["Class", "Accuracy", "n", "For example"], extreme, numeric=(2,))]
    return section(f"Classes: {title}", *parts, by_class("Accuracy of each class", ("Accuracy", "n"), _every(known)))


def _mixed(pair: Entry, known: _Known) -> list[Any]:
    true, predicted = int(pair["true"]), int(pair["predicted"])
    pictures = [picture(known.shown(row), "") for row in pair["examples"][:EXAMPLES]]
    of = known.support[true] if true < len(known.support) else None
    shown = tag("div", *pictures, class_="pictures")
    return [known.names[true], known.names[predicted], figure(pair["count"]), figure(of), shown]


def _extreme(one: Entry, known: _Known) -> list[Any]:
    """One class with some of its pictures, and what they were taken for."""
    place, shown = int(one["class"]), []
    for example in (one.get("examples") or [])[:EXAMPLES]:
        guess = int(example["predicted"])
        said = "right" if guess == place else f"taken for {known.names[guess]}"
        shown.append(picture(known.shown(example["row"]), said, right=guess == place))
    value, count = known.recall[place], known.support[place]
    row = ByClass(known.names[place], value, count, _ends(value, count))
    accuracy = tag("div", percent(value), _drawn(row))
    return [row.name, accuracy, figure(row.size), tag("div", *shown, class_="pictures")]


class ByClass(NamedTuple):
    """One row of a table of all classes; `ends`: the interval of the value, where there is one."""

    name: str
    value: float | None
    size: int | None
    ends: Ends | None = None


def _every(known: _Known) -> list[ByClass]:
    found = zip(known.names, known.recall, known.support, strict=False)
    return [ByClass(name, value, count, _ends(value, count)) for name, value, count in found]


def by_class(title: str, head: tuple[str, str], rows: Sequence[ByClass]) -> Html:
    """Every class, best first, in two columns, folded where there are many; `head` names value and size."""
    if not rows:
        return Html("")
    ordered = sorted(rows, key=lambda row: (-(-1 if row.value is None else row.value), row.name))
    shown = [[row.name, _drawn(row), percent(row.value), figure(row.size)] for row in ordered]
    half = (len(shown) + 1) // 2 if len(shown) > 6 else len(shown)
    parts = [table(["Class", "", *head], part, numeric=(2, 3)) for part in (shown[:half], shown[half:]) if part]
    both = tag("div", *parts, class_="pair")
    return fold(f"{title} ({len(rows)})", both) if len(rows) > MAX_OPEN else Html(tag("h3", title) + both)


def _drawn(row: ByClass) -> Html:
    return Html(DASH) if row.value is None else bar(row.value, ends=row.ends, weak=False)


def _ends(value: float | None, count: int) -> Ends | None:
    """The interval that the number of pictures leaves (Wilson 1927)."""
    return wilson(value * count, count) if value is not None and count else None
