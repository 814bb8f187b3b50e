"""What pixels are compared with: names, the texts that stand for them, and what is background."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from eval.masks import IGNORED
from vlp.metrics.segmentation import Segmentation, predicted_classes
from vlp.registry import Part, nearest


class Background(Part):
    """Which class is everything else, and how a pixel comes to it.

    By its own name, or by the highest score of `texts`, names of what else may be seen; or, without words, where no
    other class reaches `threshold`, which is chosen among `candidates` by mean_iou on `validation` if none is given.
    """

    name: str
    texts: tuple[str, ...] = ()
    threshold: float | None = Field(None, gt=0, lt=1)
    candidates: tuple[float, ...] = Field(tuple(step / 20 for step in range(1, 20)), min_length=1)


@dataclass(frozen=True)
class Words:
    """What pixels are compared with: C classes and the texts that stand for them."""

    names: tuple[str, ...]
    templates: tuple[str, ...]
    texts: tuple[str, ...]
    owner: Tensor  # class of each text
    background: int | None

    def by_class(self, scores: Tensor, threshold: float | None) -> Tensor:
        """Scores [C, h, w] of those [texts, h, w]: the highest of a class's texts; the background's may be constant."""
        owner = self.owner.to(scores.device)[:, None, None].expand_as(scores)
        found = scores.new_full((len(self.names), *scores.shape[1:]), -torch.inf)
        found = found.scatter_reduce(0, owner, scores, "amax")
        if threshold is not None and self.background is not None:
            found[self.background] = threshold
        return found


class Scored(NamedTuple):
    """One picture: scores [texts, h, w] and true classes [h, w] of its pixels."""

    row: int
    scores: Tensor
    truth: Tensor


def words_of(
    names: tuple[str, ...], templates: tuple[str, ...], own: Background | None, *, by_threshold: bool, dataset: str
) -> Words:
    """The texts of every class; the background's are its own ones, or there are none if it has a threshold."""
    if own is not None and own.name not in names:
        raise ValueError(f'{dataset}: background.name "{own.name}" is no class{nearest(own.name, names)}')
    background = None if own is None else names.index(own.name)
    worded = own is None or not (own.texts or by_threshold)
    pairs = [(name, number) for number, name in enumerate(names) if worded or number != background]
    if own is not None and background is not None:
        pairs += [(text, background) for text in own.texts]
    texts, owner = zip(*pairs)
    return Words(names, templates, texts, torch.tensor(owner), background)


def pixel_state(words: Words) -> Segmentation:
    """What counts pixels of these classes."""
    return Segmentation(len(words.names), ignore_index=IGNORED, background=words.background)


def best_threshold(own: Background, words: Words, pictures: Iterable[Scored]) -> float | None:
    """The background's candidate of the best mean IoU on the pictures, the first of equals; None without a pixel."""
    states = [pixel_state(words) for _ in own.candidates]
    for picture in pictures:
        for state, value in zip(states, own.candidates):
            scores = words.by_class(picture.scores, value)
            state.update(predicted_classes(scores[None], picture.truth[None]), picture.truth[None])
    reached = [state.compute().get("mean_iou") for state in states]
    if reached[0] is None:
        return None
    return own.candidates[max(range(len(reached)), key=lambda place: reached[place] or 0.0)]
