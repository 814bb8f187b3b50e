"""Records of `vlp tune` by data set, method and number of shots, and what sets each apart from zero-shot."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import torch
from torch import Tensor

from eval.result_files import result_files
from vlp.log import console
from vlp.metrics.interval import Interval, of_means
from vlp.tune.record import REFUSED, TuneRecord, read, read_hits, settings_hash
from vlp.tune.transfers import harmonic_mean

ZERO_SHOT = "zeroshot"
METRICS = {
    "base_to_new": ("acc1_base", "acc1_new", "h"),
    "open_set": ("acc1", "open_auroc"),
    "imbalanced": ("acc1", "mean_per_class_recall"),
}
BY_SET = ("h", "open_auroc", "mean_per_class_recall", "acc1_targets")  # no mean over pictures, so not paired by them


class Column(NamedTuple):
    """Labelled pictures of each class ("none", a number, "all", "unknown"), and what is measured."""

    labelled: str
    metric: str

    @property
    def shots(self) -> float:
        """To sort by: few before many."""
        return float(self.labelled) if self.labelled.isdecimal() else 0.0 if self.labelled == "none" else float("inf")


class Cell(NamedTuple):
    """Of one method: its records by seed, with the folder that their files are in."""

    runs: list[tuple[Path, TuneRecord]]
    metric: str

    @property
    def values(self) -> list[float]:
        """One value a seed that did not fail."""
        return [row.metrics[self.metric] for _, row in self.runs if self.metric in row.metrics]

    @property
    def mean(self) -> float | None:
        """Over seeds; of `h` the harmonic mean of the means (2203.05557)."""
        if self.metric == "h" and self.values:
            parts = [
                fmean(row.metrics[name] for _, row in self.runs if row.metrics) for name in METRICS["base_to_new"][:2]
            ]
            return harmonic_mean(*parts)
        return fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Over seeds (n - 1)."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def classes_short(self) -> int:
        """Number of classes with fewer labelled pictures than the column says, of the seed that has most of them."""
        return max((row.counts.get("classes_short", 0) for _, row in self.runs), default=0)

    @property
    def at_chance(self) -> bool:
        """Whether the interval of some seed reaches chance."""
        return any(row.contains_chance.get(self.metric) for _, row in self.runs)


class Difference(NamedTuple):
    """A method less zero-shot on the same pictures, seeds averaged, with a paired bootstrap over pictures."""

    value: float
    interval: Interval

    @property
    def verdict(self) -> str:
        """In words."""
        low, high = self.interval
        return "better" if low > 0 else "worse" if high < 0 else "no difference shown"


class Board(NamedTuple):
    """All methods on one data set by one protocol with one model; zero-shot first, then in the order they came."""

    dataset: str
    protocol: str
    model: str
    methods: list[str]
    columns: list[Column]
    cells: dict[tuple[str, Column], Cell]

    @property
    def alike(self) -> TuneRecord:
        """Any of its records: all have one protocol with its settings, and weights."""
        return next(iter(self.cells.values())).runs[0][1]

    def marks(self, method: str) -> str:
        """Signs of NOTES that hold for all of a method's results."""
        rows = [row for (name, _), cell in self.cells.items() if name == method for _, row in cell.runs]
        return ("†" if any(row.leaky for row in rows) else "") + ("‡" if any(row.transductive for row in rows) else "")

    def zero_shot(self, metric: str) -> Cell | None:
        """The baseline."""
        found = (self.cells.get((ZERO_SHOT, column)) for column in self.columns if column.metric == metric)
        return next((cell for cell in found if cell is not None and cell.values), None)

    def difference(self, method: str, column: Column) -> Difference | None:
        """None for zero-shot itself, where one of the two is not there, or where zero-shot is at chance."""
        cell, base = self.cells.get((method, column)), self.zero_shot(column.metric)
        if cell is None or base is None or not cell.values or method == ZERO_SHOT or base.at_chance:
            return None
        return _paired(cell, base)


