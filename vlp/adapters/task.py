"""What an adapter is given: the classes, and the pictures it may learn from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Examples:
    """Unit-norm features [n, D] of n pictures of the frozen image tower, with what else is known of them.

    label: class index of each, None for pictures whose class must not be known. keys: what the data call each picture.
    pictures: the pictures themselves, as `Encoder.images` takes them and in the same order, None when only features
    were given. views: features [n, V, D] of V augmented copies of each, where an adapter asked for them.
    """

    image: Float[Tensor, "n D"]
    label: Int[Tensor, "n"] | None = None
    keys: tuple[str, ...] = ()
    pictures: Any = None
    views: Float[Tensor, "n V D"] | None = None

    def __post_init__(self) -> None:
        for what, own in (("labels", self.label), ("keys", self.keys or None), ("views", self.views)):
            if own is not None and len(own) != len(self.image):
                raise ValueError(f"{len(own)} {what} for {len(self.image)} pictures")
        if not bool(self.image.isfinite().all()):
            bad = torch.where(~self.image.isfinite().all(dim=1))[0].tolist()
            first = f'"{self.keys[bad[0]]}"' if self.keys else f"row {bad[0]}"
            raise ValueError(
                f"features of {len(bad)} of {len(self.image)} pictures are not finite, {first} for one; leave them "
                "out, or encode with --precision fp32"
            )

    def __len__(self) -> int:
        return len(self.image)

    @property
    def known(self) -> Int[Tensor, "n"]:
        """The labels; ValueError where there are none."""
        if self.label is None:
            raise ValueError("these pictures have no labels, or theirs must not be seen")
        return self.label

    def only(self, rows: Sequence[int] | Int[Tensor, "m"]) -> Examples:
        """These rows in this order."""
        chosen = torch.as_tensor(rows, dtype=torch.long)
        places = chosen.tolist()
        return Examples(
            self.image[chosen],
            None if self.label is None else self.label[chosen],
            tuple(self.keys[place] for place in places) if self.keys else (),
            None if self.pictures is None else [self.pictures[place] for place in places],
            None if self.views is None else self.views[chosen],
        )

    def unlabelled(self) -> Examples:
        """The same pictures without their labels."""
        return replace(self, label=None)


@dataclass(frozen=True)
class Task:
    """A classification task: C class names, the sentences they are put into, and the pictures to learn from.

    templates: `{}` or `{c}` marks the place of the name. text: features [C, M, D] of M prompts a class, in place of
    templates. support: labelled pictures to learn from. validation: labelled ones to choose settings on. unlabelled:
    pictures of the domain without labels. query: the pictures that will be measured, without labels; only transductive
    adapters get them. test: the same with labels; only an adapter under `protocol: paper` gets them, and its results
    are stamped as leaky. seed: of everything random.
    """

    names: Sequence[str]
    templates: Sequence[str] = ("{}",)
    text: Float[Tensor, "C M D"] | None = field(default=None, compare=False)
    support: Examples | None = field(default=None, compare=False)
    validation: Examples | None = field(default=None, compare=False)
    unlabelled: Examples | None = field(default=None, compare=False)
    query: Examples | None = field(default=None, compare=False)
    test: Examples | None = field(default=None, compare=False)
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            raise ValueError(f"a classification task needs at least 2 class names, got {list(self.names)}")
        if not self.templates:
            raise ValueError('a classification task needs at least one template, such as "a photo of a {}."')
        if self.text is not None and len(self.text) != len(self.names):
            raise ValueError(f"text features of {len(self.text)} classes for {len(self.names)} class names")
        for what in ("support", "validation", "test"):
            given = getattr(self, what)
            if given is not None and len(given) and int(given.known.max()) >= len(self.names):
                raise ValueError(f"{what} has label {int(given.known.max())}, but there are {len(self.names)} classes")

    def over(self, places: Sequence[int]) -> Task:
        """The task of these classes alone, numbered in this order; labelled pictures of other classes are left out."""
        number = torch.full((len(self.names),), -1)
        number[torch.as_tensor(places, dtype=torch.long)] = torch.arange(len(places))

        def kept(examples: Examples | None) -> Examples | None:
            if examples is None:
                return None
            label = number[examples.known]
            own = examples.only((label >= 0).nonzero().flatten())
            return replace(own, label=label[label >= 0])

        return replace(
            self,
            names=[self.names[place] for place in places],
            text=None if self.text is None else self.text[torch.as_tensor(places, dtype=torch.long)],
            support=kept(self.support),
            validation=kept(self.validation),
            test=kept(self.test),
        )

    @property
    def names_hash(self) -> str:
        return short_hash(self.names)

    @property
    def templates_hash(self) -> str:
        return short_hash(self.templates)


def short_hash(words: Sequence[str]) -> str:
    """16 hex digits that change when any word or their order changes."""
    return hashlib.sha256(json.dumps(list(words), ensure_ascii=False).encode()).hexdigest()[:16]
