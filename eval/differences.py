"""Two models side by side: on every data set that both were measured on, paired differences, and those of classes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from eval import record
from eval.compare import Arm, Row, compare
from eval.heads import HEADS, Head
from eval.hits import RECALL, known_measures, read_hits

SHOWN_CLASSES = 5  # gained most and lost most


class ClassChange(NamedTuple):
    """One class: its pictures, and the share of them that each model has right."""

    name: str
    support: int
    first: float
    second: float


class Difference(NamedTuple):
    """One measure of one data set by one head: the second model less the first."""

    dataset: str
    head: Head
    measure: str
    first: Row
    second: Row
    classes: list[ClassChange]  # of classification: the most gained, then the most lost


def differences(first: Path, second: Path, *, n_boot: int = 10_000) -> Iterator[Difference]:
    """Paired bootstrap of everything that both result folders hold item by item; ValueError where there is nothing.

    Data sets whose pictures are not the same are refused by `eval.compare.compare`.
    """
    both = _datasets(first) & _datasets(second)
    asked = [(name, head, measure) for name in sorted(both) for head, measure in _measures(first, second, name)]
    if not asked:
        raise ValueError(
            f"{first} and {second} have no data set in common that both were measured on item by item; run `vlp eval "
            f"{first.name} {second.name} SUITE.yaml`"
        )
    for dataset, head, measure in asked:
        arms = {"first": Arm([first], head), "second": Arm([second], head)}
        rows = {
            row.arm: row for row in compare(arms, baseline="first", dataset=dataset, measure=measure, n_boot=n_boot)
        }
        places = (first / "eval" / dataset, second / "eval" / dataset)
        classes = _classes(*places, measure, head) if measure.rpartition("/")[2] == "acc1" else []
        yield Difference(dataset, head, measure, rows["first"], rows["second"], classes)


def _datasets(folder: Path) -> set[str]:
    file = folder / "results.jsonl"
    if not file.is_file():
        raise ValueError(f"{folder}: no results.jsonl; run `vlp eval` with --out {folder}, or give a run that has one")
    return {Path(row.artefacts).name for row in record.read(file) if row.artefacts}


def _measures(first: Path, second: Path, dataset: str) -> Iterator[tuple[Head, str]]:
    folders = [place / "eval" / dataset for place in (first, second)]
    for head in HEADS:
        known = [known_measures(folder, head=head) for folder in folders]
        for measure in known[0]:
            if measure in known[1]:
                yield head, measure


def _classes(first: Path, second: Path, measure: str, head: Head) -> list[ClassChange]:
    one, two = (read_hits(folder, measure, head=head) for folder in (first, second))
    found = []
    for name in dict.fromkeys(one.items):
        rows = torch.tensor([item == name for item in one.items])
        found.append(ClassChange(name, int(rows.sum()), float(one.values[rows].mean()), float(two.values[rows].mean())))
    found.sort(key=lambda change: change.first - change.second)
    changed = [change for change in found if change.first != change.second]
    gained = [change for change in changed if change.second > change.first][:SHOWN_CLASSES]
    return gained + [change for change in changed if change.second < change.first][-SHOWN_CLASSES:]


def as_text(found: list[Difference], names: tuple[str, str]) -> str:
    """Markdown: one line a measure, then the classes that changed most."""
    lines = [f"| data set | measure | {names[0]} | {names[1]} | difference (95 %) | |", "|---|---|---:|---:|---|---|"]
    for row in found:
        assert row.second.interval is not None
        assert row.second.difference is not None
        low, high = (100 * end for end in row.second.interval)
        measure = "mean R@{1,5,10}" if row.measure == RECALL else row.measure
        how = "" if row.head == "global" else f" by {row.head}"
        change = f"{100 * row.second.difference:+.1f} ({low:+.1f} to {high:+.1f})"
        values = f"{100 * row.first.mean:.1f} | {100 * row.second.mean:.1f}"
        lines.append(f"| {row.dataset}{how} | {measure} | {values} | {change} | {row.second.verdict} |")
    for row in found:
        if row.classes:
            lines += [
                "",
                f"{row.dataset}: classes that changed most",
                "",
                f"| class | n | {names[0]} | {names[1]} |",
                "|---|---:|---:|---:|",
            ]
            lines += [f"| {c.name} | {c.support} | {100 * c.first:.0f} | {100 * c.second:.0f} |" for c in row.classes]
    return "\n".join(lines)
