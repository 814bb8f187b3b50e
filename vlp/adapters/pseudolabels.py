"""How good the labels are that a method gave to pictures without any; for after the fit, by whoever may see labels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

NONE = -1  # pseudolabel of a picture that got none


class PerClass(NamedTuple):
    """Of every class: pictures, share that got a label, right among all, right among those given its label.

    nan where there is nothing to divide by.
    """

    support: Int[Tensor, "C"]
    labelled: Float[Tensor, "C"]
    recall: Float[Tensor, "C"]
    precision: Float[Tensor, "C"]


class Counted(NamedTuple):
    """Of every class: pictures that are of it, pseudolabels of it, and how many of these are right."""

    pictures: Int[Tensor, "C"]
    given: Int[Tensor, "C"]
    right: Int[Tensor, "C"]


class RobinHood(NamedTuple):
    """Mean change of accuracy of the classes that were poor before, and of the rich; `gap` is poor - rich."""

    poor: float
    rich: float
    gap: float


def per_class(pseudo: Int[Tensor, "n"], label: Int[Tensor, "n"], *, classes: int) -> PerClass:
    """Accuracy of pseudolabels (-1: none given) of every class, against the true labels."""
    if len(pseudo) != len(label):
        raise ValueError(f"{len(pseudo)} pseudolabels for {len(label)} labels")
    for what, own, least in (("pseudolabels", pseudo, NONE), ("labels", label, 0)):
        if len(own) and not least <= int(own.min()) <= int(own.max()) < classes:
            raise ValueError(f"{what} must lie in {least}..{classes - 1}")
    given = torch.where(pseudo != NONE)[0]
    found = counted(given, pseudo[given], label, classes=classes)
    right, support = found.right.double(), found.pictures
    labelled = label[given].bincount(minlength=classes)
    return PerClass(support, labelled / support.double(), right / support, right / found.given)


def counted(rows: Int[Tensor, "m"], pseudo: Int[Tensor, "m"], label: Int[Tensor, "n"], *, classes: int) -> Counted:
    """Pseudolabels of the pictures in `rows`, some of them several times, against the true labels of all n.

    A label of -1 is not known, and what was given to such a picture does not count; one beyond C is of no class here.
    """
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(label):
        raise ValueError(f"pseudolabels of picture {int(rows.max())}, but there are labels of {len(label)} pictures")
    known = label[rows] >= 0
    pseudo, true = pseudo[known], label[rows][known]
    own = label[(label >= 0) & (label < classes)]
    tensors = (own, pseudo, pseudo[pseudo == true])
    return Counted(*(one.bincount(minlength=classes) for one in tensors))


def robin_hood(
    before: Int[Tensor, "n"], after: Int[Tensor, "n"], label: Int[Tensor, "n"], *, classes: int
) -> RobinHood:
    """What the classes gained that were poor and rich under `before`: the Robin Hood effect (arXiv 2306.01669).

    Of m classes with pictures, poor are the floor(m / 2) of the lowest accuracy, rich as many of the highest; of an odd
    number the one between is neither, and equally accurate classes stand in the order of their labels. Chance alone
    lets the poor gain: measure `before` on other pictures, or compare with the gap of another method.
    """
    start = per_class(before, label, classes=classes)
    there = torch.where(start.support > 0)[0]
    if len(there) < 2:
        raise ValueError(f"poor and rich classes need pictures of at least 2 classes, got {len(there)}")
    gain = (per_class(after, label, classes=classes).recall - start.recall)[there]
    order = start.recall[there].argsort(stable=True)
    half = len(there) // 2
    poor, rich = float(gain[order[:half]].mean()), float(gain[order[-half:]].mean())
    return RobinHood(poor, rich, poor - rich)
