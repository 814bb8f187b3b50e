"""Directions between two sets of pictures (RAVE, arXiv 2404.01889; the guidance without prompts of CLIP-LIT)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from vlp.adapters.adapter import Adapter, Given
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.seen import check_every_class
from vlp.adapters.task import Task
from vlp.text.templates import checked_names, read_names

Word = tuple[str, float]


class Concept(Adapter):
    """Two classes told apart along v = norm(mean f of the second - mean f of the first) (RAVE's residual vector).

    Logits are +-s / 2 (f·v - m), m half-way between the mean projections of the two classes: our threshold, as RAVE
    only follows the direction, up to the level of the second class (`level` in the classifier's `about`, by name). Give
    `words` (or a file of them) to see which `count` of them lie farthest to either end, and so what the pictures
    differ in beside the concept.
    """

    wants: ClassVar[tuple[Given, ...]] = ("support",)

    words: tuple[str, ...] | str | None = None
    count: int = Field(10, ge=1)

    def fit(self, encoder: Any, task: Task) -> LinearClassifier:
        """A linear classifier over two classes; ValueError for more."""
        support = self.given(task, "support")
        if len(task.names) != 2:
            raise ValueError(f"concept tells two classes apart, and the task has {len(task.names)}; use ncm for more")
        check_every_class(support, task.names, who="concept")
        first, second = (support.image[support.known == label] for label in (0, 1))
        direction = concept_direction(second, first)
        level = [float((own.double() @ direction).mean()) for own in (first, second)]
        weight = direction.to(support.image.dtype) / 2
        middle = encoder.scale / 2 * sum(level) / 2
        return LinearClassifier(
            weight.new_tensor([-1.0, 1.0])[:, None] * weight,
            names=task.names,
            scale=encoder.scale,
            bias=weight.new_tensor([middle, -middle]),
            about={
                "adapter": "concept",
                "settings": self.model_dump(mode="json"),
                "level": dict(zip(task.names, level, strict=True)),
                "selection": {"split": "none"},
                **self._words(encoder, direction, task.names),
            },
        )

    def _words(self, encoder: Any, direction: Float[Tensor, "D"], names: Sequence[str]) -> dict[str, Any]:
        if self.words is None:
            return {}
        words = read_names(self.words) if isinstance(self.words, str) else checked_names(self.words, where="words")
        ends = (
            nearest_words(encoder, -direction, words, count=self.count),
            nearest_words(encoder, direction, words, count=self.count),
        )
        return {"words": dict(zip(names, ends, strict=True))}


def concept_direction(positive: Float[Tensor, "n D"], negative: Float[Tensor, "m D"]) -> Float[Tensor, "D"]:
    """The unit vector from the negative mean feature to the positive one, in fp64; ValueError where there is none."""
    if not len(positive) or not len(negative):
        raise ValueError(f"a direction needs pictures on both sides, got {len(positive)} and {len(negative)}")
    between = positive.double().mean(dim=0) - negative.double().mean(dim=0)
    if not between.norm() > 1e-12:
        raise ValueError(
            "both sets of pictures have the same mean feature, so no direction leads from one to the other"
        )
    return normalize(between, dim=0)


def nearest_words(encoder: Any, direction: Float[Tensor, "D"], words: Sequence[str], *, count: int = 10) -> list[Word]:
    """The words whose text features lie farthest along the direction, with f·v less its mean over the words.

    The mean is what all words share, as texts lie apart from pictures; it says nothing of a word.
    """
    along = encoder.texts(list(words)).double() @ direction
    best = (along - along.mean()).topk(min(count, len(words)))
    return [(words[place], value) for value, place in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
