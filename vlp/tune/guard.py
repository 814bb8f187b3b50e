"""The measured pictures, whose labels nothing that is being fitted can read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from vlp.adapters.task import Examples
from vlp.tune.stock import subset


class GuardError(ValueError):
    """Test labels were asked for before fitting was over."""


class Guard:
    """n test pictures without labels, and the labels behind a lock.

    The lock opens when a block of `fitting` ends, and shuts when the next one begins. Only under `fitting(leaky=True)`
    does `leaked` hand labels out earlier, and whoever opens such a block stamps the result as leaky. `reads` counts by
    purpose. A label of -1 is a picture without a usable one, which is left out of the score.
    """

    def __init__(self, pictures: Examples, read: Callable[[], Int[Tensor, "n"]], *, where: str) -> None:
        if pictures.label is not None:
            raise ValueError(f"{where}: guarded pictures hold their labels; give them without")
        self.pictures, self.where = pictures, where
        self.reads: Counter[str] = Counter()
        self._read = read  # labels are not kept here, so that nobody finds them by looking around
        self._fitted = self._leaky = False

    @contextmanager
    def fitting(self, *, leaky: bool = False) -> Iterator[None]:
        """While open, labels are refused; after it, unless it failed, they can be read."""
        self._fitted, self._leaky = False, leaky
        try:
            yield
        finally:
            self._leaky = False
        self._fitted = True

    def label(self, purpose: str) -> Int[Tensor, "n"]:
        """Class of each picture, -1 where there is none; GuardError before something has been fitted."""
        if not self._fitted:
            raise GuardError(
                f"{self.where}: test labels were asked for ({purpose}) before fitting was over; choose settings on "
                "validation, or inside of the support"
            )
        self.reads[purpose] += 1
        return self._read()

    def after(self, read: Callable[[], Int[Tensor, "n"]]) -> Int[Tensor, "n"]:
        """What `read` gives: labels of other pictures, for reports; GuardError before something has been fitted."""
        if not self._fitted:
            raise GuardError(f"{self.where}: labels of unlabelled pictures were asked for before fitting was over")
        return read()

    def leaked(self) -> Examples:
        """The pictures that have a label, with it, for an adapter under `protocol: paper`."""
        if not self._leaky:
            raise GuardError(f"{self.where}: test labels are handed to adapters under `protocol: paper` only")
        self.reads["fit"] += 1
        label = self._read()
        rows = torch.where(label >= 0)[0].tolist()
        return replace(subset(self.pictures, rows), label=label[rows])
