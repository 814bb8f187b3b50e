"""CONTRIBUTING.md, carried out: every recipe is applied to a copy of the project, and its own test is run there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import test_house as house

ROOT = house.ROOT
BLOCK = re.compile(r"^```(?:python|json|markdown)\n(?:#|//|<!--) (.+?)(?: -->)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Step(NamedTuple):
    """One code block: where it goes, and what."""

    place: str  # "PATH", "in TABLE of PATH", "at the end of PATH", "PATH, under HEADING"
    text: str


def recipes() -> dict[str, list[Step]]:
    """Blocks with a place, by the heading they stand under."""
    sections = re.split(r"^### ", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {section.split("\n")[0]: [Step(*found) for found in BLOCK.findall(section)] for section in sections}


def apply(step: Step, root: Path) -> str:
    """Carry out one step; the path that it touched."""
    if found := re.fullmatch(r"in (\w+) of (\S+)", step.place):
        table, path = found.groups()
        _change(root / path, rf"({table} = Table\(\s*\"[^\"]+\",\s*\{{)", rf"\1{step.text.strip()}")
    elif found := re.fullmatch(r"at the end of (\S+)", step.place):
        path = found.group(1)
        (root / path).write_text(f"{(root / path).read_text()}\n\n{step.text}")
    elif found := re.fullmatch(r"(\S+), under (\w+)", step.place):
        path, heading = found.groups()
        _change(root / path, rf"(^## {heading}\n(?:(?!\|).*\n)*(?:\|.*\n)+)", lambda m: m.group(1) + step.text)
    else:
        path = step.place
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        assert not (root / path).exists(), f"CONTRIBUTING.md: {path} exists; the recipe needs another example"
        (root / path).write_text(step.text)
    return path


def _change(path: Path, pattern: str, new: object) -> None:
    text, times = re.subn(pattern, new, path.read_text(), count=1, flags=re.MULTILINE)  # type: ignore[call-overload]
    assert times == 1, f"CONTRIBUTING.md: no place for the recipe in {path.name}"
    path.write_text(text)


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A copy of the project with all recipes applied, and the paths that they touched."""
    root = tmp_path_factory.mktemp("recipes")
    for path, text in house.read_tree(ROOT).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    for package in house.PACKAGES:  # files that are not text, such as vocabularies
        shutil.copytree(
            ROOT / package, root / package, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    if (ROOT / ".mypy_cache").is_dir():  # what did not change need not be checked again
        shutil.copytree(ROOT / ".mypy_cache", root / ".mypy_cache", dirs_exist_ok=True)
    touched = [apply(step, root) for steps in recipes().values() for step in steps]
    _change(root / "data_tools/__main__.py", r"(import [^\n]*\bbuild)", r"\1, draw")
    _change(root / "data_tools/__main__.py", r"(in \([^)]*\bbuild)", r"\1, draw")
    return root, touched


def run(root: Path, *words: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, *words], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


def test_there_is_a_recipe_for_every_kind_of_part() -> None:
    kinds = {"loss", "tower", "adapter", "benchmark", "source", "data tool"}
    assert {re.sub(r"^Add an? ", "", heading) for heading in recipes()} == kinds


@pytest.mark.slow
def test_the_house_still_stands(changed: tuple[Path, list[str]]) -> None:
    root, touched = changed
    before, after = house.read_tree(ROOT), house.read_tree(root)
    for name, check in house.CHECKS.items():
        new = [fault for fault in set(check(after)) - set(check(before)) if any(path in fault for path in touched)]
        assert not new, (name, new)


@pytest.mark.slow
def test_the_recipes_work(changed: tuple[Path, list[str]]) -> None:
    root, touched = changed
    run(root, "-m", "pytest", "-q", "-p", "no:cacheprovider", *[path for path in touched if path.startswith("tests/")])
    run(root, "-m", "data_tools", "draw", "--help")


@pytest.mark.slow
def test_the_recipes_are_clean(changed: tuple[Path, list[str]]) -> None:
    root, touched = changed
    files = [path for path in touched if path.endswith(".py")]
    run(root, "-m", "ruff", "check", *files)
    run(root, "-m", "ruff", "format", "--check", *[path for path in files if not path.endswith("__init__.py")])
    run(root, "-m", "mypy", *[path for path in files if path.startswith(("vlp/", "eval/"))])
