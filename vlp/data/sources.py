"""What every source of samples has in common: settings, finite access by position, and selection of some samples."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
from pydantic import Field, model_validator

from vlp.data.captions import Captions
from vlp.data.columns import Column, check_columns
from vlp.data.labels import Labels
from vlp.data.order import Indices
from vlp.data.remote import ShardCache
from vlp.data.schema import DataError
from vlp.data.splits import field_of, in_validation, read_keys, read_split
from vlp.registry import Part
from vlp.types import BadSampleError, Sample

Split = Literal["train", "validation", "all"]


class Fact(NamedTuple):
    """One shard as the fingerprint sees it: no path, so data may move."""

    name: str
    bytes: int
    samples: int
    digest: str | None = None  # of the content: the manifest's sha256, or what the kind of source takes for it


class Records(Protocol):
    """Finite, in-order access to the samples of a source. `records[i]` may raise BadSampleError."""

    sizes: Indices  # samples of each shard; a source without shards is one
    facts: Sequence[Fact]
    notes: dict[str, int]  # reason -> count of what was left out when it was indexed
    classes: tuple[str, ...]  # class names in label order, where the source itself has them

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Sample: ...
    def read(self, i: int, only: Collection[str] | None = None) -> Sample: ...
    def name(self, i: int) -> tuple[str, str]:
        """Shard and key of sample i, without reading it."""

    @property
    def fingerprint(self) -> str: ...


class Finite:
    """The parts of Records that follow from the others."""

    sizes: Indices
    facts: Sequence[Fact]
    notes: dict[str, int]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return int(self.sizes.sum())

    def __getitem__(self, i: int) -> Sample:
        if not -len(self) <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        return self.read(i % len(self))

    def __iter__(self) -> Iterator[Sample]:
        return (self.read(i) for i in range(len(self)))

    def read(self, i: int, only: Collection[str] | None = None) -> Sample:
        raise NotImplementedError

    def name(self, i: int) -> tuple[str, str]:
        raise NotImplementedError

    @property
    def fingerprint(self) -> str:
        return digest(repr(tuple(fact)) for fact in self.facts)


class Source(Part):
    """A source of a mixture. With `kind: label` equal classes are positives, and captions are made of class names."""

    usual_fields: ClassVar[tuple[str, ...]] = Captions().fields  # where captions are looked for without `captions`
    title: str = Field("", description="what messages call it; default: the name of its folder or file")
    kind: Literal["caption", "label"] = "caption"
    weight: float | None = Field(None, gt=0, description="share of the mixture; default: its number of samples")
    captions: Captions | None = Field(None, description="default: the usual fields; with kind: label the class names")
    labels: Labels | None = None
    columns: dict[str, Column] = Field({}, description="numbers stored with the samples, by their name in batch.extra")
    crop: str | None = Field(None, description="column of a box that is cut out instead of data.augment's random crop")
    keep: str | None = Field(None, description="keep-list: parquet, csv or txt of keys; others are left out")
    split: Split = "all"
    validation_fraction: float = Field(0.05, gt=0, lt=1)
    group_by: str | None = Field(
        None, description="json field (dotted) whose equal values never part; default: the key"
    )
    split_file: str | None = Field(None, description="a split written before, instead of the hash")

    @model_validator(mode="after")
    def _labels_do_something(self) -> Source:
        if self.labels is not None and self.kind == "caption":
            raise ValueError("labels: not read with kind: caption; set kind: label, or leave them out")
        written = self.labels is not None and self.labels.templates != Labels().templates
        if written and self.captions is not None:
            raise ValueError("labels.templates: not used where captions say what the texts are; leave one of them out")
        return self

    @model_validator(mode="after")
    def _columns_can_be_served(self) -> Source:
        check_columns(self.columns, self.crop, self.caption_stage())
        return self

    @property
    def endless(self) -> bool:
        """True for a stream that has no positions: no finite access, no O(1) resume."""
        return False

    def shown(self) -> str:
        """The name for messages."""
        return self.title or type(self).__name__.lower()

    def open(self, cache: ShardCache) -> Records:
        """All samples, before `keep` and `split`."""
        raise NotImplementedError

    def caption_stage(self) -> Captions | None:
        """Where captions come from; None: from class names."""
        return self.captions or (Captions(fields=self.usual_fields) if self.kind == "caption" else None)

    def label_stage(self, classes: Sequence[str] = ()) -> Labels | None:
        """Where labels come from, if they count; `classes` are the names that the source itself knows."""
        if self.kind == "caption":
            return None
        labels = self.labels or Labels()
        return labels if labels.classes or not classes else labels.model_copy(update={"classes": tuple(classes)})


class Selected(Finite):
    """Some samples of other records, in their order."""

    def __init__(self, inner: Records, rows: Indices, *, left_out: str) -> None:
        self.inner, self.rows = inner, rows
        edges = np.concatenate([[0], np.cumsum(inner.sizes)])
        self.sizes = np.diff(np.searchsorted(rows, edges)).astype(np.int64)
        self.facts, self.classes = inner.facts, inner.classes
        self.notes = {**inner.notes, left_out: len(inner) - len(rows)}

    def read(self, i: int, only: Collection[str] | None = None) -> Sample:
        sample = self.inner.read(int(self.rows[i]), only)
        sample.index = i
        return sample

    def name(self, i: int) -> tuple[str, str]:
        return self.inner.name(int(self.rows[i]))

    @property
    def fingerprint(self) -> str:
        return digest([self.inner.fingerprint, hashlib.sha256(self.rows.astype("<i8").tobytes()).hexdigest()])


def open_records(source: Source | dict[str, Any] | str, *, cache: ShardCache | None = None) -> Records:
    """The samples of a source (a part, its mapping, or a path or glob of shards) after its keep-list and split.

    In order and finite: for evaluation and search, and what the feed serves in its own order.
    """
    part = as_source(source)
    if part.endless:
        raise DataError(f"{part.shown()}: a stream has no positions; make shards of it with `vlp data build`")
    records = part.open(cache or ShardCache())
    if len(records) == 0:
        notes = ", ".join(f"{count} {reason}" for reason, count in records.notes.items()) or "nothing in it"
        raise DataError(f"{part.shown()}: no samples ({notes}); run `vlp data verify` on it")
    if part.keep:
        records = Selected(records, _kept(records, part), left_out="not_in_keep_list")
    if part.split != "all":
        records = Selected(records, _split_rows(records, part), left_out="in_other_split")
    return records


def as_source(source: Source | dict[str, Any] | str) -> Source:
    """A source part from itself, from `{name: ..., ...}`, or from a path, glob or url of shards."""
    from vlp.data import SOURCES

    if isinstance(source, str):
        source = {"name": "shards", "urls": source}
    built = SOURCES.build(source)
    if not isinstance(built, Source):
        raise TypeError(f"{type(built).__name__} is not a source")
    return built


def groups_of(records: Records, group_by: str | None) -> list[str]:
    """The group of every sample: the json field `group_by`, or its key, as for one that cannot be read anyway."""
    if group_by is None:
        return [records.name(i)[1] for i in range(len(records))]
    groups = []
    for i in range(len(records)):
        try:
            groups.append(field_of(records.read(i, ("json",)), group_by))
        except BadSampleError as error:
            shard, key = records.name(i)
            if error.reason == "no_group":
                raise DataError(f"{shard}: sample {key}: {error}; choose another group_by") from error
            groups.append(key)
    return groups


def digest(lines: Any) -> str:
    """Hex hash of some lines."""
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _kept(records: Records, part: Source) -> Indices:
    wanted = read_keys(str(part.keep))
    names = (records.name(i) for i in range(len(records)))
    rows = np.flatnonzero([key in wanted or f"{shard}:{key}" in wanted for shard, key in names])
    if len(rows) == 0:
        example = f'"{next(iter(wanted))}"' if wanted else "nothing"
        raise DataError(
            f"{part.shown()}: keep-list {part.keep} matches none of {len(records)} samples: "
            f'it has {example}, the source "{records.name(0)[1]}"'
        )
    return rows.astype(np.int64)


def _split_rows(records: Records, part: Source) -> Indices:
    if part.split_file:
        known = read_split(part.split_file)
        names = [records.name(i)[1] for i in range(len(records))]
        missing = [key for key in names if key not in known]
        if missing:
            raise DataError(
                f"{part.split_file}: does not know {len(missing)} keys of {part.shown()}, such as {missing[0]}"
            )
        chosen = np.array([known[key] == part.split for key in names])
    else:
        validation = in_validation(groups_of(records, part.group_by), part.validation_fraction)
        chosen = validation if part.split == "validation" else ~validation
    if not chosen.any():
        raise DataError(f"{part.shown()}: split {part.split} is empty; raise validation_fraction or change group_by")
    return np.flatnonzero(chosen).astype(np.int64)
