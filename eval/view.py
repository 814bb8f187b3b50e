"""One data set as one model sees it: read and encoded once, shared by every benchmark on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eval.class_folders import by_order, label_reader
from eval.data import Data, Opened, open_data
from vlp import dist
from vlp.data.captions import Captions
from vlp.data.fields import IMAGE_MEMBERS, Fields
from vlp.data.labels import Labels
from vlp.data.schema import DataError
from vlp.data.sources import Selected
from vlp.embed import Encoded, Encoder, reducer
from vlp.log import console
from vlp.token_store import ImageTokens, TextTokens
from vlp.tune.scoring import pixels
from vlp.types import BadSampleError

T = TypeVar("T")
E = TypeVar("E", Encoded, ImageTokens)


class Texts(NamedTuple):
    """All captions of the pictures that have any."""

    captions: list[str]
    caption_image: Int[Tensor, "M"]  # row of the picture each belongs to
    skips: dict[str, int]  # pictures without a usable caption, by reason


class Classes(NamedTuple):
    """The labels of the pictures that have one; reading them is counted."""

    label: Int[Tensor, "B"]
    rows: Int[Tensor, "B"]  # the pictures they belong to
    skips: dict[str, int]


@dataclass
class Place:
    """Where a picture lies."""

    shard: str
    key: str
    index: int


class View:
    """Rows are the pictures that could be read, in the order of the source; everything is made when first asked for."""

    def __init__(self, encoder: Encoder, opened: Opened, *, dataset: str, folders: Sequence[Path] = (Path(),)) -> None:
        self.encoder, self.opened, self.dataset, self.folders = encoder, opened, dataset, folders
        self.label_reads: Counter[str] = Counter()  # the guard: what test labels were read for, and how often
        self._made: dict[Hashable, object] = {}

    @property
    def encoded(self) -> Encoded:
        """Features of the pictures."""
        return self._once("image", self._encode)

    @property
    def image(self) -> Float[Tensor, "N D"]:
        return self.encoded.features

    def image_tokens(self, *, reduce: bool = True) -> ImageTokens:
        """Features and tokens of the pictures; asked for before `encoded`, they save a second pass."""
        reduce = reduce and reducer(self.encoder.dual) is not None
        return self._once(("image tokens", reduce), lambda: self._checked(self._encode_tokens(reduce)))

    def text_tokens(self, captions: list[str]) -> TextTokens:
        """Features, tokens and mask of captions, encoded once for all benchmarks that use the same ones."""
        kind = getattr(self.encoder.dual, "prefix_kind", None)
        return self._once(("text tokens", kind, tuple(captions)), lambda: self.encoder.text_tokens(captions))

    def texts(self, fields: Captions, *, purpose: str) -> Texts:
        """All captions in `fields`. Which caption belongs to which picture is a label, so reading it is counted."""
        self.label_reads[purpose] += 1
        return self._once(("texts", fields), lambda: self._read_texts(fields))

    def text_features(self, captions: list[str]) -> Float[Tensor, "M D"]:
        """Features of captions, encoded once for all benchmarks that use the same ones."""
        kind = getattr(self.encoder.dual, "prefix_kind", None)  # whose prefix they get
        made = self._made.get(("text tokens", kind, tuple(captions)))
        return self._once(
            ("text", kind, tuple(captions)),
            lambda: made.features if isinstance(made, TextTokens) else self.encoder.texts(captions),
        )

    def labels(self, labels: Labels, *, purpose: str) -> Classes:
        """Class indices; `purpose` says in the record what they were read for."""
        self.label_reads[purpose] += 1
        return self._once(("labels", labels), lambda: self._read_labels(labels))

    def places(self) -> list[Place]:
        """Key, shard and position of every row."""
        return self._once("places", self._read_places)

    def beside(self, data: Data, *, folders: Sequence[Path] | None = None) -> View:
        """Other data, such as a training split, seen by the same model; one view for all benchmarks that ask.

        `folders` are those of the first who asks. Labels read there are none of this data set's, and counted there.
        """

        def make() -> View:
            opened = open_data(data, folders=self.folders if folders is None else folders)
            return View(self.encoder, opened, dataset=self.dataset, folders=self.folders)

        return self._once(("beside", data.model_dump_json()), make)

    def _encode(self) -> Encoded:
        for reduce in (True, False):
            if isinstance(made := self._made.get(("image tokens", reduce)), ImageTokens):
                return Encoded(made.features, made.kept, made.skips)
        with self._resized():
            return self._checked(self.encoder.images(self.opened.records))

    def _encode_tokens(self, reduce: bool) -> ImageTokens:
        with self._resized():
            return self.encoder.image_tokens(self.opened.records, reduce=reduce)

    def pixels(self, rows: Tensor) -> Tensor:
        """uint8 [b, 3, H, W] of these rows on the encoder's device; ValueError if one can no longer be read."""
        places = np.array([self.encoded.kept[row] for row in rows.tolist()], dtype=np.int64)
        with self._resized():
            pictures = Selected(self.opened.records, places, left_out="not_asked")
            return torch.cat(list(pixels(self.encoder, pictures)))

    @contextmanager
    def _resized(self) -> Iterator[None]:
        """While open, pictures are brought to size as the data ask for, not as the model was trained."""
        dual = self.encoder.dual
        own = dual.transform
        if self.opened.resize_mode is not None:
            dual.transform = own.model_copy(update={"resize_mode": self.opened.resize_mode})
        try:
            yield
        finally:
            dual.transform = own

    def _checked(self, encoded: E) -> E:
        if not encoded.kept:
            counts = dict(Counter(skip.reason for skip in encoded.skips))
            raise DataError(f"{self.dataset}: none of {len(self.opened.records)} pictures could be read: {counts}")
        return encoded

    def _read_texts(self, fields: Captions) -> Texts:
        captions, rows, skips = list[str](), list[int](), Counter[str]()
        for row, index in enumerate(self.encoded.kept):
            try:
                found = fields.texts(self._fields(index, fields.fields))
            except BadSampleError as error:
                skips[error.reason] += 1
                continue
            found = list(dict.fromkeys(found))  # the same words twice are one caption
            captions += found
            rows += [row] * len(found)
        if not captions:
            said = f"{self.dataset}: no picture has a caption in {', '.join(fields.fields)}: {dict(skips)}"
            raise DataError(f"{said}; {self._has('caption', 'captions: {fields: [FIELD]}')}")
        return Texts(captions, torch.tensor(rows), dict(skips))

    def _read_labels(self, labels: Labels) -> Classes:
        read = label_reader(labels, self.opened.folders, where=self.dataset)
        if (note := by_order(labels, self.opened.folders)) and dist.is_main() and not self.encoder.quiet:
            console.print(f"{self.dataset}: {note}", highlight=False, markup=False)
        found, rows, skips = list[int](), list[int](), Counter[str]()
        for row, index in enumerate(self.encoded.kept):
            try:
                found.append(read(self._fields(index, (labels.field,))))
                rows.append(row)
            except BadSampleError as error:
                skips[error.reason] += 1
        if not found:
            said = f"{self.dataset}: no picture has a label in {labels.field}: {dict(skips)}"
            raise DataError(f"{said}; {self._has('class', 'label: FIELD')}")
        return Classes(torch.tensor(found), torch.tensor(rows), dict(skips))

    def _read_places(self) -> list[Place]:
        return [Place(*self.opened.records.name(index), index) for index in self.encoded.kept]

    @property
    def resize_mode(self) -> str:
        """How pictures were brought to size."""
        return str(self.opened.resize_mode or self.encoder.dual.transform.resize_mode)

    def fields(self, row: int, names: Sequence[str], *, raw: Sequence[str] = ()) -> Fields:
        """The text members of the sample of a row, and its members `raw` as bytes; its picture is not read again."""
        return self._fields(self.encoded.kept[row], (*names, *raw))

    def _fields(self, index: int, names: Sequence[str]) -> Fields:
        return Fields(self.opened.records.read(index, {"json", *names}))

    def _has(self, what: str, setting: str) -> str:
        """What the first sample holds that could be meant, for messages."""
        sample = self.opened.records.read(self.encoded.kept[0])
        there = [name for name in sample.members if name.rpartition(".")[2] not in IMAGE_MEMBERS]
        if not there:
            return (
                f"the first sample is a picture and nothing else ({', '.join(sample.members)}): write the {what} of "
                "each picture into a table or beside it (docs/evaluation.md, Your own pictures), or, of classes, give "
                "a folder with a folder for each class"
            )
        with suppress(BadSampleError):
            inside = Fields(sample).json("replace")
            there += [f"fields {', '.join(inside)} of json"] if isinstance(inside, dict) else []
        return f"the first sample has {', '.join(there)}: say with `{setting}` which of them is its {what}"

    def _once(self, key: Hashable, make: Callable[[], T]) -> T:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]  # type: ignore[return-value]
