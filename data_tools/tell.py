"""Results of `verify`, `stats` and `contamination` on the terminal."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from data_tools.findings import summary_rows
from vlp.data.reasons import REMEDIES


def tell_verify(result: dict[str, Any]) -> None:
    """One line of counts, one row for each reason, and the verdict."""
    console = _console()
    known = "no manifest" if result["manifest"] is None else f"manifest {result['manifest']}"
    console.print(f"{result['shards']} shards: {known}, readable {result['readable']}, missing {result['missing']}")
    if result["reasons"]:
        table = _table("reason", "count", "kind", "first example")
        rows = summary_rows(result)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        for reason, *_ in rows:
            console.print(f"  {reason}: {REMEDIES[reason]}")
    console.print("ok" if result["ok"] else f"FAULTY: {result['faults']} faults")


def tell_stats(result: dict[str, Any]) -> None:
    """A table of quantiles and lines of counts."""
    console = _console()
    pictures, captions = result["pictures"], result["captions"]
    console.print(
        f"{result['samples']} samples in {result['shards']} shards, {result['bytes'] / 2**20:.1f} MiB of members"
    )
    table = _table("", "mean", "min", "5 %", "25 %", "median", "75 %", "95 %", "max")
    rows = {
        "width": pictures["width"],
        "height": pictures["height"],
        "picture bytes": pictures["bytes"],
        "captions a sample": captions["per_sample"],
        "words a caption": captions["words"],
        "tokens a caption": captions["tokens"],
    }
    for name, values in rows.items():
        if values:
            table.add_row(name, *(f"{value:.4g}" if value < 1e4 else f"{value:.0f}" for value in values.values()))
    console.print(table)
    console.print(f"members: {_counts(result['members'])}; json fields: {', '.join(result['json_fields']) or 'none'}")
    console.print(f"formats: {_counts(pictures['formats'])}; bad: {_counts(pictures['bad'])}")
    console.print(f"same picture again: {pictures['duplicates']}; same caption again: {captions['duplicates']}")
    console.print(f"samples without caption: {captions['samples_without']}; scripts: {_counts(captions['scripts'])}")
    console.print(f"captions cut at the context: {captions['cut_at_context']} of {captions['total']}")
    if result["labels"]["classes"]:
        largest = ", ".join(f"{name} {count}" for name, count in result["labels"]["largest"])
        console.print(f"classes: {result['labels']['classes']}; largest: {largest}")
    for text, count in captions["top"]:
        console.print(f"  {count:6d}  {text[:100]}", markup=False)


def tell_contamination(result: dict[str, Any]) -> None:
    """A line for every evaluation set, and what the training shards lose."""
    console = _console()
    for found in result["evaluations"]:
        console.print(_leaked(found), markup=False)
    counts = result["train"]
    console.print(
        f"training: {counts['samples']} samples, {counts['dropped']} to drop, not looked at: "
        f"{_counts(counts['skipped'])}"
    )


def _leaked(found: dict[str, Any]) -> str:
    if not found["pictures"]:
        return f"{found['name']}: no picture could be read: {found['skipped']}"
    share = f"{100 * found['share']:.2f} % ({100 * found['low']:.2f} to {100 * found['high']:.2f})"
    skipped = f"; not read: {found['skipped']}" if found["skipped"] else ""
    flat = f"; {found['flat']} of nearly one colour, by equal pixels only" if found["flat"] else ""
    said = f"{found['name']}: {found['leaked']} of {found['pictures']} pictures leaked, {share}: "
    return f"{said}{_counts(found['kinds'])}; same caption {found['same_caption']}{skipped}{flat}"


def _console() -> Console:
    width = None if sys.stdout.isatty() else 200  # a file or a pipe has room
    return Console(highlight=False, soft_wrap=True, width=width, markup=False)  # keys may hold brackets


def _counts(values: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in values.items()) or "none"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number and len(columns) > 4 else "left", overflow="fold")
    return table
