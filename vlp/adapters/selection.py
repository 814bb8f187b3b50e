"""How adapters choose their settings: on validation, else by cross-validation inside the support, never on test."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlp.adapters.task import Examples, Task
from vlp.metrics.accuracy import Accuracy

S = TypeVar("S")
NOTHING: dict[str, Any] = {"split": "none"}  # what a record says where nothing was chosen
SPLITS = ("none", "train", "validation", "test")  # where choices are made, the farthest from what is measured first
EQUAL = 1e-9  # nats; likelihoods that are nearer differ by rounding


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


def pooled(scores: Iterable[tuple[Score, int]]) -> Score:
    """The score over all pictures of scores over so many each."""
    rows = list(scores)
    total = sum(count for _, count in rows)
    return Score(
        sum(one.accuracy * count for one, count in rows) / total,
        sum(one.log_likelihood * count for one, count in rows) / total,
    )


def choose(candidates: Iterable[S], judge: Callable[[S], Score], *, split: str, unchosen: S) -> Chosen[S]:
    """The candidate of the best score, among equals the first; `unchosen` where nothing tells them apart."""
    scored = [(judge(one), one) for one in candidates]
    best, worst = max(scored, key=lambda pair: pair[0]), min(scored, key=lambda pair: pair[0])
    if _equal(best[0], worst[0]):
        return Chosen(unchosen, {**NOTHING, "candidates": len(scored), "equal_on": split})
    about = {"split": split, "candidates": len(scored), "criterion": "acc1, then likelihood"}
    return Chosen(best[1], {**about, "acc1": best[0].accuracy})


def _equal(one: Score, other: Score) -> bool:
    return one.accuracy == other.accuracy and math.isclose(
        one.log_likelihood, other.log_likelihood, rel_tol=0, abs_tol=EQUAL
    )


def selection_of(classifier: Any) -> dict[str, Any]:
    """What a fitted classifier says of what chose its settings."""
    found: dict[str, Any] = getattr(classifier, "about", {}).get("selection", NOTHING)
    return found


def choices_of(own: Mapping[str, Any], inner: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The selection of what is made of fitted classifiers: its own, and theirs under `of` if any of them chose.

    Of all their splits `split` is the one that lies nearest to what is measured.
    """
    if all(one["split"] == "none" for one in inner):
        return dict(own)
    split = max((one["split"] for one in (own, *inner)), key=SPLITS.index)
    return {**own, "split": split, "of": [dict(one) for one in inner]}


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
