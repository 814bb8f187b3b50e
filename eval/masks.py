"""True masks of pictures: where they are, and what their values mean."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eval.data import locate
from eval.view import View
from vlp.data.schema import DataError
from vlp.registry import Part
from vlp.types import BadSampleError

IGNORED = -1  # the class of pixels that count nowhere


class Mask(NamedTuple):
    """The values of a mask [h, w] as they are stored, and where these are numbers of objects, the objects."""

    values: Any
    objects: list[dict[str, Any]] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]


class Masks(Part):
    """Where the masks are and what their values mean.

    `member`: of the sample, or with `{key}` in it a file of each picture ("SegmentationClass/{key}.png"), looked for
    where data are. A value is a class: `first` the first class, what is below it ignored; or `values` says the value of
    each class. With `objects`, a field with a list, value i + 1 is object i, 0 none, and `object_class` is filled from
    the object's fields to give the class.
    """

    member: str = "mask.png"
    objects: str | None = None
    object_class: str = "{shape}"
    first: int = 0
    values: tuple[int, ...] | None = None
    ignore: tuple[int, ...] = (255,)

    def read(self, view: View, row: int) -> Mask:
        """The mask of a row; BadSampleError with reason no_mask, bad_mask, mask_not_indices or no_objects."""
        beside = "{key}" in self.member
        fields = view.fields(row, (self.objects,) if self.objects else (), raw=() if beside else (self.member,))
        data = self._file(view, row) if beside else fields.members.get(self.member)
        if data is None:
            raise BadSampleError("no_mask", f"no {self.member}")
        objects = fields.find(self.objects) if self.objects else None
        if self.objects and not isinstance(objects, list):
            raise BadSampleError("no_objects", f"{self.objects} is no list")
        return Mask(_indices(data), objects)

    def _file(self, view: View, row: int) -> bytes | None:
        try:
            path = locate(self.member.replace("{key}", view.places()[row].key), folders=view.folders)
        except DataError:
            return None
        return Path(path).read_bytes()

    def classes(self, mask: Mask, names: Sequence[str], *, background: int | None = None) -> Tensor:
        """Class [h, w] of each pixel, IGNORED where it has none; BadSampleError mask_value_unknown for other values.

        background: the class of pixels that show no object. Objects whose class is none of the names are ignored.
        """
        if mask.objects is not None:
            known = {name: number for number, name in enumerate(names)}
            table = {0: IGNORED if background is None else background}
            table |= {n + 1: known.get(self.class_of(facts), IGNORED) for n, facts in enumerate(mask.objects)}
            lowest = 0
        else:
            given = self.values or tuple(range(self.first, self.first + len(names)))
            if len(given) != len(names):
                raise ValueError(f"masks.values has {len(given)} values, and there are {len(names)} class names")
            table, lowest = {value: number for number, value in enumerate(given)}, min(given)
        table = {**dict.fromkeys(self.ignore, IGNORED), **table}
        seen, place = np.unique(mask.values, return_inverse=True)
        unknown = [int(value) for value in seen if value >= lowest and int(value) not in table]
        if unknown:
            raise BadSampleError(
                "mask_value_unknown", f"value {unknown[0]} is no class; set masks.first, masks.values or masks.ignore"
            )
        found = np.array([table.get(int(value), IGNORED) for value in seen], dtype=np.int64)
        return torch.from_numpy(found[place.reshape(mask.values.shape)])

    def class_of(self, facts: dict[str, Any]) -> str:
        """The class of an object; BadSampleError no_object_class where it lacks a field."""
        try:
            return self.object_class.format(**facts)
        except (KeyError, TypeError) as error:
            raise BadSampleError("no_object_class", f"{self.object_class}: {error}") from None

    def regions(self, mask: Mask, *, background: int | None = 0) -> dict[int, Any]:
        """Pixels (bool [h, w]) of each object or, without objects, each value, but for background and ignored ones."""
        left_out = {0, *self.ignore} if mask.objects is not None else {background, *self.ignore}
        return {int(value): mask.values == value for value in np.unique(mask.values) if int(value) not in left_out}


def _indices(data: bytes) -> Any:
    """Values [h, w] of a PNG of numbers: 1 bit, grey of 8 or 16 bits, or a palette, whose numbers are taken."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            mode, values = image.mode, np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise BadSampleError("bad_mask", str(error)) from error
    if values.ndim != 2:
        raise BadSampleError("mask_not_indices", f"mode {mode}: colours are no class numbers; store a grey PNG")
    return values.astype(np.int64)
