"""docs/faults.md has a row for every fault of these tables, with the word that is counted, and every such word."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.damage import SAMPLE_FAULTS, TAR_FAULTS
from tests.faults.test_sets import SET_FAULTS
from vlp.data.reasons import REMEDIES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
CELLS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in PAGE.splitlines() if line.startswith("| ")]
MODULES = sorted(path.stem for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__))


@pytest.mark.parametrize("module", MODULES)
def test_the_page_has_every_row_that_is_tested(module: str) -> None:
    """A module of faults says in ROWS which rows of the page it shows."""
    rows = importlib.import_module(f"tests.faults.{module}").ROWS
    assert rows
    assert {str(row) for row in rows} <= {cells[0] for cells in CELLS}


def fault_rows() -> Iterator[tuple[int, str, list[str]]]:
    """Row, name of the fault, and what its line must hold."""
    for tar in TAR_FAULTS:
        yield tar.row, tar.name, [f"`{tar.reason}`" if tar.reason else "no damage", f"{tar.readable} + "]
    for sample in SAMPLE_FAULTS:
        words = [sample.reason, sample.note, sample.verified]
        yield sample.row, sample.name, [f"`{word}`" for word in words if word]
    for fault in SET_FAULTS:
        words = [*fault.notes, *fault.skips, *(w for w in fault.verified or {} if w != "no_manifest")]
        yield fault.row, fault.name, [f"`{word}`" for word in words]


@pytest.mark.parametrize(("row", "name", "words"), list(fault_rows()), ids=lambda value: str(value)[:40])
def test_every_fault_has_a_line(row: int, name: str, words: list[str]) -> None:
    lines = [cells for cells in CELLS if cells[:2] == [str(row), name]]
    assert len(lines) == 1, f"docs/faults.md: no line, or two, that begin | {row} | {name} |"
    rest = " | ".join(lines[0][2:])
    assert [word for word in words if word not in rest] == []


def test_every_reason_has_a_line_with_what_to_do() -> None:
    told = {cells[0].strip("`"): cells[1] for cells in CELLS if len(cells) == 2 and cells[0].startswith("`")}
    assert told == REMEDIES


def reasons_in_the_code() -> Iterator[str]:
    """First words of BadSampleError, TarDamageError, Note, Skip and of `add` of notes and findings."""
    makers = ("BadSampleError", "TarDamageError", "Note", "notes.add", "findings.add", "_failed", "failed")
    paths = [*(ROOT / "vlp" / "data").glob("*.py"), ROOT / "data_tools" / "verify.py"]
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in makers and node.args:
                first = ast.unparse(node.args[0])
                yield from re.findall(r"'([a-z]+(?:_[a-z]+)+)'", first)


def test_no_reason_is_counted_without_a_line() -> None:
    found = set(reasons_in_the_code())
    assert len(found) > 35
    assert found <= REMEDIES.keys()
