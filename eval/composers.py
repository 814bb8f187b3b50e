"""How a reference picture and a text become one query, and the recalls of such queries."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn.functional import normalize

from eval.benchmark import BenchmarkPart, Outcome
from eval.hits import Column, hits_file
from eval.selection import macro_interval
from eval.view import View
from vlp.metrics.interval import of_means
from vlp.registry import Named, Part, Table

COMPOSERS = Table(
    "composer",
    {
        "image": "eval.composers:ImageOnly",
        "text": "eval.composers:TextOnly",
        "mean": "eval.composers:Mean",
    },
)


class Composer(Part):
    """How a reference picture and a text become one query; `label` is what its metrics end with."""

    @property
    def label(self) -> str:
        """The name of the composer, and what of it is not the default."""
        return COMPOSERS.name_of(type(self))

    def queries(self, view: View, image: Float[Tensor, "Q D"], texts: list[str]) -> Float[Tensor, "Q D"]:
        """Unit-norm queries of features of the reference pictures and the texts beside them."""
        raise NotImplementedError


class ImageOnly(Composer):
    """The reference picture alone: what a model reaches that does not read."""

    def queries(self, view: View, image: Float[Tensor, "Q D"], texts: list[str]) -> Float[Tensor, "Q D"]:
        return image


class TextOnly(Composer):
    """The text alone: what a model reaches that does not look."""

    def queries(self, view: View, image: Float[Tensor, "Q D"], texts: list[str]) -> Float[Tensor, "Q D"]:
        return view.text_features(texts)


class Mean(Composer):
    """`weight` of the text's unit feature plus 1 - `weight` of the picture's, normalised."""

    weight: float = Field(0.5, ge=0, le=1)

    @property
    def label(self) -> str:
        return "mean" if self.weight == 0.5 else f"mean{self.weight:g}"

    def queries(self, view: View, image: Float[Tensor, "Q D"], texts: list[str]) -> Float[Tensor, "Q D"]:
        return normalize(torch.lerp(image, view.text_features(texts), self.weight), dim=-1)


ComposerField = Annotated[Composer, Named("eval.composers:COMPOSERS")]


class ComposedPart(BenchmarkPart):
    """What benchmarks of composed queries share: ways to compose them, each with metrics of its own."""

    key: str = "{}"  # makes a sample's key of what an item calls a picture
    compose: Annotated[tuple[ComposerField, ...], Field(min_length=1)] = (ImageOnly(), TextOnly(), Mean())
    n_boot: int = Field(1000, ge=1)

    @field_validator("compose")
    @classmethod
    def _different_labels(cls, value: tuple[Composer, ...]) -> tuple[Composer, ...]:
        twice = [label for label, count in Counter(part.label for part in value).items() if count > 1]
        if twice:
            raise ValueError(f'"{twice[0]}" stands there twice; its metrics would have one name')
        return value


class Recalls:
    """Recalls of queries, over all of them, by part (the file they come from), and as the mean over parts.

    groups: what intervals draw, by query.
    """

    def __init__(self, parts: Sequence[str | None], groups: Int[Tensor, "Q"], *, n_boot: int) -> None:
        self.groups, self.n_boot = groups, n_boot
        self.named = [part for part in dict.fromkeys(parts) if part is not None]
        self.kinds = torch.tensor([self.named.index(part) if part is not None else -1 for part in parts])
        self.found = Outcome(metrics={}, n=len(set(groups.tolist())))
        self.columns: dict[str, Column] = {}

    def add(
        self, question: str, composer: str, ranks: Int[Tensor, "Q"], sizes: Int[Tensor, "Q"], k: Sequence[int]
    ) -> None:
        """question@k_composer, with _PART by part, of 1-based ranks among `sizes` pictures; rank 0: was not asked."""
        asked = ranks > 0
        names = [f"{question}@{n}_{composer}" for n in k]
        hits = torch.stack([(ranks <= n).double() for n in k], dim=1)
        luck = torch.stack([(n / sizes.double()).clamp(max=1) for n in k], dim=1)
        self._means(names, asked, hits, luck)
        each = {part: asked & (self.kinds == number) for number, part in enumerate(self.named)}
        each = {part: chosen for part, chosen in each.items() if chosen.any()}
        for part, chosen in each.items():
            self._means([f"{name}_{part}" for name in names], chosen, hits, luck)
        for column, name in enumerate(names if each else []):
            self._macro(name, column, list(each.values()), hits, luck)

    def _means(self, names: list[str], chosen: Tensor, hits: Tensor, luck: Tensor) -> None:
        if not chosen.any():
            return
        found = self.found
        intervals = of_means(hits[chosen], groups=self.groups[chosen], n_boot=self.n_boot)
        found.metrics |= dict(zip(names, hits[chosen].mean(0).tolist()))
        found.chance |= dict(zip(names, luck[chosen].mean(0).tolist()))
        found.ci95 |= dict(zip(names, intervals))
        for name, column in zip(names, hits.T.tolist()):
            self.columns[name] = [hit if own else None for hit, own in zip(column, chosen.tolist())]

    def _macro(self, name: str, column: int, each: list[Tensor], hits: Tensor, luck: Tensor) -> None:
        found, own = self.found, torch.stack(each).any(dim=0)
        found.metrics[f"macro_{name}"] = math.fsum(float(hits[chosen, column].mean()) for chosen in each) / len(each)
        found.chance[f"macro_{name}"] = math.fsum(float(luck[chosen, column].mean()) for chosen in each) / len(each)
        found.ci95[f"macro_{name}"] = macro_interval(
            hits[own, column], self.kinds[own], self.groups[own], n_boot=self.n_boot
        )

    def outcome(
        self, benchmark: str, keys: Sequence[str], items: Sequence[str], *, counts: dict[str, int], skips: Counter[str]
    ) -> Outcome:
        """All of it, with a file of hits; keys and items are those of `eval.hits`, by query."""
        found = self.found
        found.counts, found.skips = counts, dict(skips)
        found.files = hits_file(benchmark, keys, items, self.columns)
        return found
