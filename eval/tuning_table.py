"""Records of `vlp tune` as tables: mean ± std over seeds, and whether it beats zero-shot on the same pictures."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from eval.leaderboard import Format, laid_out
from eval.tuning_board import METRICS, Board, Column, Difference
from eval.tuning_labels import labels
from vlp.tune.record import labels_in_words
from vlp.tune.transfers import harmonic_mean

HEAD = (
    "dataset protocol model method labelled metric mean std seeds chance at_chance leaky transductive less_zeroshot "
    "low high verdict classes_short"
)
NOTES = {
    "*": "not shown to be better than chance with some of its draws",
    "†": "leaky: chose by test labels, as the published code does; never bold",
    "‡": "transductive: saw the measured pictures, without labels, while it was fitted",
    "§": "some classes have fewer labelled pictures than the column says",
}


def as_text(boards: Sequence[Board], how: Format) -> str:
    """All boards, and their mean where several data sets were measured alike; CSV has one line a number."""
    if how == "csv":
        return _lines(boards)
    short = labels(boards)
    parts = [part for board in boards for part in _board_text(board, short, how)]
    parts += [part for several in _alike(boards) for part in _average_text(several, short, how)]
    used = [f"{sign} {text}" for sign, text in NOTES.items() if any(_stands(sign, part) for part in parts)]
    return "\n".join([*parts, *([_said("; ".join(used), how)] if used else [])])


def _stands(sign: str, part: str) -> bool:
    """Whether the sign is there; two stars are what makes a number bold."""
    return re.search(rf"(?<!\*){re.escape(sign)}(?!\*)", part) is not None


def _board_text(board: Board, short: Mapping[str, str], how: Format) -> Iterator[str]:
    several = len({column.metric for column in board.columns}) > 1
    head = ["method", *(_title(column, several) for column in board.columns)]
    rows = []
    for method in board.methods:
        marked = short[method] + board.marks(method)
        rows.append([marked, *(_cell(board, method, column, how) for column in board.columns)])
    yield _said(f"{board.dataset}, {_protocol(board)}, {board.model}, %", how)
    yield laid_out(head, rows, how)
    base = board.zero_shot("acc1")
    if base is not None and base.at_chance:
        yield _said("zero-shot is at chance here, so that nothing is said to beat it", how)
    apart = {method: [board.difference(method, column) for column in board.columns] for method in board.methods}
    rows = [[short[method], *map(_apart, found)] for method, found in apart.items() if any(found)]
    if rows:
        yield _said("less zero-shot on the same pictures, points, 95 % interval", how)
        yield laid_out(head, rows, how)
    right = {method: [_believed(board, method, column) for column in board.columns] for method in board.methods}
    rows = [[short[method], *(value or "-" for value in found)] for method, found in right.items() if any(found)]
    if rows:
        yield _said("pseudolabels that were right, %", how)
        yield laid_out(head, rows, how)


def _protocol(board: Board) -> str:
    """Its name, with its settings."""
    said = ", ".join(f"{key}={value}" for key, value in board.alike.protocol_settings.items())
    return f"{board.protocol} ({said})" if said else board.protocol


def _believed(board: Board, method: str, column: Column) -> str | None:
    """Share of the pseudolabels that were right, mean over seeds; None where there were none."""
    cell = board.cells.get((method, column))
    rows = [row.pseudolabels for _, row in cell.runs] if cell is not None else []
    right = [found["accuracy"] for found in rows if found is not None and found["accuracy"] is not None]
    return f"{100 * fmean(right):.1f}" if right else None


def _cell(board: Board, method: str, column: Column, how: Format) -> str:
    cell = board.cells.get((method, column))
    if cell is None:
        return "-"
    if cell.mean is None:
        return "failed"
    text = _number(cell.mean, cell.std, how)
    rivals = [
        other.mean
        for name in board.methods
        if "†" not in board.marks(name) and (other := board.cells.get((name, column))) and other.mean is not None
    ]
    if "†" not in board.marks(method) and len(rivals) > 1 and cell.mean == max(rivals):
        text = f"\\textbf{{{text}}}" if how == "latex" else f"**{text}**"
    star = "\\*" if how == "md" else "*"
    return text + (star if cell.at_chance else "") + ("§" if cell.classes_short else "")


def _number(mean: float, std: float | None, how: Format) -> str:
    sign = "$\\pm$" if how == "latex" else "±"
    return f"{100 * mean:.1f}" + (f" {sign} {100 * std:.1f}" if std is not None else "")


def _apart(found: Difference | None) -> str:
    if found is None:
        return "-"
    low, high = (100 * end for end in found.interval)
    verdict = "" if found.verdict == "no difference shown" else f" {found.verdict}"
    return f"{100 * found.value:+.1f} ({low:+.1f} to {high:+.1f}){verdict}"


def _title(column: Column, several: bool) -> str:
    shots = labels_in_words(column.labelled)
    return f"{shots} {column.metric}" if several else shots


def _said(text: str, how: Format) -> str:
    return f"% {text}\n" if how == "latex" else f"{text}\n"


def _alike(boards: Sequence[Board]) -> list[list[Board]]:
    """Boards of several data sets that were measured by one protocol, with the same settings, with one model."""
    found: dict[tuple[str, str, str], list[Board]] = {}
    for board in boards:
        key = (_protocol(board), board.model, f"{board.alike.weights_hash}")
        found.setdefault(key, []).append(board)
    return [several for several in found.values() if len({board.dataset for board in several}) > 1]


def _average_text(boards: Sequence[Board], short: Mapping[str, str], how: Format) -> Iterator[str]:
    """Means over data sets of methods that have them all; H is of the means, and beside it stands the mean of H."""
    columns = [column for column in boards[0].columns if all(column in board.columns for board in boards)]
    means = {
        method: [_mean_over(boards, method, column) for column in columns]
        for method in dict.fromkeys(method for board in boards for method in board.methods)
    }
    head, several = ["method"], len({column.metric for column in columns}) > 1
    for column in columns:
        head.append(_title(column, several))
        head += [f"{_title(column, several)}, mean of sets"] if column.metric == "h" else []
    rows = []
    for method, values in means.items():
        row, by = [short[method]], dict(zip(columns, values))
        for column, value in by.items():
            if column.metric == "h":
                halves = [by.get(Column(column.labelled, name)) for name in METRICS["base_to_new"][:2]]
                row.append("-" if value is None else f"{100 * harmonic_mean(*(half or 0.0 for half in halves)):.1f}")
            row.append("-" if value is None else f"{100 * value:.1f}")
        rows.append(row)
    yield _said(f"mean of {len(boards)} data sets, {_protocol(boards[0])}, {boards[0].model}, %", how)
    yield laid_out(head, rows, how)


def _mean_over(boards: Sequence[Board], method: str, column: Column) -> float | None:
    cells = [board.cells.get((method, column)) for board in boards]
    values = [cell.mean for cell in cells if cell is not None and cell.mean is not None]
    return fmean(values) if len(values) == len(boards) else None


def _lines(boards: Sequence[Board]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEAD.split())
    for board in boards:
        for (method, column), cell in board.cells.items():
            apart, first = board.difference(method, column), cell.runs[0][1]
            numbers = [cell.mean, cell.std, len(cell.values), first.chance.get(column.metric)]
            tail = [apart.value, *apart.interval, apart.verdict] if apart else [None] * 4
            stamps = [int(cell.at_chance), int(first.leaky), int(first.transductive)]
            writer.writerow(
                [
                    board.dataset,
                    board.protocol,
                    board.model,
                    method,
                    *column,
                    *numbers,
                    *stamps,
                    *tail,
                    cell.classes_short,
                ]
            )
    return out.getvalue()
