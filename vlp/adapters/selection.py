"""How adapters choose their settings: on validation, else by cross-validation inside the support, never on test."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlp.adapters.task import Examples, Task
from vlp.metrics.accuracy import Accuracy

S = TypeVar("S")


class Fold(NamedTuple):
    """Pictures to fit to and pictures to judge the fit on."""

    learn: Examples
    judge: Examples


class Folds(NamedTuple):
    """The folds, and what a record says of where they come from: validation, train, test (leaky) or none."""

    folds: list[Fold]
    split: str


class Score(NamedTuple):
    """What a setting reaches on pictures that it did not see; the larger tuple is the better one."""

    accuracy: float
    log_likelihood: float  # mean; decides between equal accuracies, of which small sets have many


class Chosen(NamedTuple, Generic[S]):
    """The best setting, and what a record says of the choice."""

    value: S
    selection: dict[str, Any]


def folds(task: Task, *, leaky: bool = False, at_most: int = 4) -> Folds:
    """One fold with `validation` as judge; without it up to `at_most` stratified folds of the support.

    A class with one picture can not be held out, so a support of one shot gives no fold. `leaky`: the test pictures
    judge, as in published code that chooses on them.
    """
    support = task.support
    if support is None:
        return Folds([], "none")
    if leaky:
        if task.test is None:
            raise ValueError("protocol: paper chooses on test pictures, and this task holds none")
        return Folds([Fold(support, task.test)], "test")
    if task.validation is not None and len(task.validation):
        return Folds([Fold(support, task.validation)], "validation")
    count = min(at_most, int(support.known.bincount(minlength=len(task.names)).max()))
    if count < 2:
        return Folds([], "none")
    part = _parts(support, count, task.seed)
    made = [
        Fold(support.only(torch.where(part != one)[0]), support.only(torch.where(part == one)[0]))
        for one in range(count)
    ]
    return Folds(made, "train")


def score(logits: Float[Tensor, "n C"], label: Int[Tensor, "n"]) -> Score:
    """Accuracy, where a tie counts against the model, and mean log-likelihood."""
    hits = Accuracy(logits.shape[1])
    hits.update(logits, label)
    likelihood = logits.double().log_softmax(dim=1).gather(1, label[:, None]).mean()
    return Score(float(hits.compute()["acc1"]), float(likelihood))


def choose(candidates: Iterable[S], judge: Callable[[S], Score], *, split: str) -> Chosen[S]:
    """The candidate of the best score; among equals the first."""
    scored = [(judge(one), one) for one in candidates]
    best = max(scored, key=lambda pair: pair[0])
    about = {"split": split, "candidates": len(scored), "criterion": "acc1, then likelihood"}
    return Chosen(best[1], {**about, "acc1": best[0].accuracy})


def _parts(support: Examples, count: int, seed: int) -> Int[Tensor, "n"]:
    """Fold of each picture: those of one class go round the folds in the order of a hash of seed and key."""
    keys = support.keys or tuple(map(str, range(len(support))))
    order = sorted(range(len(support)), key=lambda row: hashlib.sha256(f"{seed}\0{keys[row]}".encode()).digest())
    seen: dict[int, int] = {}
    part = torch.zeros(len(support), dtype=torch.long)
    for row in order:
        label = int(support.known[row])
        part[row] = seen.get(label, label) % count  # classes begin at different folds, so that folds are equally large
        seen[label] = seen.get(label, label) + 1
    return part
