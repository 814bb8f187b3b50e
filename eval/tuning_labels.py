"""Short labels of methods: their settings as far as they tell the rows of a table apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from eval.tuning_board import Board

LONGEST = 60  # characters of a label in a table


def labels(boards: Sequence[Board]) -> dict[str, str]:
    """Full label of every method -> a short one, no two alike.

    Of several rows of one method it has the settings that they do not share; of a single row those that hold one value.
    A part inside is called by its name, with the settings that rows with a part of this name do not share. Files are
    called by their last part.
    """
    rows = {row.label: row for board in boards for cell in board.cells.values() for _, row in cell.runs}
    alike: dict[str, dict[str, dict[str, str]]] = {}
    for label, row in rows.items():
        alike.setdefault(row.method, {})[label] = dict(_flat(row.changed))
    found: dict[str, str] = {}
    for method, several in alike.items():
        for label, said in _told_apart(several).items():
            short = f"{method} ({', '.join(said)})" if said else method
            found[label] = _unlike(short, found.values())
    return found


def _told_apart(several: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """By label the settings to show."""
    rows = list(several.values())
    return {label: [f"{_called(key)}={one[key]}" for key in _shown(one, rows)] for label, one in several.items()}


def _shown(settings: Mapping[str, str], rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The keys of one row to show, among the rows of its method."""
    if len(rows) == 1:
        return [key for key in settings if "." not in _called(key)]
    found = []
    for key in dict.fromkeys(key for row in rows for key in row if key in settings):
        name = key.rpartition(".")[0] + ".name"
        rivals = rows if _called(key) != key else [row for row in rows if row.get(name) == settings.get(name)]
        if len({row.get(key) for row in rivals}) > 1:
            found.append(key)
    return found


def _called(key: str) -> str:
    """`teacher` for `teacher.name`: a part inside stands for its name."""
    return key.removesuffix(".name")


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every single value with its dotted path."""
    if isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in items:
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, PurePath(value).name if isinstance(value, str) and "/" in value else str(value)


def _unlike(short: str, others: Any) -> str:
    """The label, cut where it is too long, with a number where another one reads the same."""
    cut = short if len(short) <= LONGEST else short[: LONGEST - 4] + " ..."
    made, number = cut, 1
    while made in others:
        number += 1
        made = f"{cut} #{number}"
    return made
