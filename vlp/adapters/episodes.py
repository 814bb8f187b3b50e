"""Tasks as papers on transduction draw them: few pictures, of few of all classes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor


def episodes(
    label: Int[Tensor, "n"], *, tasks: int, rng: torch.Generator, effective: int = 5, queries: int = 75
) -> Iterator[Int[Tensor, "q"]]:
    """Rows of up to `queries` pictures of `effective` random classes, a task after the other (2405.18437, section 5).

    Classes are drawn among those that have pictures, and pictures from all of theirs, so shares differ. The authors'
    zero-shot sampler draws 3 to 10 classes in place of `effective`; with fewer classes a task has them all.
    """
    classes = label.unique()
    for _ in range(tasks):
        drawn = classes[torch.randperm(len(classes), generator=rng)[:effective]]
        rows = torch.where(torch.isin(label, drawn))[0]
        yield rows[torch.randperm(len(rows), generator=rng)[:queries]]
