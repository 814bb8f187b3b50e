"""Composed queries: a picture and a text ask for another picture (CIRR, arXiv 2108.04024; FashionIQ, 1905.12794)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import model_validator
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from eval.benchmark import Outcome
from eval.composers import ComposedPart, Recalls
from eval.hits import picture_keys
from eval.listed import Files, Item, Names, by_part, find, read_items, read_names
from eval.view import View
from vlp.data.schema import DataError
from vlp.metrics.recall import TIE
from vlp.types import BadSampleError

BLOCK = 256  # queries scored at once; no result depends on it


class Composed(ComposedPart):
    """Recall@k of the target picture in the gallery, and Recall_subset@k among the pictures of a query's subset.

    `queries` are JSON files beside the pictures; files by name (FashionIQ's categories) give `recall@k_COMPOSER_NAME`
    each and their mean `macro_recall@k_COMPOSER`. Their fields are `reference`, `caption` (a list is joined by
    `joint`), `target`, and `subset` (CIRR: img_set.members). `gallery`: a file with the names of the pictures to search
    in, one for each file of queries if these have names; default: all. The reference does not stand in the gallery
    (CIRR's rule) unless `reference_in_gallery: kept` (FashionIQ's), and never in the subset. Ties are lost.
    """

    task: ClassVar[str] = "composed_image_retrieval"

    queries: Files
    gallery: Files | None = None
    reference: str = "reference"
    caption: str = "caption"
    target: str = "target"
    subset: str | None = None
    joint: str = " and "
    reference_in_gallery: Literal["removed", "kept"] = "removed"
    k: tuple[int, ...] = (1, 5, 10, 50)
    subset_k: tuple[int, ...] = (1, 2, 3)

    @model_validator(mode="after")
    def _a_gallery_for_each(self) -> Composed:
        if isinstance(self.gallery, dict) and [*self.gallery] != [name for name, _ in by_part(self.queries)]:
            raise ValueError("gallery: files by name need the names of `queries`, in their order")
        return self

    def measure(self, view: View) -> Outcome:
        """Recalls of every composer; intervals draw reference pictures."""
        view.label_reads["scoring"] += 1
        names, skips = Names(view, self.key), Counter[str]()
        galleries = self._galleries(view, names, skips)
        asked = self._read(view, names, galleries, skips)
        references = [one.reference for one in asked]
        image = view.image[references]
        recalls = Recalls([one.part for one in asked], torch.tensor(references), n_boot=self.n_boot)
        for composer in self.compose:
            query = composer.queries(view, image, [one.caption for one in asked])
            ranks, sizes = self._in_galleries(query, view.image, asked, galleries)
            recalls.add("recall", composer.label, ranks, sizes, self.k)
            if self.subset is not None:
                ranks, sizes = _in_subsets(query, view.image, asked)
                recalls.add("recall_subset", composer.label, ranks, sizes, self.subset_k)
        keys, said = picture_keys(view, references), [one.caption for one in asked]
        gallery = {row for rows in galleries.values() for row in rows}
        counts = {"images": len(view.image), "queries": len(asked), "gallery": len(gallery)}
        return recalls.outcome("composed", keys, said, counts=counts, skips=skips)

    def _galleries(self, view: View, names: Names, skips: Counter[str]) -> dict[str | None, list[int]]:
        """Rows of the gallery of each part; what cannot be found is counted."""
        parts = [part for part, _ in by_part(self.queries)]
        if self.gallery is None:
            return {part: list(range(len(view.image))) for part in parts}
        files = self.gallery if isinstance(self.gallery, dict) else dict.fromkeys(parts, self.gallery)
        found = {}
        for part, path in files.items():
            rows = dict[int, None]()
            for name in read_names(find(path, self.data, view)):
                try:
                    rows[names.row(name)] = None
                except BadSampleError as error:
                    skips[f"gallery_{error.reason}"] += 1
            found[part] = list(rows)
        return found

    def _read(
        self, view: View, names: Names, galleries: dict[str | None, list[int]], skips: Counter[str]
    ) -> list[_Asked]:
        asked, searched = [], {part: set(rows) for part, rows in galleries.items()}
        for item in read_items(self.queries, self.data, view):
            try:
                one = self._query(item, names, searched[item.part])
            except BadSampleError as error:
                skips[error.reason] += 1
                continue
            asked.append(one)
            if self.subset is not None and one.subset is None:
                skips["subset_incomplete"] += 1
        if not asked:
            raise DataError(
                f"{view.dataset}: none of the queries can be asked: {dict(skips)}; a sample's key is {names.example}, "
                f"and queries need {self.reference}, {self.caption} and {self.target}"
            )
        return asked

    def _query(self, item: Item, names: Names, searched: set[int]) -> _Asked:
        fields = item.fields
        texts = _texts(fields.find(self.caption))
        if not texts:
            raise BadSampleError("no_caption", f"no text in {self.caption}")
        reference, target = names.row(fields.find(self.reference)), names.row(fields.find(self.target))
        if target not in searched:
            raise BadSampleError("target_not_in_gallery")
        if target == reference:
            raise BadSampleError("target_is_reference")
        return _Asked(
            item.part, reference, self.joint.join(texts), target, self._subset(item, names, reference, target)
        )

    def _subset(self, item: Item, names: Names, reference: int, target: int) -> list[int] | None:
        """The wrong pictures of the subset; None if one is not there, which would make the question easier."""
        members = item.fields.find(self.subset) if self.subset is not None else None
        if not isinstance(members, list):
            return None
        try:
            rows = set(map(names.row, members))
        except BadSampleError:
            return None
        return sorted(rows - {reference, target}) if target in rows else None

    def _in_galleries(
        self, query: Tensor, image: Tensor, asked: Sequence[_Asked], galleries: dict[str | None, list[int]]
    ) -> tuple[Tensor, Tensor]:
        """Ranks of the targets, and among how many, each in the gallery of its part."""
        ranks, sizes = torch.zeros(len(asked), dtype=torch.long), torch.zeros(len(asked), dtype=torch.long)
        for part, rows in galleries.items():
            own = [number for number, one in enumerate(asked) if one.part == part]
            column = {row: place for place, row in enumerate(rows)}
            target = torch.tensor([column[asked[number].target] for number in own], dtype=torch.long)
            left_out = torch.full_like(target, -1)
            if self.reference_in_gallery == "removed":  # -1: it does not stand there anyway
                left_out = torch.tensor([column.get(asked[number].reference, -1) for number in own], dtype=torch.long)
            ranks[own] = gallery_ranks(query[own], image[rows], target, left_out)
            sizes[own] = len(rows) - (left_out >= 0).long()
        return ranks, sizes


def gallery_ranks(
    query: Float[Tensor, "Q D"], gallery: Float[Tensor, "G D"], target: Int[Tensor, "Q"], left_out: Int[Tensor, "Q"]
) -> Int[Tensor, "Q"]:
    """1 + number of wrong pictures that score at least as well; `left_out` [Q] does not count (-1: none).

    In fp64 with ties within 1e-6, as in `vlp.metrics.recall`.
    """
    found, columns = [torch.zeros(0, dtype=torch.long)], gallery.double()
    for part, right, out in zip(query.split(BLOCK), target.split(BLOCK), left_out.split(BLOCK)):
        scores = part.double() @ columns.T
        rivals = ~(scores.gather(1, right[:, None]) - TIE > scores)
        rivals.scatter_(1, right[:, None], False)
        there = (out >= 0).nonzero()[:, 0]
        rivals[there, out[there]] = False
        found.append(1 + rivals.sum(dim=1))
    return torch.cat(found)


def listed_ranks(
    query: Float[Tensor, "Q D"], image: Float[Tensor, "N D"], target: Sequence[int], wrong: Sequence[Sequence[int]]
) -> Int[Tensor, "Q"]:
    """The same where each query has its own few wrong pictures, by their rows in `image`."""
    found = [torch.zeros(0, dtype=torch.long)]
    for start in range(0, len(query), BLOCK):
        part = query[start : start + BLOCK].double()
        lists = [torch.tensor(rows, dtype=torch.long) for rows in wrong[start : start + BLOCK]]
        rows = pad_sequence(lists, batch_first=True, padding_value=-1)
        scores = (part[:, None] * image[rows.clamp(min=0)].double()).sum(2)
        own = (part * image[list(target[start : start + BLOCK])].double()).sum(1)
        found.append(1 + (~(own[:, None] - TIE > scores) & (rows >= 0)).sum(dim=1))
    return torch.cat(found)


class _Asked(NamedTuple):
    """One query, by rows; `subset` holds the wrong pictures of its subset, if it has one that is whole."""

    part: str | None
    reference: int
    caption: str
    target: int
    subset: list[int] | None


def _in_subsets(query: Tensor, image: Tensor, asked: Sequence[_Asked]) -> tuple[Tensor, Tensor]:
    """Ranks of the targets in the subsets, 0 without one, and how many pictures these have."""
    wrong = [one.subset or [] for one in asked]
    ranks = listed_ranks(query, image, [one.target for one in asked], wrong)
    there = torch.tensor([one.subset is not None for one in asked])
    return ranks * there, torch.tensor([1 + len(rows) for rows in wrong])


def _texts(caption: Any) -> list[str]:
    every = caption if isinstance(caption, list) else [caption]
    return [text.strip() for text in every if isinstance(text, str) and text.strip()]
