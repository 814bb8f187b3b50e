"""Items in JSON files beside the pictures: their fields, the pictures they name, and boxes cut out of these."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from eval.data import Data, locate
from eval.view import View
from vlp.data.decode import decode
from vlp.data.fields import IMAGE_MEMBERS, Fields, image_bytes
from vlp.data.schema import DataError
from vlp.data.sources import Finite, Records, digest
from vlp.types import BadSampleError, Sample

Files = str | dict[str, str]  # a file, or files by the names of the parts that a benchmark consists of
Sides = Literal["all", "released"]
_LINES = (".jsonl", ".ndjson")


class Item(NamedTuple):
    """One entry of a file, read as the JSON of a sample is; `part` is the name of its file, where files have names."""

    part: str | None
    fields: Fields


class Box(NamedTuple):
    """A part of a picture, in pixels."""

    left: float
    top: float
    width: float
    height: float


Place = tuple[int, Box | None]  # a picture's row, and what of it is meant (None: all)


def read_items(files: Files, data: Data, view: View) -> list[Item]:
    """All entries of the files: a JSON list of objects, an object of them (SugarCrepe), or JSON lines."""
    return [
        Item(part, Fields(Sample("", {"json": json.dumps(entry).encode()}, path, number)))
        for part, path in by_part(files)
        for number, entry in enumerate(_objects(find(path, data, view)))
    ]


def read_names(path: Path) -> list[str]:
    """Names of pictures in a JSON list, or the keys of a JSON object (CIRR's splits)."""
    content = _json(path.read_text(encoding="utf-8-sig"), str(path))
    if not isinstance(content, list | dict) or not content:
        raise DataError(f"{path}: wanted a JSON list of names, or an object whose keys they are")
    return [str(name) for name in content]


def by_part(files: Files) -> list[tuple[str | None, str]]:
    """Part (None for a single file) and path of each file."""
    return [(None, files)] if isinstance(files, str) else list(files.items())


def find(path: str, data: Data, view: View) -> Path:
    """A file, which is looked for where data are, then in the folder of the pictures and beside it."""
    own = data.path or getattr(data.source, "path", None) or getattr(data.source, "urls", None)
    near = [] if not isinstance(own, str) or "://" in own else [folder / own for folder in view.folders]
    return Path(locate(path, folders=[*view.folders, *near, *(place.parent for place in near)]))


class Names:
    """Rows of the pictures by what items call them: the sample's key, also with shard, ending or another folder.

    `template` makes the key of what stands in the item: "{:012d}" for COCO's numbers.
    """

    def __init__(self, view: View, template: str = "{}") -> None:
        self.template = template
        self.example = view.places()[0].key
        self._exact: dict[str, list[int | None]] = {}
        self._last: dict[str, list[int | None]] = {}
        places: list[tuple[str, str, int | None]] = [(p.shard, p.key, row) for row, p in enumerate(view.places())]
        for shard, key, row in [*places, *((skip.shard, skip.key, None) for skip in view.encoded.skips)]:
            for name in (key, f"{shard}:{key}"):
                self._exact.setdefault(name, []).append(row)
            self._last.setdefault(PurePosixPath(key).name, []).append(row)

    def row(self, name: Any) -> int:
        """The row of a picture; BadSampleError no_picture, unknown_picture, ambiguous_picture or unreadable_picture."""
        if not isinstance(name, str | int):
            raise BadSampleError("no_picture", f"the item names {name!r}")
        try:
            key = self.template.format(name)
        except ValueError as error:
            raise DataError(f'key: "{self.template}" cannot be filled with {name!r}: {error}') from error
        path = PurePosixPath(key)
        bare = path.with_suffix("") if path.suffix[1:].lower() in IMAGE_MEMBERS else path
        rows = self._exact.get(key) or self._exact.get(str(bare)) or self._last.get(bare.name) or []
        if len(rows) > 1:
            raise BadSampleError("ambiguous_picture", f"{len(rows)} samples have the key {key}; say SHARD:KEY")
        if not rows:
            raise BadSampleError("unknown_picture", f"no sample has the key {key}; one has {self.example}")
        if rows[0] is None:
            raise BadSampleError("unreadable_picture", key)
        return rows[0]


def read_box(value: Any) -> Box:
    """Left, top, width and height; BadSampleError bad_box for anything else."""
    numbers = value if isinstance(value, list | tuple) else []
    if len(numbers) != 4 or not all(isinstance(x, int | float) for x in numbers) or min(numbers[2:]) <= 0:
        raise BadSampleError("bad_box", f"{value!r} is not left, top, width, height")
    return Box(*map(float, numbers))


@dataclass(frozen=True)
class Cutter:
    """How boxes are cut out: grown by `dilate` times their width and height, then padded with black to a square.

    sides: `all` grows left, right, top and bottom. `released` does what GeneCIS's code does: the right end is counted
    from the left end that has already moved, so a box inside the picture grows to the left and to the top only.
    """

    dilate: float = 0.0
    sides: Sides = "all"
    square: bool = False

    def cut(self, image: Tensor, box: Box) -> Tensor:
        """uint8 [3, h, w] of uint8 [3, H, W]; BadSampleError bad_box where nothing of the picture lies in the box."""
        height, width = image.shape[1:]
        left, right = self._ends(box.left, box.width, width)
        top, bottom = self._ends(box.top, box.height, height)
        if left >= right or top >= bottom:
            raise BadSampleError("bad_box", f"{tuple(box)} holds no pixel of a picture of {width}x{height}")
        part = image[:, top:bottom, left:right]
        if not self.square:
            return part
        down, across = (max(part.shape[1:]) - side for side in part.shape[1:])
        return pad(part, [across // 2, across - across // 2, down // 2, down - down // 2])

    def _ends(self, start: float, size: float, limit: int) -> tuple[int, int]:
        low = max(0.0, start - self.dilate * size)
        end = low + size if self.sides == "released" else start + size
        return round(low), round(min(limit, end + self.dilate * size))


class Boxes(Finite):
    """Boxes of pictures as records of their own, each under its picture's name; without a box, the whole picture."""

    def __init__(self, inner: Records, places: Sequence[Place], cutter: Cutter) -> None:
        self.inner, self.places, self.cutter = inner, places, cutter
        self.sizes = np.array([len(places)], dtype=np.int64)
        self.facts, self.notes = inner.facts, {}

    def read(self, i: int, only: Collection[str] | None = None) -> Sample:
        index, box = self.places[i]
        sample = self.inner.read(index, only)
        members = sample.members
        if box is not None and not members.keys().isdisjoint(IMAGE_MEMBERS):
            part = self.cutter.cut(decode(image_bytes(sample)), box)
            members = {name: value for name, value in members.items() if name not in IMAGE_MEMBERS}
            members["bmp"] = _bmp(part)
        return Sample(sample.key, members, sample.shard, i)

    def name(self, i: int) -> tuple[str, str]:
        return self.inner.name(self.places[i][0])

    @property
    def fingerprint(self) -> str:
        return digest([self.inner.fingerprint, repr(self.cutter), *map(repr, self.places)])


@dataclass(frozen=True)
class Cut:
    """A view of boxes, and what each of its pictures is; of whole pictures it is the view they were taken from."""

    view: View
    places: Mapping[int, Place]  # by position in the records of the view

    def rows(self) -> dict[Place, int]:
        """The row of each place; a place that is missing could not be cut."""
        return {self.places[index]: row for row, index in enumerate(self.view.encoded.kept)}

    def skips(self) -> dict[str, int]:
        """Why boxes could not be cut, by reason; whole pictures are counted where they are read."""
        if not isinstance(self.view.opened.records, Boxes):
            return {}
        return {f"crop_{reason}": count for reason, count in self.view.encoded.reasons().items()}


def cut_out(view: View, places: Iterable[Place], cutter: Cutter) -> Cut:
    """The places as a view of their own, each once; encoded when first asked for. Without boxes nothing is cut."""
    wanted = list(dict.fromkeys(places))
    if all(box is None for _, box in wanted):
        return Cut(view, {index: (row, None) for row, index in enumerate(view.encoded.kept)})
    records = Boxes(view.opened.records, [(view.encoded.kept[row], box) for row, box in wanted], cutter)
    opened = view.opened._replace(records=records)
    cut = View(view.encoder, opened, dataset=view.dataset, folders=view.folders)
    return Cut(cut, dict(enumerate(wanted)))


def _bmp(image: Tensor) -> bytes:
    """Without loss and without work."""
    data = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(data, "BMP")
    return data.getvalue()


def _objects(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8-sig")
    content = list(_lines(text, path)) if path.suffix in _LINES else _json(text, str(path))
    entries = list(content.values()) if isinstance(content, dict) else content
    wrong = [entry for entry in entries if not isinstance(entry, dict)] if isinstance(entries, list) else [entries]
    if wrong or not entries:
        found = f"a {type(wrong[0]).__name__} among them" if wrong else "there is none"
        raise DataError(f"{path}: wanted a list of items, each an object with fields ({found})")
    return entries  # type: ignore[no-any-return]


def _lines(text: str, path: Path) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _json(line, f"{path}, line {number}")


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error}; a file of JSON lines is called .jsonl") from None
