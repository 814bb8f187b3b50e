"""Hugging Face `datasets`: a set by its id, or a folder written by `save_to_disk`."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from vlp.data.captions import CAPTION_COLUMNS
from vlp.data.fields import IMAGE_MEMBERS
from vlp.data.remote import ShardCache
from vlp.data.schema import DataError
from vlp.data.sources import Fact, Finite, Source
from vlp.registry import nearest
from vlp.types import BadSampleError, Sample


class HuggingFace(Source):
    """A data set with a column of pictures; the other columns are the sample's json."""

    usual_fields: ClassVar[tuple[str, ...]] = CAPTION_COLUMNS
    path: str = Field(description="id on the hub, or a folder written by save_to_disk")
    subset: str | None = None
    part: str = Field("train", description="the set's own split; `split` is the house's train and validation inside it")
    revision: str | None = Field(None, description="commit of the set, so that it stays the same")
    image: str | None = Field(None, description="column of pictures; default: the first one of that kind")

    def shown(self) -> str:
        return self.title or Path(self.path).name

    def open(self, cache: ShardCache) -> HubRecords:
        return HubRecords(_load(self), self)


class HubRecords(Finite):
    """Rows of a data set; the key is the number of the row."""

    def __init__(self, dataset: Any, source: HuggingFace) -> None:
        from datasets import ClassLabel, Image

        kinds = dataset.features
        pictures = [name for name, kind in kinds.items() if isinstance(kind, Image)]
        self.image = source.image or (pictures[0] if pictures else "")
        if self.image not in kinds:
            hint = nearest(self.image or "image", kinds)
            raise DataError(
                f'{source.path}: no column of pictures "{self.image or "image"}"{hint}; name it with `image:`'
            )
        if self.image in pictures:
            dataset = dataset.cast_column(self.image, Image(decode=False))  # bytes: the house decodes
        self.title, self.dataset = source.shown(), dataset
        self.others = dataset.select_columns([name for name in kinds if name != self.image])
        labels = [kind.names for name, kind in kinds.items() if isinstance(kind, ClassLabel)]
        self.classes = tuple(labels[0]) if len(labels) == 1 else ()
        self.notes: dict[str, int] = {}
        self.sizes = np.array([len(dataset)], dtype=np.int64)
        self.facts = [Fact(f"{self.title}:{dataset._fingerprint}", int(dataset.dataset_size or 0), len(dataset))]

    def name(self, i: int) -> tuple[str, str]:
        return self.title, f"{i:08d}"

    def read(self, i: int, only: Collection[str] | None = None) -> Sample:
        members: dict[str, bytes] = {}
        if only is None or "json" in only:
            members["json"] = json.dumps(_plain(self.others[i]), ensure_ascii=False, default=str).encode()
        if only is None or set(only) & set(IMAGE_MEMBERS):
            members["jpg"] = self._picture(self.dataset[i][self.image])
        return Sample(self.name(i)[1], members, self.title, i)

    def _picture(self, value: Any) -> bytes:
        """Bytes of a picture; the decoder goes by content, so the ending does not matter."""
        raw = value.get("bytes") if isinstance(value, dict) else value
        if raw is None and isinstance(value, dict) and value.get("path"):
            try:
                raw = Path(value["path"]).read_bytes()
            except OSError as error:
                raise BadSampleError("unreadable", str(error)) from error
        if not isinstance(raw, bytes):
            raise BadSampleError("no_image", f"column {self.image} holds {type(raw).__name__}")
        return raw


def _load(source: HuggingFace) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError("the huggingface source needs `pip install datasets`") from error
    folder = Path(source.path).expanduser()
    try:
        if folder.is_dir() and any(folder.glob("*.json")):
            loaded = datasets.load_from_disk(str(folder))
        else:
            loaded = datasets.load_dataset(source.path, source.subset, revision=source.revision)
    except Exception as error:  # builders and arrow raise anything; `datasets` runs no script of a set, since 4.0
        raise DataError(f"{source.path}: not a data set that can be loaded: {error}") from error
    if isinstance(loaded, datasets.DatasetDict):
        if source.part not in loaded:
            raise DataError(f'{source.path}: no split "{source.part}"{nearest(source.part, loaded)}; set `part`')
        loaded = loaded[source.part]
    return loaded


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not isinstance(value, bytes)}
