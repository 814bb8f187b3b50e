"""Files of results below a folder: those of `vlp eval` and of `vlp tune` have one name, and tables of their own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vlp.log import console
from vlp.tune.record import RESULTS

Kind = Literal["eval", "tune"]
MAKES = {"eval": "`vlp eval MODEL SUITE.yaml` writes one", "tune": "`vlp tune grid` and `vlp tune --out` write one"}


def result_files(places: Sequence[Path], *, of: Kind) -> list[Path]:
    """Results files of one kind, there and below; how many of the other kind are left out is said on stderr.

    ValueError for a place without any, and for a file of the other kind.
    """
    found: list[Path] = []
    others = 0
    for place in places:
        files = [place] if place.is_file() else sorted(place.glob(f"**/{RESULTS}"))
        if not files:
            raise ValueError(f"{place}: no {RESULTS} there or below; {MAKES[of]}")
        own = [file for file in files if kind_of(file) in (of, None)]
        if not own:
            other = kind_of(files[0])
            raise ValueError(f"{place}: these are results of `vlp {other}`: `vlp {other} table {place}` shows them")
        found += own
        others += len(files) - len(own)
    if others:
        other = "tune" if of == "eval" else "eval"
        console.print(
            f"left out: {others} results files of `vlp {other}`, which `vlp {other} table` shows",
            highlight=False,
            soft_wrap=True,
        )
    return found


def kind_of(file: Path) -> Kind | None:
    """Which command wrote the file, by its first line; None where that is of neither."""
    with file.open(encoding="utf-8") as opened:
        first = next((line for line in opened if line.strip()), "")
    try:
        record = json.loads(first)
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    return "eval" if "task" in record else "tune" if "method" in record else None
