"""Conditional similarity (GeneCIS, arXiv 2306.07969): a picture and a condition ask for one right picture of a few."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field

from eval.benchmark import Outcome
from eval.composed import listed_ranks
from eval.composers import ComposedPart, Recalls
from eval.hits import picture_keys
from eval.listed import Cut, Cutter, Files, Item, Names, Place, Sides, cut_out, read_box, read_items
from eval.view import View
from vlp.data.schema import DataError
from vlp.types import BadSampleError


class Conditional(ComposedPart):
    """Recall@k of the right picture among it and the n - 1 wrong ones of its template's `gallery`; chance is k/n.

    `templates` are GeneCIS's JSON files beside the pictures; files by name give `recall@k_COMPOSER_NAME` each and their
    mean. A picture is called by the first of `picture` (`key: "{:012d}"` for COCO's numbers), or by what stands in its
    place; where it has a `box`, this is cut out, grown by `dilate` of its sides and padded to a square. Wherever the
    right picture stands, a tie is lost: it is the first in the released files, so that equal scores gave 100 %.
    `sides: released` cuts as the released code does, whose boxes grow to the left and to the top only.
    """

    task: ClassVar[str] = "conditional_image_retrieval"

    templates: Files
    reference: str = "reference"
    condition: str = "condition"
    target: str = "target"
    gallery: str = "gallery"
    picture: tuple[str, ...] = ("image_id", "val_image_id")
    box: str = "instance_bbox"
    dilate: float = Field(0.7, ge=0)
    sides: Sides = "all"
    k: tuple[int, ...] = (1, 2, 3)

    def measure(self, view: View) -> Outcome:
        """Recalls of every composer; intervals draw reference pictures."""
        view.label_reads["scoring"] += 1
        names = Names(view, self.key)
        found, skips = self._read(view, names)
        every = [place for one in found for place in (one.reference, one.target, *one.wrong)]
        cut = cut_out(view, every, Cutter(self.dilate, self.sides, square=True))
        asked = _usable(found, cut, skips)
        if not asked:
            raise DataError(
                f"{view.dataset}: none of the templates can be asked: {dict(skips)}; a sample's key is "
                f'{names.example}, and {", ".join(self.picture)} makes it by key: "{self.key}"'
            )
        rows, image = cut.rows(), cut.view.image
        references = [rows[one.reference] for one in asked]
        target, wrong = [rows[one.target] for one in asked], [[rows[p] for p in one.wrong] for one in asked]
        sizes = torch.tensor([1 + len(own) for own in wrong])
        pictures = torch.tensor([one.reference[0] for one in asked])
        recalls = Recalls([one.part for one in asked], pictures, n_boot=self.n_boot)
        for composer in self.compose:
            query = composer.queries(cut.view, image[references], [one.condition for one in asked])
            recalls.add("recall", composer.label, listed_ranks(query, image, target, wrong), sizes, self.k)
        counts = {"images": len(view.image), "templates": len(asked), "crops": sum(box is not None for _, box in rows)}
        keys = picture_keys(cut.view, references)
        return recalls.outcome("conditional", keys, [one.condition for one in asked], counts=counts, skips=skips)

    def _read(self, view: View, names: Names) -> tuple[list[_Asked], Counter[str]]:
        asked, skips = list[_Asked](), Counter[str]()
        for item in read_items(self.templates, self.data, view):
            try:
                asked.append(self._template(item, names))
            except BadSampleError as error:
                skips[error.reason] += 1
        return asked, skips

    def _template(self, item: Item, names: Names) -> _Asked:
        condition, gallery = item.fields.find(self.condition), item.fields.find(self.gallery)
        if not isinstance(condition, str) or not condition.strip():
            raise BadSampleError("no_condition", f"no text in {self.condition}")
        reference, target = (self._place(item.fields.find(name), names) for name in (self.reference, self.target))
        places = [self._place(value, names) for value in gallery] if isinstance(gallery, list) else []
        wrong = [place for place in dict.fromkeys(places) if place != target]
        if not wrong:
            raise BadSampleError("no_gallery", f"no wrong picture in {self.gallery}")
        return _Asked(item.part, reference, condition.strip(), target, wrong)

    def _place(self, value: Any, names: Names) -> Place:
        """The picture that stands there, and its box if it has one."""
        if not isinstance(value, dict):
            return names.row(value), None
        name = next((value[field] for field in self.picture if value.get(field) is not None), None)
        return names.row(name), read_box(value[self.box]) if value.get(self.box) is not None else None


class _Asked(NamedTuple):
    """One template."""

    part: str | None
    reference: Place
    condition: str
    target: Place
    wrong: list[Place]


def _usable(found: list[_Asked], cut: Cut, skips: Counter[str]) -> list[_Asked]:
    """The templates whose pictures could all be cut; with fewer wrong ones the others would be easier."""
    if not found:
        return []
    rows = cut.rows()
    asked = [one for one in found if rows.keys() >= {one.reference, one.target, *one.wrong}]
    skips.update({"unreadable_crop": len(found) - len(asked)} if len(asked) < len(found) else {})
    skips.update(cut.skips())
    return asked
