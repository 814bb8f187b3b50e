"""Measures with their intervals: the headline tiles, and the table of every record."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlp.report.page import DASH, Html, figure, fold, section, table, tag
from vlp.report.progress import number
from vlp.report.variant import variant

Record = Mapping[str, Any]
_HEADLINE = (
    ("image_retrieval_recall@1", "R@1 text → image"),
    ("text_retrieval_recall@1", "R@1 image → text"),
    ("image_retrieval_recall@10", "R@10 text → image"),
    ("text_retrieval_recall@10", "R@10 image → text"),
    ("acc1", "Zero-shot accuracy"),
    ("acc5", "Zero-shot top 5"),
)
# how a word in the name of a share begins
_SHARES = ("acc", "recall", "pointing", "precision", "iou", "auroc", "aupro", "f1", "mAP", "mINP")
MAX_TILES, MAX_ROWS = 12, 60  # more tiles say less than the overview; more rows are folded away
CONTAINS_CHANCE = tag("span", "contains chance", class_="mark", title="the 95 % interval is not above chance")


def header(name: str, latest: Sequence[Record], sentence: str) -> Html:
    """The name of the run, what it is, what is wrong with its model, and its headline measures."""
    tiles = [_tile(record, metric, title) for record in latest for metric, title in _HEADLINE if _has(record, metric)]
    return tag(
        "header",
        tag("h1", name),
        tag("p", sentence, class_="sub"),
        *(tag("p", tag("span", "warning", class_="mark"), f" {text}") for text in _warnings(latest)),
        tag("div", *tiles, class_="tiles") if 0 < len(tiles) <= MAX_TILES else None,
        None if latest else tag("p", "No evaluation was recorded yet: ", tag("code", "vlp eval RUN SUITE.yaml"), "."),
    )


def _warnings(latest: Sequence[Record]) -> list[str]:
    """What the records say of a model that is not as its weights were trained, each once."""
    stored = [record.get("warnings") for record in latest]
    return list(dict.fromkeys(str(text) for found in stored if isinstance(found, list) for text in found))


def metrics(latest: Sequence[Record], records: Sequence[Record]) -> Html:
    """The latest measures of each data set and task, and every earlier record folded away."""
    note = "The last record of each data set and task, with 95 % bootstrap intervals and what guessing would reach."
    earlier = [record for record in records if not any(record is last for last in latest)]
    rows = sum(len(record["metrics"]) for record in latest)
    parts = [fold(f"All {rows} measures", _table(latest)) if rows > MAX_ROWS else _table(latest)] if latest else []
    if earlier:
        parts.append(fold(f"Earlier records ({len(earlier)})", _table(earlier)))
    return section("Measures", *parts, note=note)


def share(metric: str, value: float | None) -> str:
    """Recalls and accuracies as percentages, everything else as it is."""
    if value is None:
        return DASH
    return f"{100 * value:.2f} %" if _is_share(metric) else figure(float(value))


def interval(record: Record, metric: str) -> tuple[float, float] | None:
    """The 95 % interval of a measure, or None when the record has none."""
    pair = (record.get("ci95") or {}).get(metric)
    if not isinstance(pair, Sequence) or len(pair) != 2:
        return None
    low, high = number(pair[0]), number(pair[1])
    return None if low is None or high is None else (low, high)


def contains_chance(record: Record, metric: str) -> bool:
    """Whether the record itself says that the measure is not above chance."""
    return bool((record.get("contains_chance") or {}).get(metric))


def _is_share(metric: str) -> bool:
    return any(word.startswith(_SHARES) for word in re.split(r"[_@]", metric))


def _has(record: Record, metric: str) -> bool:
    """Whether it has a tile of the measure; of corrupted pictures the clean accuracy is told elsewhere."""
    return number(record["metrics"].get(metric)) is not None and not str(record.get("task")).endswith("_corrupted")


def _tile(record: Record, metric: str, title: str) -> Html:
    chance = number((record.get("chance") or {}).get(metric))
    pair = interval(record, metric)
    return tag(
        "div",
        tag("div", title, class_="what"),
        tag("b", share(metric, number(record["metrics"][metric]))),
        tag("div", f"95 %: {range_of(metric, pair)}", class_="how") if pair else None,
        tag("div", f"chance {share(metric, chance)}", class_="how") if chance is not None else None,
        tag("div", f"{figure(record.get('n'))} pictures of {record.get('dataset', '')}{_head(record)}", class_="how"),
        CONTAINS_CHANCE if contains_chance(record, metric) else None,
        class_="tile",
    )


def range_of(metric: str, pair: tuple[float, float] | None) -> str:
    """The two ends of an interval, a dash for none."""
    if pair is None:
        return DASH
    return (
        f"{100 * pair[0]:.2f} {DASH} {100 * pair[1]:.2f}"
        if _is_share(metric)
        else f"{figure(pair[0])} {DASH} {figure(pair[1])}"
    )


def _table(records: Sequence[Record]) -> Html:
    rows: list[list[Any]] = []
    for record in records:
        lead = [record.get("dataset", ""), task_of(record), figure(record.get("n")), figure(record.get("step"))]
        for metric, value in record["metrics"].items():
            rows.append([*lead, metric, *_cells(record, metric, number(value))])
            lead = ["", "", "", ""]  # said once for each record
    head = ["Data set", "Task", "n", "Step", "Measure", "Value", "95 % interval", "Chance", ""]
    return table(head, rows, numeric=(2, 3, 5, 6, 7))


def task_of(record: Record) -> str:
    """The task in words, with what sets a record apart from others of it: prefix, language, adapter, head."""
    task = str(record.get("task", "")).replace("zeroshot_", "zero-shot ").replace("_", " ")
    task = f"{task}, {record['prefix']} prefix" if record.get("prefix") else task
    task += "" if record.get("language") in (None, "en") else f", {record['language']}"
    return task + _head(record)


def _head(record: Record) -> str:
    adapter = variant(record.get("adapter"), record.get("adapter_hash"))
    said = f", with {adapter}" if adapter else ""
    return said + ("" if record.get("head") in (None, "global") else f", by {record['head']}")


def _cells(record: Record, metric: str, value: float | None) -> list[Any]:
    chance = number((record.get("chance") or {}).get(metric))
    mark = CONTAINS_CHANCE if contains_chance(record, metric) else ""
    return [share(metric, value), range_of(metric, interval(record, metric)), share(metric, chance), mark]
