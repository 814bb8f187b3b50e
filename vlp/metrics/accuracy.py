"""Classification accuracy with ties against the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlp.metrics import chance
from vlp.metrics.interval import Interval, of_class_means, of_means


class ClassTable(NamedTuple):
    """Per class: samples, share found, share of predictions that are right (nan where there are none)."""

    support: Int[Tensor, "C"]
    recall: Float[Tensor, "C"]
    precision: Float[Tensor, "C"]


@dataclass
class Accuracy:
    """acc1, acc5 (with more than 5 classes) and mean_per_class_recall; the state is one prediction and rank a sample.

    A tie counts as a miss, and so does a logit that is not a number: a model that gives every class the same score has
    accuracy 0 instead of that of its class 0.
    """

    classes: int
    k: Sequence[int] = (1, 5)
    _label: list[Tensor] = field(default_factory=list)
    _predicted: list[Tensor] = field(default_factory=list)
    _rank: list[Tensor] = field(default_factory=list)

    def update(self, logits: Float[Tensor, "B C"], label: Int[Tensor, "B"]) -> None:
        """Adds samples; ValueError for a label that is no class."""
        if logits.shape[1] != self.classes or (
            len(label) and not 0 <= int(label.min()) <= int(label.max()) < self.classes
        ):
            raise ValueError(f"labels must lie in 0..{self.classes - 1} and logits have {self.classes} columns")
        own = logits.gather(1, label[:, None])
        beaten = own > logits
        rank = (~beaten).sum(dim=1)  # its own score is not above itself, so this starts at 1
        rival = logits.nan_to_num(nan=torch.inf).scatter(1, label[:, None], -torch.inf).argmax(dim=1)
        self._label.append(label.cpu())
        self._predicted.append(torch.where(rank == 1, label, rival).cpu())
        self._rank.append(rank.cpu())

    def merge(self, other: Accuracy) -> None:
        """Adds the other state's samples."""
        if self.classes != other.classes:
            raise ValueError(f"cannot merge accuracies of {self.classes} and {other.classes} classes")
        self._label += other._label
        self._predicted += other._predicted
        self._rank += other._rank

    def compute(self) -> dict[str, float]:
        """Accuracies in 0..1; empty without samples."""
        rank = self._cat(self._rank)
        if not len(rank):
            return {}
        values = {f"acc{k}": float((rank <= k).double().mean()) for k in self._ks()}
        table = self.table()
        return {**values, "mean_per_class_recall": float(table.recall[table.support > 0].mean())}

    def hits(self) -> dict[str, Tensor]:
        """Bool [n] by metric: whether each sample, in the order they came, was right."""
        rank = self._cat(self._rank)
        return {f"acc{k}": rank <= k for k in self._ks()}

    def intervals(self, *, n_boot: int = 1000, seed: int = 0) -> dict[str, Interval]:
        """95 % bootstrap interval of every number of `compute`."""
        rank = self._cat(self._rank)
        if not len(rank):
            return {}
        hits = torch.stack([(rank <= k).double() for k in self._ks()], dim=1)
        found = dict(zip((f"acc{k}" for k in self._ks()), of_means(hits, n_boot=n_boot, seed=seed)))
        confusion = self.confusion()
        classes = of_class_means(confusion.diagonal(), confusion.sum(dim=1), n_boot=n_boot, seed=seed)
        return {**found, "mean_per_class_recall": classes}

    def chance(self) -> dict[str, float]:
        """What random logits reach in expectation.

        Of mean_per_class_recall what one answer for all pictures reaches, where that is more: the mean is over the
        classes that have pictures, which can be fewer than there are names.
        """
        values = {f"acc{k}": chance.accuracy_at(k, classes=self.classes) for k in self._ks()}
        there = int((self.confusion().sum(dim=1) > 0).sum()) if self._label else self.classes
        return {**values, "mean_per_class_recall": chance.accuracy_at(1, classes=max(1, there))}

    def confusion(self) -> Int[Tensor, "C C"]:
        """Counts [true, predicted]; where the right class only ties for first place, its rival is predicted."""
        cell = self._cat(self._label) * self.classes + self._cat(self._predicted)
        return torch.bincount(cell, minlength=self.classes**2).view(self.classes, self.classes)

    def table(self) -> ClassTable:
        """Support, recall and precision of every class."""
        counts = self.confusion()
        support, predicted, right = counts.sum(dim=1), counts.sum(dim=0), counts.diagonal().double()
        return ClassTable(support, right / support, right / predicted)

    def predictions(self) -> Int[Tensor, "n"]:
        """Predicted class of every sample in the order they came."""
        return self._cat(self._predicted)

    def _ks(self) -> list[int]:
        return [k for k in self.k if k < self.classes]

    @staticmethod
    def _cat(parts: list[Tensor]) -> Tensor:
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long)
