"""The field's evaluation sets: what they are called, how large they are, where they come from, under what terms.

The entries are data, eval/sets/*.yaml: one mapping a file, `defaults` for all of its `sets`. A figure that could not be
verified is left out, and a licence that nobody states is "unknown".
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from importlib import resources
from typing import Any, Literal

from pydantic import Field

from vlp import config
from vlp.registry import Part, nearest

Task = Literal[
    "zeroshot_classification",
    "zeroshot_multilabel_classification",  # in records zeroshot_classification, CLIP_benchmark's word for both
    "zeroshot_retrieval",
    "image_caption_selection",
    "composed_image_retrieval",
    "conditional_image_retrieval",
    "image_association",
    "zeroshot_segmentation",
    "anomaly_detection",
]
# clip_benchmark: its webdatasets. huggingface: parquet files. coop: pictures and the split files of the CoOp protocol.
# pictures: pictures in `pictures`, `files` beside them say what is asked. own: as its authors publish it; to be made
# readable first.
Layout = Literal["clip_benchmark", "huggingface", "coop", "pictures", "own"]
HUB = "clip-benchmark"


class DataCompTask(Part):
    """One entry of DataComp's tasklist.yml. Its average is over those with `scored`."""

    key: str
    name: str
    metric: str = "acc1"
    size: int
    classes: int | None = None
    chance: float | None = None
    tags: tuple[str, ...] = ()
    scored: bool = True


class KnownSet(Part):
    """One evaluation set as the field knows it.

    test: test pictures; for tasks about pairs or queries `items` counts those. hub: the Hugging Face data set in
    `layout`, `part` its split; mirrors: others of the same pictures, `ID` or `ID@REVISION`, each in its own layout.
    files: what lies beside the pictures, with the SHA-256 where it is known. get: shell lines that fetch what has no
    `hub`, with {folder} for where it goes.
    """

    name: str = Field(pattern=r"^[a-z0-9][A-Za-z0-9._/+-]*$")
    title: str
    task: Task
    metric: str
    groups: tuple[str, ...] = ()
    test: int | None = Field(None, ge=1)
    items: int | None = Field(None, ge=1)
    classes: int | None = Field(None, ge=2)
    blank: tuple[int, ...] = ()  # classes whose published name is empty; elsewhere that is a fault
    languages: tuple[str, ...] = ("en",)
    templates: str | None = None  # a template set for a folder that brings none
    aliases: dict[str, str] = {}  # project -> its name there
    layout: Layout
    folder: str | None = None  # what people call its folder, if not by one of its names
    pictures: str | None = None  # below the folder
    files: dict[str, str | None] = {}
    hub: str | None = None
    part: str = "test"
    image: str | None = None  # column of pictures, layout huggingface
    mirrors: tuple[str, ...] = ()
    get: tuple[str, ...] = ()
    page: str | None = None
    needs: str | None = None  # what only a person can do: register, agree to terms
    license: str = "unknown"
    note: str | None = None
    datacomp: DataCompTask | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Its name and all others it is found by."""
        more = [*self.aliases.values(), *([self.datacomp.key] if self.datacomp else [])]
        return tuple(dict.fromkeys([self.name, *more]))

    @property
    def dataset(self) -> str | None:
        """The Hugging Face data set to fetch; of layout clip_benchmark the one that project published."""
        if self.hub is None and self.layout == "clip_benchmark":
            return f"{HUB}/wds_{dashed(self.name)}"
        return self.hub

    def folders(self) -> tuple[str, ...]:
        """What its folder may be called, the likeliest first."""
        found = [self.name, f"wds_{dashed(self.name)}", dashed(self.name)]
        found += [self.folder] if self.folder else []
        found += [self.dataset.partition("/")[2]] if self.dataset else []
        for other in self.names[1:]:
            found += [other, dashed(other), f"wds_{dashed(other)}"]
        if self.datacomp:
            found.append(f"wds_{dashed(self.datacomp.key)}_test")
        return tuple(dict.fromkeys(found))

    def home(self) -> str:
        """What its folder is called where `fetch` puts it."""
        return self.folder or (f"wds_{dashed(self.name)}" if self.layout == "clip_benchmark" else dashed(self.name))

    def fetch(self, folder: str) -> tuple[str, ...]:
        """Shell lines that put it below `folder`; empty where only its page says how."""
        place = f"{folder}/{self.home()}"
        if self.dataset:
            without = ' --exclude "train/*"' if self.layout == "clip_benchmark" else ""
            return (f"hf download {self.dataset} --repo-type dataset --local-dir {place}{without}",)
        return tuple(line.replace("{folder}", place) for line in self.get)


def dashed(name: str) -> str:
    """The name as folders and repositories spell it: slashes as dashes."""
    return name.replace("/", "-")


@lru_cache(maxsize=1)
def catalog() -> dict[str, KnownSet]:
    """Every known set by its name; ValueError where two share a name."""
    found: dict[str, KnownSet] = {}
    taken: dict[str, str] = {}
    for entry in _entries():
        for name in entry.names:
            if name in taken:
                raise ValueError(f'eval/sets: "{name}" is a name of {taken[name]} and of {entry.name}')
            taken[name] = entry.name
        found[entry.name] = entry
    return found


def find(name: str) -> KnownSet:
    """The set of that name or alias, or else of that folder; ValueError naming the nearest."""
    entries = catalog()
    named = {alias: entry for entry in entries.values() for alias in entry.names}
    if name in named:
        return named[name]
    by_folder = [entry for entry in entries.values() if name == entry.folder]
    if len(by_folder) == 1:
        return by_folder[0]
    spelt = {alias.lower(): alias for alias in named}
    hint = f'; did you mean "{spelt[name.lower()]}"?' if name.lower() in spelt else nearest(name, named)
    if not hint.startswith("; did"):  # none is near: groups are a shorter list than all names
        hint = f"; docs/datasets.md has them all; groups: {', '.join(groups())}"
    raise ValueError(f'unknown evaluation set "{name}"{hint}')


def of(group: str) -> tuple[KnownSet, ...]:
    """The sets of a group, in the order of the catalogue; ValueError naming the nearest group."""
    if group not in groups():
        raise ValueError(f'unknown group of evaluation sets "{group}"{nearest(group, groups())}')
    return tuple(entry for entry in catalog().values() if group in entry.groups)


def groups() -> tuple[str, ...]:
    """Every group's name."""
    return tuple(sorted({group for entry in catalog().values() for group in entry.groups}))


def _entries() -> Iterator[KnownSet]:
    for file in sorted(resources.files("eval").joinpath("sets").iterdir(), key=lambda file: file.name):
        if not file.name.endswith(".yaml"):
            continue
        where = f"eval/sets/{file.name}"
        content: dict[str, Any] = config.parse_yaml(file.read_text(encoding="utf-8"), where=where)
        for number, values in enumerate(content["sets"]):
            merged = {**content.get("defaults", {}), **values}
            yield config.validate(KnownSet, merged, where=f"{where}: sets.{number} ({values.get('name')})")
