"""One data set as one backbone sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlp.adapters.task import Examples, Task
from vlp.data.sources import Selected
from vlp.log import console
from vlp.tune.overlap import shared_rows

if TYPE_CHECKING:
    from vlp.tune.guard import Guard

FEW = 0.01  # of a split: real sets have some pictures twice; more of them are another fault
Augmenter = Callable[[Examples, int], Float[Tensor, "n V D"]]


class Opening(NamedTuple):
    """A data set by its name, read when its turn comes."""

    dataset: str
    open: Callable[[], AbstractContextManager[Stock]]


@dataclass(frozen=True)
class Stock:
    """What may be learned from, and the guarded pictures to measure, with the C classes of both.

    encoder: an Encoder, or `vlp.adapters.stored.Stored`. augment: features of V augmented copies of each picture.
    unlabelled_label: reads the labels of `unlabelled`, -1 where one is not known, for reports of pseudolabels.
    hashes: of the data by split. skips: what was left out of them, by reason.
    """

    dataset: str
    model: str
    encoder: Any
    names: tuple[str, ...]
    test: Guard
    templates: tuple[str, ...] = ("{}",)
    text: Float[Tensor, "C M D"] | None = None
    train: Examples | None = None
    validation: Examples | None = None
    unlabelled: Examples | None = None
    unlabelled_label: Callable[[], Int[Tensor, "n"]] | None = None
    augment: Augmenter | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    skips: Mapping[str, int] = field(default_factory=dict)

    @property
    def identity(self) -> list[Any]:
        """What makes it another data set, or the same as another model sees it: pictures, words, weights, precision."""
        seen_by = [self.encoder.weights_hash, getattr(self.encoder, "precision", None)]
        return [self.dataset, self.hashes, *seen_by, self.names, self.templates]

    def checked(self) -> Stock:
        """Itself without the few pictures to learn from or to choose on that are to be measured, counted in `skips`.

        ValueError where they are more than one in a hundred of their split. Others that stand in two splits are said
        on stderr.
        """
        stock = self
        for name in ("train", "validation"):
            own: Examples | None = getattr(self, name)
            rows = set() if own is None else set(shared_rows(own, self.test.pictures))
            if own is None or not rows:
                continue
            if len(rows) > FEW * len(own):
                self.refuse_measured(self)
            tell(f"{self.dataset}: {len(rows)} of {len(own)} pictures of {name} are test pictures: left out")
            kept = subset(own, [row for row in range(len(own)) if row not in rows])
            stock = replace(stock, **{name: kept}, skips={**stock.skips, f"{name}_is_test": len(rows)})  # type: ignore[arg-type]
        if stock.unlabelled is not None and stock.measured_unlabelled:
            seen = f"{len(stock.measured_unlabelled)} of {len(stock.unlabelled)} unlabelled pictures are test pictures"
            tell(f"{stock.dataset}: {seen}: what learns from them is transductive")
        if stock.train is not None and stock.validation is not None:
            both = shared_rows(stock.validation, stock.train)
            if both:
                seen = f"{len(both)} of {len(stock.validation)} validation pictures are in train"
                tell(f"{stock.dataset}: {seen}: what is chosen on them is chosen on what was learned")
        return stock

    def refuse_measured(self, target: Stock) -> None:
        """ValueError where pictures of train or validation are among the test pictures of `target`."""
        for name in ("train", "validation"):
            own: Examples | None = getattr(self, name)
            rows = [] if own is None else shared_rows(own, target.test.pictures)
            if own is not None and rows:
                which = ", ".join(keys_of(own)[row] for row in rows[:3])
                test = "test" if target is self else f"test of {target.dataset}"
                raise ValueError(
                    f"{self.dataset}: {name} and {test} are the same pictures in {len(rows)} of {len(own)} of {name} "
                    f"({which}{', ...' if len(rows) > 3 else ''}), so they would be learned; leave them out of {name}"
                )

    @cached_property
    def measured_unlabelled(self) -> list[int]:
        """Rows of the unlabelled pictures that are measured."""
        return [] if self.unlabelled is None else shared_rows(self.unlabelled, self.test.pictures)

    def task(self, *, seed: int, classes: slice = slice(None), **given: Examples | None) -> Task:
        """A task over these classes with what is given to learn from."""
        text = None if self.text is None else self.text[classes]
        return Task(self.names[classes], self.templates, text, **given, seed=seed)

    def with_views(self, examples: Examples, views: int) -> Examples:
        """With features of augmented copies, where they are asked for and the pictures are there to make them of."""
        if not views or examples.views is not None or self.augment is None:
            return examples
        return replace(examples, views=self.augment(examples, views))

    def labels_of_train(self, rows: Sequence[int]) -> Int[Tensor, "m"]:
        """Class of these pictures of train."""
        assert self.train is not None
        return self.train.known[torch.as_tensor(rows, dtype=torch.long)]

    def words(self, examples: Examples) -> list[str]:
        """Class of each picture as draws say it: its name, or its label where names repeat."""
        labels: list[int] = examples.known.tolist()
        unique = len(set(self.names)) == len(self.names)
        return [self.names[label] if unique else str(label) for label in labels]


def tell(line: str) -> None:
    """One line for people, on stderr."""
    console.print(line, highlight=False, soft_wrap=True, markup=False)


def subset(examples: Examples, rows: Sequence[int]) -> Examples:
    """These rows, ascending; pictures of a source stay where they lie until they are asked for."""
    pictures = examples.pictures
    if not hasattr(pictures, "facts"):  # a list, or nothing
        return examples.only(rows)
    chosen = Selected(pictures, np.array(rows, dtype=np.int64), left_out="not_chosen")
    return replace(replace(examples, pictures=None).only(rows), pictures=chosen)


def keys_of(examples: Examples) -> list[str]:
    """What the pictures are called: their keys, else their places."""
    return list(examples.keys) or [str(row) for row in range(len(examples))]
