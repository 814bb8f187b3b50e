"""The data of a benchmark: where they lie, and how they are opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import BeforeValidator, Field, field_validator, model_validator

from eval.caption_lines import with_caption_lines
from eval.catalog import find
from eval.found import open_set
from eval.layout import CLASSES, is_layout, read_layout, read_words
from vlp.data.hub import HuggingFace
from vlp.data.schema import DataError
from vlp.data.sources import Records, Selected, Source, open_records
from vlp.registry import Named, Part

SourcePart = Annotated[Source, Named("vlp.data:SOURCES")]
CSV = (".csv", ".tsv")


class Data(Part):
    """A path (folder of shards, one tar, a glob, a folder in CLIP_benchmark's layout), a known evaluation set by one of
    its names (`set`, docs/datasets.md), or any source of `vlp.data`.

    In YAML `data: PATH` is short for `data: {path: PATH}`, and `data: {name: csv, ...}` for `data: {source: ...}`.
    """

    path: str | None = None
    source: SourcePart | None = None
    set: str | None = None  # its folder is looked for under the suite's data folder by all of its names
    split: str = "test"  # of a folder in CLIP_benchmark's layout
    limit: int | None = Field(None, ge=1)  # only the first pictures
    resize_mode: Literal["shortest", "longest", "squash"] | None = (
        None  # in place of the model's: strips are not cropped
    )
    made_by: str | None = None  # the command that makes the data: said when they are missing

    @field_validator("set")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        return value if value is None else find(value).name

    @model_validator(mode="after")
    def _one_place(self) -> Data:
        if [self.path, self.source, self.set].count(None) != 2:
            raise ValueError('give one of "path", "set" and a source such as {name: csv, ...}')
        return self


def _written_short(value: Any) -> Any:
    if isinstance(value, str):
        return {"path": value}
    if isinstance(value, Mapping) and "name" in value:
        own = {key: value[key] for key in ("limit", "made_by", "resize_mode") if key in value}
        return {"source": {key: item for key, item in value.items() if key not in own}, **own}
    return value


DataField = Annotated[Data, BeforeValidator(_written_short)]


class Opened(NamedTuple):
    """Records of a benchmark, and what its folder says about classes."""

    records: Records
    names: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None
    resize_mode: str | None = None


def open_data(data: Data, *, folders: Sequence[Path] = (Path(),)) -> Opened:
    """The records; a relative path is looked for in each of `folders`."""
    if data.set:
        opened = Opened(*open_set(data.set, folders=folders, split=data.split))
    else:
        opened = _open_path(data.path, data, folders) if data.path else _open_source(data, folders)
    if data.limit and data.limit < len(opened.records):
        first = np.arange(data.limit, dtype=np.int64)
        opened = opened._replace(records=Selected(opened.records, first, left_out="beyond_limit"))
    return opened._replace(resize_mode=data.resize_mode)


def _open_source(data: Data, folders: Sequence[Path]) -> Opened:
    """Any source of vlp.data; shards are looked for where paths are."""
    source = data.source
    assert source is not None
    for field in ("urls", "path"):
        place = getattr(source, field, None)
        if isinstance(place, str) and not isinstance(source, HuggingFace):  # whose path may be an id on the hub
            source = source.model_copy(update={field: locate(place, folders=folders, made_by=data.made_by)})
    records = open_records(source)
    return Opened(records, _names_of_folders(records, Path(getattr(source, "path", ""))))


def _names_of_folders(records: Records, root: Path) -> tuple[str, ...] | None:
    """Class names of pictures in class folders: the folder's classnames.txt, else the folders' names as words."""
    folders = getattr(records, "classes", None)
    if folders is None:
        return None
    given = read_words(root).names
    if given is None:
        return tuple(" ".join(name.replace("_", " ").split()) for name in folders)
    if len(given) != len(folders):
        raise DataError(
            f"{root / CLASSES} has {len(given)} names and there are {len(folders)} class folders: one line a folder, "
            f"in alphabetical order ({', '.join(folders[:3])} ...)"
        )
    return given


def _open_path(path: str, data: Data, folders: Sequence[Path]) -> Opened:
    found = locate(path, folders=folders, made_by=data.made_by)
    if is_layout(Path(found), data.split):
        layout = read_layout(Path(found), data.split)
        records = with_caption_lines(Path(found), open_records({"name": "shards", "urls": layout.shards}))
        return Opened(records, layout.names, layout.templates)
    source = {"name": "csv", "path": found} if Path(found).suffix in CSV else {"name": "shards", "urls": found}
    words = read_words(Path(found))
    return Opened(open_records(source), words.names, words.templates)


def locate(path: str, *, folders: Sequence[Path], made_by: str | None = None) -> str:
    """The path as it is found from here; DataError naming every place that was looked at, and the remedy."""
    if "://" in path:
        return path
    places = [folder / path for folder in folders]  # an absolute path is itself under every folder
    for place in dict.fromkeys(places):
        if place.exists() or _matches(place):
            return str(place)
    tried = "\n".join(f"  {place}" for place in dict.fromkeys(places))
    remedy = f"\nmake it with: {made_by}" if made_by else '\nset another place with "data=FOLDER"'
    raise DataError(f'no data at "{path}" (in {Path.cwd()}); looked at\n{tried}{remedy}')


def located(part: Any, folders: Sequence[Path]) -> Any:
    """The part with every file that its fields name found from these folders, also those of a part that it wraps."""
    changes: dict[str, Any] = {}
    for name in type(part).model_fields:
        value = getattr(part, name)
        if isinstance(value, str) and value.endswith((".json", ".txt")):
            changes[name] = locate(value, folders=folders)
        elif isinstance(value, Part):
            changes[name] = located(value, folders)
    return part.model_copy(update=changes)


def _matches(pattern: Path) -> bool:
    from vlp.data.urls import resolve

    if not any(letter in str(pattern) for letter in "*?[{:"):
        return False
    try:
        return bool(resolve(str(pattern)))
    except DataError:
        return False
