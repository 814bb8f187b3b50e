"""From a raw sample to what goes into a batch: its captions, its label, its picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, field_validator
from torch import Tensor

from vlp.data.decode import Limits
from vlp.data.transforms import Augment, Preprocess
from vlp.registry import Part, nearest
from vlp.text.captions import cut_bytes, is_blank, sentences
from vlp.text.templates import checked, checked_names, fill, read_names, template_set
from vlp.types import BadSampleError, Sample

IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
_MISSING = object()


class Item(NamedTuple):
    """One pair, ready to be collated."""

    image: Tensor  # uint8 [3, H, W]
    captions: list[str]  # at least one
    label: int | None  # class index in its source
    extra: dict[str, Tensor]
    key: str
    notes: tuple[str, ...] = ()  # counted, but not skipped: "caption_cut", "caption_not_text"


class Fields:
    """The members of a sample by name; the JSON is parsed once, when first asked for."""

    def __init__(self, sample: Sample) -> None:
        self.members = sample.members
        self._json: Any = _MISSING

    def find(self, name: str, *, errors: str = "strict") -> Any:
        """The value of a field, or None: a member's text, or a path into the JSON ("json:a.b" is only that)."""
        only_json = name.startswith("json:")
        if not only_json and name in self.members and name != "json":
            return decode_text(self.members[name], name, errors=errors)
        value = self.json(errors)
        for step in name.removeprefix("json:").split("."):
            value = value.get(step) if isinstance(value, Mapping) else None
        return value

    def json(self, errors: str = "strict") -> Any:
        if self._json is _MISSING:
            raw = self.members.get("json")
            try:
                self._json = None if raw is None else json.loads(decode_text(raw, "json", errors=errors))
            except (json.JSONDecodeError, RecursionError) as error:
                raise BadSampleError("bad_json", str(error)) from error
        return self._json


class Captions(Part):
    """Which texts of a sample are its captions: the first of `fields` that holds text.

    A field is a member ("txt"), a JSON path ("caption", "es.caption", "json:caption"), holding a string, a list, or an
    object of languages. `pick` says which of its texts are taken, `count` how many at most. Random choices are drawn
    from the sample's generator; without one (evaluation) the first are taken.
    """

    fields: tuple[str, ...] = ("caption", "captions", "txt")
    pick: Literal["first", "random", "all", "sentences"] = "first"
    count: int = Field(1, ge=1)
    language: str | None = None  # of objects {language: text}; None: all of them, in order
    encoding_errors: Literal["strict", "replace"] = "strict"

    def texts(self, fields: Fields) -> list[str]:
        """All texts of the first field that has any; BadSampleError no_caption or empty_caption."""
        return self.found(fields)[0]

    def found(self, fields: Fields) -> tuple[list[str], int]:
        """`texts`, and how many items of the lists looked at were left out because they are no texts."""
        seen, others = False, 0
        for name in self.fields:
            value = fields.find(name, errors=self.encoding_errors)
            if isinstance(value, Mapping):
                value = list(value.values()) if self.language is None else value.get(self.language)
            found = [value] if isinstance(value, str) else value if isinstance(value, list) else []
            texts = [text for text in found if isinstance(text, str)]
            seen, others = seen or bool(texts), others + len(found) - len(texts)
            if texts := [text.strip() for text in texts if not is_blank(text)]:
                return texts, others
        where = ", ".join(self.fields)
        raise BadSampleError(*(("empty_caption", f"only blanks in {where}") if seen else ("no_caption", f"no {where}")))

    def choose(self, texts: Sequence[str], rng: np.random.Generator | None) -> list[str]:
        """At most `count` of the texts, in their order."""
        if self.pick == "first":
            return list(texts[:1])
        if self.pick == "sentences":
            texts = [part for text in texts for part in sentences(text)]
        if self.pick == "all" or rng is None or len(texts) <= self.count:
            return list(texts[: self.count])
        return [texts[i] for i in sorted(rng.choice(len(texts), self.count, replace=False))]


class Labels(Part):
    """The class of a sample: an index or a class name in the field, and the texts made of the class name.

    `classes`: names in label order, or a file with them (read_names). `templates`: a set's name, or the templates.
    """

    field: str = "cls"
    classes: tuple[str, ...] | str = ()
    templates: tuple[str, ...] | str = "photo"

    @field_validator("templates", mode="before")
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


def prepare(
    sample: Sample,
    *,
    captions: Captions | None,
    labels: Labels | None = None,
    preprocess: Preprocess,
    augment: Augment | None = None,
    limits: Limits | None = None,
    rng: np.random.Generator | None = None,
) -> Item:
    """The item of a sample; BadSampleError if it cannot be used. Without `captions`, the class name is the caption.

    Without `augment` (which needs `rng`) the picture goes through the evaluation transform.
    """
    limits = limits or Limits()
    fields = Fields(sample)
    label = labels.index(fields) if labels is not None else None
    notes: list[str] = []
    if captions is not None:
        texts, others = captions.found(fields)
        texts = captions.choose(texts, rng)
        notes += ["caption_not_text"] if others else []
    elif labels is not None and label is not None:
        texts = labels.texts(label, rng)
    else:
        raise ValueError("a source needs `captions`, `labels`, or both")
    short = [cut_bytes(text, limits.max_caption_bytes) for text in texts]
    picture = image_bytes(sample)
    if augment is None:
        image = preprocess(picture, limits)
    elif rng is None:
        raise ValueError("augment needs the generator of the sample")
    else:
        image = augment.apply(picture, preprocess, rng, limits=limits)
    notes += ["caption_cut"] if short != texts else []
    return Item(image, short, label, {}, sample.key, tuple(notes))


def image_bytes(sample: Sample) -> bytes:
    """The picture of a sample: its first member with the ending of a picture; BadSampleError no_image without."""
    for name in IMAGE_MEMBERS:
        if name in sample.members:
            return sample.members[name]
    raise BadSampleError("no_image", f"members: {', '.join(sorted(sample.members))}")


def decode_text(raw: bytes, member: str, *, errors: str = "strict") -> str:
    """The text of a member; BadSampleError bad_encoding if it is not UTF-8."""
    try:
        return raw.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        raise BadSampleError("bad_encoding", f"{member}: {error}") from error


@lru_cache(maxsize=64)
def _names(classes: tuple[str, ...] | str) -> tuple[str, ...]:
    if isinstance(classes, str):
        return read_names(classes)
    return checked_names(classes) if classes else ()


@lru_cache(maxsize=64)
def _places(classes: tuple[str, ...] | str) -> dict[str, int]:
    return {name: i for i, name in enumerate(_names(classes))}