def read_boards(places: Sequence[Path]) -> list[Board]:
    """A board for each data set, protocol and model; of equal records the last counts. ValueError without any.

    A data set is its test pictures and classes; where several have one name, a hash of these stands behind it.
    """
    newest: dict[tuple[str, ...], dict[str, tuple[Path, TuneRecord]]] = {}
    replaced = 0
    for file in result_files(places, of="tune"):
        for row in read(file):
            measured = settings_hash(row.data_hashes.get("test"), row.classes_hash)
            group = (row.dataset, measured, row.protocol, f"{row.protocol_settings}", row.model, f"{row.weights_hash}")
            asked = f"{row.label}\0{row.labelled}\0{row.seed}"
            own = newest.setdefault(group, {})
            if asked in own and own[asked][1].settings_hash != row.settings_hash:
                replaced += 1
            own[asked] = (file.parent, row)
    if not newest:
        raise ValueError(f"{', '.join(map(str, places))}: no records; `vlp tune grid` and `vlp tune --out` write some")
    if replaced:
        console.print(
            f"{replaced} records are left out: later ones of the same method, shots and seed had other data or files",
            soft_wrap=True,
        )
    several = Counter(dataset for dataset, _ in {key[:2] for key in newest})
    called = {key: key[0] if several[key[0]] == 1 else f"{key[0]} [{key[1][:8]}]" for key in newest}
    return [_board(list(rows.values()), dataset=called[key]) for key, rows in newest.items()]


def read_refused(places: Sequence[Path]) -> list[str]:
    """A sentence for each data set that a grid could not read."""
    files = [file.parent / REFUSED for file in result_files(places, of="tune") if (file.parent / REFUSED).is_file()]
    return [
        f"{file}: {name} was not measured: {why}"
        for file in files
        for name, why in json.loads(file.read_text(encoding="utf-8")).items()
    ]


def _board(rows: list[tuple[Path, TuneRecord]], *, dataset: str) -> Board:
    first = rows[0][1]
    methods = sorted(dict.fromkeys(row.label for _, row in rows), key=lambda label: label != ZERO_SHOT)
    cells: dict[tuple[str, Column], Cell] = {}
    for folder, row in rows:
        for metric in _metrics(row.protocol, [one for _, one in rows]):
            cell = cells.setdefault((row.label, Column(row.labelled, metric)), Cell([], metric))
            cell.runs.append((folder, row))
    columns = list(dict.fromkeys(column for _, column in cells))
    wanted = [column.metric for column in columns]
    columns.sort(key=lambda column: (column.shots, wanted.index(column.metric)))
    return Board(dataset, first.protocol, first.model, methods, columns, cells)


def _metrics(protocol: str, rows: Sequence[TuneRecord]) -> Sequence[str]:
    """What the table of a protocol shows."""
    if protocol in ("cross_dataset", "domain_shift"):
        return list(dict.fromkeys(name for row in rows for name in row.metrics if name.startswith("acc1")))
    return METRICS.get(protocol, ("acc1",))


def _paired(cell: Cell, base: Cell) -> Difference | None:
    if cell.metric in BY_SET:
        return None
    mine, theirs = _hits(cell), _hits(base)
    if not mine or not theirs:
        return None
    if any(keys != theirs[0][0] for keys, _ in (*mine, *theirs)):
        name = cell.runs[0][1].label
        raise ValueError(f"{name} and {ZERO_SHOT} were measured on other pictures; measure both again with one file")
    means = [torch.stack([right.double() for _, right in side]).mean(dim=0) for side in (mine, theirs)]
    apart = (means[0] - means[1])[:, None]
    return Difference(float(apart.mean()), of_means(apart)[0])


def _hits(cell: Cell) -> list[tuple[list[str], Tensor]]:
    """Keys of the pictures, and whether each was right, by seed."""
    return [
        read_hits(folder / row.hits, cell.metric) for folder, row in cell.runs if row.hits is not None and row.metrics
    ]
