"""Results of many models as one table: Markdown, CSV or LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, NamedTuple

from eval import record
from eval.record import Record
from eval.result_files import result_files
from vlp.registry import nearest
from vlp.report.ranked import main_metric

Format = Literal["md", "csv", "latex"]


class Column(NamedTuple):
    """One data set, task, metric, and how it was measured: `Record.apart`."""

    dataset: str
    task: str
    how: str
    metric: str

    @property
    def title(self) -> str:
        return " ".join(filter(None, (self.dataset, self.how, self.metric)))


class Board(NamedTuple):
    """Rows are models, columns results; the last record of a cell counts."""

    models: list[str]
    columns: list[Column]
    cells: dict[tuple[str, Column], Record]

    def value(self, model: str, column: Column) -> float | None:
        found = self.cells.get((model, column))
        return None if found is None else found.metrics[column.metric]

    @property
    def alike(self) -> dict[str, list[Column]]:
        """By title, the columns of one measure, taken alike on several data sets: what a mean can be of."""
        found: dict[tuple[str, str, str], list[Column]] = {}
        for column in self.columns:
            found.setdefault((column.task, column.how, column.metric), []).append(column)
        return {" ".join(filter(None, ("mean", *key[1:]))): own for key, own in found.items() if len(own) > 1}

    def average(self, model: str, columns: Sequence[Column]) -> float | None:
        """Mean over the columns, for a model that has them all."""
        values = [self.value(model, column) for column in columns]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known and len(known) == len(values) else None

    def rank(self, model: str) -> list[float]:
        """To sort by: the means, then the columns, those that are not there last."""
        values = [self.average(model, own) for own in self.alike.values()]
        values += [self.value(model, column) for column in self.columns]
        return [1.0 if value is None else -value for value in values]


def read_board(places: Sequence[Path], *, metric: str | None = None, datasets: Sequence[str] = ()) -> Board:
    """The table of all results files, or folders with some; ValueError where there is none, or none has `metric`.

    `datasets`: names or patterns of those to show, so that a mean need not be over validation and test sets.
    """
    records = [row for file in result_files(places, of="eval") for row in record.read(file)]
    if datasets:
        shown = named(datasets, {row.dataset for row in records}, option="--dataset", what="data set")
        records = [row for row in records if row.dataset in shown]
    cells: dict[tuple[str, Column], Record] = {}
    for row in records:
        name = metric if metric in row.metrics else None if metric else main_metric(row.task, row.metrics)
        if name is not None:
            model = f"{row.model} {row.pretrained}".strip()
            cells[model, Column(row.dataset, row.task, " ".join(row.apart), name)] = row
    if not cells:
        known = sorted({name for row in records for name in row.metrics})
        raise ValueError(f'no record has the metric "{metric}"{nearest(metric or "", known)}')
    models, columns = (list(dict.fromkeys(part)) for part in zip(*cells))
    board = Board(models, columns, cells)
    return board._replace(models=sorted(models, key=board.rank))


def named(patterns: Sequence[str], known: Collection[str], *, option: str, what: str) -> set[str]:
    """The known names that are one of the patterns or match it; ValueError for a pattern that names none."""
    chosen = set[str]()
    for pattern in patterns:
        found = {name for name in known if name == pattern or fnmatchcase(name, pattern)}
        if not found:
            raise ValueError(f'{option} "{pattern}" names no {what} of these results{nearest(pattern, known)}')
        chosen |= found
    return chosen


def as_text(board: Board, how: Format, *, intervals: bool = True) -> str:
    """The table in a format; in percent, the best of a column bold, what is not shown to be above chance starred."""
    head = ["model", *(column.title for column in board.columns), *board.alike]
    rows = [
        [model, *(_cell(board, model, column, how, intervals) for column in board.columns)] for model in board.models
    ]
    for row, model in zip(rows, board.models):
        means = (board.average(model, own) for own in board.alike.values())
        row += ["-" if mean is None else f"{mean:.6g}" if how == "csv" else f"{100 * mean:.1f}" for mean in means]
    return laid_out(head, rows, how)


def notes(board: Board) -> list[str]:
    """What records say of a model that is not as its weights were trained, a line each."""
    said = [f"{model}: {text}" for (model, _), row in board.cells.items() for text in row.warnings]
    return list(dict.fromkeys(said))


def laid_out(head: Sequence[str], rows: Sequence[Sequence[str]], how: Format) -> str:
    """A table in a format; the first column holds names, the others numbers."""
    if how == "csv":
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([head, *rows])
        return out.getvalue()
    if how == "latex":
        lines = [" & ".join(map(_escaped, head)), *(" & ".join([_escaped(row[0]), *row[1:]]) for row in rows)]
        body = " \\\\\n".join([lines[0] + " \\\\ \\midrule", *lines[1:]]).replace("\\midrule \\\\", "\\midrule")
        return (
            f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}\n\\toprule\n{body} \\\\\n\\bottomrule\n\\end{{tabular}}\n"
        )
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def _cell(board: Board, model: str, column: Column, how: Format, intervals: bool) -> str:
    row, value = board.cells.get((model, column)), board.value(model, column)
    if row is None or value is None:
        return "-"
    if how == "csv":
        return f"{value:.6g}"
    best = max(v for other in board.models if (v := board.value(other, column)) is not None)
    text = f"{100 * value:.1f}"
    if value == best and len(board.models) > 1:
        text = f"\\textbf{{{text}}}" if how == "latex" else f"**{text}**"
    star = "*" if row.contains_chance.get(column.metric) else ""
    if intervals and (ends := row.ci95.get(column.metric)):
        text += f" ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})"
    return text + ("\\*" if star and how == "md" else star)


def _escaped(text: str) -> str:
    return text.replace("_", "\\_").replace("%", "\\%").replace("&", "\\&")
