"""One data set as one backbone sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlp.adapters.task import Examples, Task
from vlp.data.sources import Selected

if TYPE_CHECKING:
    from vlp.tune.guard import Guard

Augmenter = Callable[[Examples, int], Float[Tensor, "n V D"]]


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

    def checked(self) -> Stock:
        """Itself; ValueError where pictures to learn from or to choose on are those to be measured."""
        for name in ("train", "validation"):
            if self.is_test(name):
                raise ValueError(f"{self.dataset}: {name} and test are the same pictures, so they would be learned")
        return self

    def is_test(self, split: str) -> bool:
        """Whether the pictures of a split are those that are measured."""
        own: Examples | None = getattr(self, split)
        if own is None:
            return False
        if own.pictures is not None:
            return self.hashes.get(split) == self.hashes["test"]
        return torch.equal(own.image, self.test.pictures.image)

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
