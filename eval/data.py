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
from eval.layout import CLASSES, Words, is_layout, read_layout, read_words
from vlp.data.fields import IMAGE_MEMBERS
from vlp.data.hub import HuggingFace
from vlp.data.schema import MANIFEST, DataError
from vlp.data.sources import Records, Selected, Source, open_records
from vlp.registry import Named, Part, nearest

SourcePart = Annotated[Source, Named("vlp.data:SOURCES")]
CSV = (".csv", ".tsv")


class Data(Part):
    """A path (folder of shards, one tar, a glob, a folder in CLIP_benchmark's layout or of pictures), a known
    evaluation set by one of its names (`set`, docs/datasets.md), or any source of `vlp.data`.

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
    folders: tuple[str, ...] | None = None  # of pictures in class folders their names, in the order of labels


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
    place = getattr(source, "path", None) or getattr(source, "urls", None)
    return _opened(open_records(source), Path(place) if isinstance(place, str) else None)


def _opened(records: Records, root: Path | None) -> Opened:
    """Records of a source, with the names of its classes if it has some, and the templates in its folder."""
    words = read_words(root) if root is not None and root.is_dir() else Words(None, None)
    known = tuple(records.classes)
    if not known:
        return Opened(records, words.names, words.templates)
    folders = known if _in_class_folders(records) else None
    return Opened(records, _names(words.names, known, root), words.templates, folders=folders)


def _in_class_folders(records: Any) -> bool:
    while isinstance(records, Selected):
        records = records.inner
    return getattr(records, "layout", None) == "classes"


def _names(given: tuple[str, ...] | None, folders: tuple[str, ...], root: Path | None) -> tuple[str, ...]:
    """The folder's classnames.txt, else the names of the class folders, or of the source's classes, as words."""
    if given is None:
        return tuple(" ".join(name.replace("_", " ").split()) for name in folders)
    if len(given) != len(folders):
        raise DataError(
            f"{root}/{CLASSES} has {len(given)} names and there are {len(folders)} class folders: one line a folder, "
            f"its name or in alphabetical order ({', '.join(folders[:3])} ...)"
        )
    return given


def _open_path(path: str, data: Data, folders: Sequence[Path]) -> Opened:
    found = locate(path, folders=folders, made_by=data.made_by)
    if is_layout(Path(found), data.split):
        layout = read_layout(Path(found), data.split)
        records = with_caption_lines(Path(found), open_records({"name": "shards", "urls": layout.shards}))
        return Opened(records, layout.names, layout.templates)
    if is_plain_folder(Path(found)):
        return _opened(open_records({"name": "folder", "path": found}), Path(found))
    source = {"name": "csv", "path": found} if Path(found).suffix in CSV else {"name": "shards", "urls": found}
    words = read_words(Path(found))
    return Opened(open_records(source), words.names, words.templates)


def is_plain_folder(folder: Path) -> bool:
    """Whether a folder holds no shards, but pictures, in it or in folders in it."""
    if not folder.is_dir() or (folder / MANIFEST).is_file() or any(folder.glob("*.tar")):
        return False
    return any(map(holds_pictures, (folder, *(inner for inner in folder.iterdir() if inner.is_dir()))))


def holds_pictures(folder: Path) -> bool:
    """Whether pictures lie in the folder itself."""
    return any(file.suffix[1:].lower() in IMAGE_MEMBERS for file in folder.iterdir() if file.is_file())


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
    near = (nearest(place.name, _beside(place)) for place in places)
    hint = next((one.replace("; ", "\n", 1) for one in near if one.startswith("; did")), "")
    raise DataError(f'no data at "{path}" (in {Path.cwd()}); looked at\n{tried}{hint}{remedy}')


def _beside(place: Path) -> list[str]:
    """What lies where something was looked for."""
    return [path.name for path in place.parent.iterdir()] if place.parent.is_dir() else []


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
