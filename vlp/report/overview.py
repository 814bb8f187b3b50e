"""All results at a glance: one row a data set under its task, with the task's main measure as a bar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlp.report.bars import LEGEND, axis, bar, star, top_of
from vlp.report.page import Html, figure, section, tag
from vlp.report.progress import number
from vlp.report.ranked import main_metric
from vlp.report.results import Record, contains_chance, interval, range_of, share, task_of

_HEAD = ("Data set", "", "Value", "95 % interval", "Chance", "n")
_LESS = (3, 4, 5)  # columns that a phone leaves out


def overview(latest: Sequence[Record]) -> Html:
    """The table of every record with a main measure, best first under each task; those without are named."""
    groups: dict[tuple[str, str], list[Record]] = {}
    without = []
    for record in latest:
        name = main_metric(str(record.get("task")), record["metrics"])
        if name is None or number(record["metrics"][name]) is None:
            without.append(f"{task_of(record)} of {record.get('dataset')}")
        else:
            groups.setdefault((task_of(record), name), []).append(record)
    if not groups:
        return Html("")
    shown = [(record, metric) for (_, metric), records in groups.items() for record in records]
    weak = sum(contains_chance(record, metric) for record, metric in shown)
    note = f"{len(shown)} results, of each task its main measure, best first. {LEGEND}"
    note += f" Not shown to be better than chance: {weak} of {len(shown)}." if weak else ""
    left = f"Without a main measure, so only among the measures: {', '.join(without)}." if without else None
    table = tag("table", tag("thead", _row(_HEAD, name="th")), *_bodies(groups))
    return section(
        "All results",
        tag("div", table, class_="scroll overview"),
        tag("p", left, class_="note") if left else None,
        note=note,
    )


def _bodies(groups: dict[tuple[str, str], list[Record]]) -> list[Html]:
    return [_body(task, metric, records) for (task, metric), records in groups.items()]


def _body(task: str, metric: str, records: Sequence[Record]) -> Html:
    values = {id(record): number(record["metrics"][metric]) or 0.0 for record in records}
    ends = [interval(record, metric) for record in records]
    guessed = [number((record.get("chance") or {}).get(metric)) for record in records]
    top = top_of([*values.values(), *guessed, *(pair[1] for pair in ends if pair)])
    mean = tag("span", f"mean {share(metric, sum(values.values()) / len(values))}") if len(values) > 1 else ""
    title = tag("span", tag("b", task), " ", tag("code", metric))
    head = _row([title, axis(top), mean, "", "", ""], class_="group")
    ordered = sorted(records, key=lambda record: (-values[id(record)], str(record.get("dataset"))))
    return tag("tbody", head, *(_row(cells(record, metric, top)) for record in ordered))


def cells(record: Record, metric: str, top: float, *, name: Any = None) -> list[Any]:
    """Name, bar, value, interval, chance and n of one measure of a record; `name` is the data set's unless given."""
    value, ends, weak = number(record["metrics"][metric]), interval(record, metric), contains_chance(record, metric)
    chance = number((record.get("chance") or {}).get(metric))
    drawn = bar(value, ends=ends, chance=chance, top=top, weak=weak) if value is not None else ""
    said = tag("span", share(metric, value), star(weak))
    known = [range_of(metric, ends), share(metric, chance), figure(record.get("n"))]
    return [record.get("dataset", "") if name is None else name, drawn, said, *known]


def _row(values: Sequence[Any], *, name: str = "td", class_: str | None = None) -> Html:
    return tag("tr", *(tag(name, value, class_=_class(i)) for i, value in enumerate(values)), class_=class_)


def _class(column: int) -> str | None:
    return (("num less" if column in _LESS else "num") if column > 1 else None) if column else None
