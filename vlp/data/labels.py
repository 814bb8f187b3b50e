"""The class of a sample, and captions made of class names."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from pydantic import field_validator

from vlp.data.fields import Fields
from vlp.registry import Part, nearest
from vlp.text.templates import checked, checked_names, fill, read_names, template_set
from vlp.types import BadSampleError


class Labels(Part):
    """The class of a sample: an index or a class name in the field, and the texts made of the class name.

    `classes`: names in label order, or a file with them (read_names). `templates`: a set's name, or the templates.
    """

    field: str = "cls"
    classes: tuple[str, ...] | str = ()
    templates: tuple[str, ...] | str = "photo"

    @field_validator("templates")
    @classmethod
    def _fillable(cls, value: Any) -> Any:
        if isinstance(value, str):
            template_set(value)
            return value
        return checked(value, where="templates")

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in label order; empty if none were given."""
        return _names(self.classes)

    def index(self, fields: Fields) -> int:
        """The class index; BadSampleError no_label, or bad_label if it is no index and no name of `classes`."""
        value = fields.find(self.field)
        if isinstance(value, str):
            value = value.strip()
            if value in (places := _places(self.classes)):
                return places[value]
            value = int(value) if value.isdecimal() and value.isascii() else value
        if value is None or value == "":
            raise BadSampleError("no_label", f"no {self.field}")
        names = self.names
        if isinstance(value, bool) or not isinstance(value, int):
            hint = nearest(value, names) if isinstance(value, str) else ""
            raise BadSampleError("bad_label", f"{self.field} is {value!r}{hint}")
        if value < 0 or (names and value >= len(names)):
            raise BadSampleError("bad_label", f"{self.field} is {value}, there are {len(names)} classes")
        return value

    def texts(self, label: int, rng: np.random.Generator | None) -> list[str]:
        """One template, drawn (without a generator: the first), filled with the class name."""
        if not self.names:
            raise ValueError(f"labels.classes: needed to write captions for the classes of field {self.field}")
        templates = template_set(self.templates) if isinstance(self.templates, str) else self.templates
        chosen = templates[0 if rng is None else int(rng.integers(len(templates)))]
        return [fill(chosen, self.names[label])]


@lru_cache(maxsize=64)
def _names(classes: tuple[str, ...] | str) -> tuple[str, ...]:
    if isinstance(classes, str):
        return read_names(classes)
    return checked_names(classes) if classes else ()


@lru_cache(maxsize=64)
def _places(classes: tuple[str, ...] | str) -> dict[str, int]:
    return {name: i for i, name in enumerate(_names(classes))}
