"""What a method made of a sequence of domains: matrix of scores, measures with intervals, and methods side by side.

`RUN/continual.json` of an arm: schema 1, arm, joint, domains [D], stages [S] (the starting model, then one a domain),
matrix [S][D] and intervals [S][D][low, high], chance [D], measures {name: value} and ci95 {name: [low, high]} after the
last stage, and course: the measures after each stage. Without an interval null.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.forgetting import SCORES, drawn
from vlp import checkpoint
from vlp.data.schema import write_atomic
from vlp.metrics.continual import LOWER_IS_BETTER, measures

RESULT = "continual.json"
N_BOOT = 1000


@dataclass(frozen=True)
class Course:
    """An arm as far as it has come: matrix [S, D] of scores, and the same of bootstrap draws [n_boot, S, D]."""

    arm: str
    joint: bool
    domains: tuple[str, ...]
    stages: tuple[str, ...]
    matrix: Tensor
    draws: Tensor
    chance: tuple[float | None, ...]
    pictures: tuple[Any, ...]  # of each domain what must be equal in arms that are compared picture by picture

    @property
    def whole(self) -> bool:
        """Whether it has come to its end."""
        return len(self.stages) == (2 if self.joint else len(self.domains) + 1)

    def measures(self, stages: int | None = None) -> dict[str, float]:
        """The measures after the last stage, or after so many."""
        return {name: float(value) for name, value in self._of(self.matrix, stages or len(self.stages)).items()}

    def intervals(self) -> dict[str, list[float] | None]:
        """95 % bootstrap interval of each measure after the last stage."""
        return {name: ends(values) for name, values in self.drawn_measures().items()}

    def drawn_measures(self) -> dict[str, Tensor]:
        """Each measure after the last stage, of every draw."""
        return self._of(self.draws, len(self.stages))

    def _of(self, scores: Tensor, stages: int) -> dict[str, Tensor]:
        if stages < 2:
            return {}
        if self.joint:
            return {"average": scores[..., stages - 1, :].mean(-1)}
        return measures(scores[..., :stages, :])

    def to_json(self) -> dict[str, Any]:
        columns = range(len(self.domains))
        return {
            "schema": 1,
            "arm": self.arm,
            "joint": self.joint,
            "domains": list(self.domains),
            "stages": list(self.stages),
            "matrix": self.matrix.tolist(),
            "intervals": [[ends(self.draws[:, row, d]) for d in columns] for row in range(len(self.stages))],
            "chance": list(self.chance),
            "measures": self.measures(),
            "ci95": self.intervals(),
            "course": [self.measures(stages) for stages in range(2, len(self.stages) + 1)],
        }


def read(folder: Path, *, arm: str, stages: Sequence[str], domains: Sequence[str], joint: bool) -> Course | None:
    """The course of an arm from the stages' folders, as far as they were measured; None before the start was."""
    found = []
    for stage in stages:
        file = folder / stage / SCORES
        if not file.is_file():
            break
        found.append(checkpoint.read_json(file)["scores"])
    if not found:
        return None
    columns = [[scores[domain] for scores in found] for domain in domains]
    matrix = torch.tensor([[entry["value"] for entry in column] for column in columns], dtype=torch.float64).T
    draws = torch.stack([drawn(column, n_boot=N_BOOT, seed=d) for d, column in enumerate(columns)], -1)
    pictures = tuple((column[0]["n"], [p["counts"] for p in column[0]["parts"] or ()]) for column in columns)
    chance = tuple(column[0]["chance"] for column in columns)
    return Course(arm, joint, tuple(domains), tuple(stages[: len(found)]), matrix, draws, chance, pictures)


def write(course: Course, folder: Path) -> dict[str, Any]:
    """The content of `continual.json`, written."""
    content = course.to_json()
    write_atomic(folder / RESULT, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    return content


def differences(course: Course, baseline: Course) -> dict[str, tuple[float, list[float] | None]]:
    """Of each measure that both have the difference to the baseline's, and its interval over the same pictures."""
    mine, theirs = course.measures(), baseline.measures()
    if course.pictures != baseline.pictures:
        raise ValueError(
            f"{course.arm} and {baseline.arm} were measured on different pictures; measure one of them again"
        )
    ours, others = course.drawn_measures(), baseline.drawn_measures()
    return {name: (mine[name] - theirs[name], ends(ours[name] - others[name])) for name in mine if name in theirs}


def verdict(name: str, interval: list[float] | None) -> str:
    """What the interval of a difference says."""
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "no difference shown"
    return "better" if (interval[0] > 0) != (name in LOWER_IS_BETTER) else "worse"


def ends(values: Tensor) -> list[float] | None:
    """2.5 % and 97.5 % quantile; None where draws are no numbers."""
    if not values.isfinite().all():
        return None
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return [low, high]
