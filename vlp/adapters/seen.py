"""Folds and support as adapters see them that learn classes from pictures alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlp.adapters.selection import Folds
from vlp.adapters.task import Examples

NAMED = 5  # classes that a message names


class Seen(NamedTuple):
    """A fold over the K classes that have a picture to learn from, renumbered 0..K-1; only pictures of these judge."""

    classes: Int[Tensor, "K"]
    learn: Examples
    judge: Examples


def seen(found: Folds) -> list[Seen]:
    """The folds without pictures whose class the fold cannot learn; folds left with nothing to judge are out."""
    made = []
    for learn, judge in found.folds:
        classes = learn.known.unique()
        judge = judge.only(torch.where(torch.isin(judge.known, classes))[0])
        if len(classes) > 1 and len(judge):
            made.append(Seen(classes, _renumbered(learn, classes), _renumbered(judge, classes)))
    return made


def check_every_class(support: Examples, names: Sequence[str], *, who: str) -> None:
    """ValueError naming classes without a picture, of which nothing can be learned."""
    count = support.known.bincount(minlength=len(names))
    empty = [names[place] for place in torch.where(count == 0)[0].tolist()]
    if empty:
        raise ValueError(
            f"{who} learns every class from its pictures, and {len(empty)} of {len(names)} have none: "
            f"{', '.join(empty[:NAMED])}; leave these classes out of the task, or give pictures of them"
        )


def rows_of(examples: Examples) -> tuple[Float[Tensor, "m D"], Int[Tensor, "m"]]:
    """Features in fp64 and labels: a row for each augmented copy where there are some, else for each picture."""
    if examples.views is None:
        return examples.image.double(), examples.known
    return examples.views.double().flatten(0, 1), examples.known.repeat_interleave(examples.views.shape[1])


def class_means(features: Float[Tensor, "m D"], label: Int[Tensor, "m"], classes: int) -> Float[Tensor, "C D"]:
    """Mean of the rows of every class in fp64; each must have one."""
    total = torch.zeros(classes, features.shape[1], dtype=torch.float64).index_add_(0, label, features.double())
    return total / label.bincount(minlength=classes)[:, None]


def _renumbered(examples: Examples, classes: Int[Tensor, "K"]) -> Examples:
    return replace(examples, label=torch.searchsorted(classes, examples.known))
