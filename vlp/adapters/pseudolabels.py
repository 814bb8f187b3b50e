"""How good the labels are that a method gave to pictures without any; for after the fit, by whoever may see labels."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Int
from torch import Tensor


class Counted(NamedTuple):
    """Of every class: pictures that are of it, pseudolabels of it, and how many of these are right."""

    pictures: Int[Tensor, "C"]
    given: Int[Tensor, "C"]
    right: Int[Tensor, "C"]


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
