"""Some of the questions that were answered wrong, with pictures and texts, for reports to show.

`BENCHMARK_examples.json` (of another head than global `BENCHMARK_examples_HEAD.json`) holds schema 1, the number of
`items` and of `wrong` ones, and `examples`: {rows [p], texts [t], scores [p][t], group or null, box or null}. Text i is
true of picture i where both are there; further texts and pictures are false.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from eval.benchmark import Outcome
from eval.heads import Head, file_name

SHOWN = 8


class Mistake(NamedTuple):
    """One question; `box` is the part of the picture that was asked about."""

    rows: Sequence[int]
    texts: Sequence[str]
    scores: Float[Tensor, "p t"]
    group: str | None = None
    box: Sequence[float] | None = None


def add_mistakes(outcome: Outcome, benchmark: str, wrong: Sequence[Mistake], *, items: int, head: Head) -> None:
    """Adds the file, with wrong answers evenly spread over all, and its pictures to what a report shows."""
    places = torch.linspace(0, len(wrong) - 1, min(SHOWN, len(wrong))).round().long().tolist()
    shown = [wrong[place] for place in places]
    examples = [
        {
            "rows": list(one.rows),
            "texts": list(one.texts),
            "scores": one.scores.tolist(),
            "group": one.group,
            "box": None if one.box is None else list(one.box),
        }
        for one in shown
    ]
    content = {"schema": 1, "items": items, "wrong": len(wrong), "examples": examples}
    outcome.files[file_name(f"{benchmark}_examples", head)] = content
    outcome.shown |= {row for one in shown for row in one.rows}
