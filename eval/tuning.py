"""Data sets of `vlp tune` in YAML, in the data language of suites: what to learn from, and what to measure.

`sets` are learned and measured, `targets` are measured by protocols that need other data. `methods`, `shots`, `seeds`
and `protocol` are what `vlp tune grid` goes through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import normalize

from eval.adapted import AdapterPart
from eval.data import Data, DataField, locate, open_data
from eval.hits import picture_keys
from eval.prompts import class_names, class_templates
from eval.tuning_views import ViewFeatures
from eval.view import Classes, View
from vlp import config
from vlp.adapters.descriptions import read_sentences, said_missing
from vlp.adapters.task import Examples, short_hash
from vlp.data.labels import Labels
from vlp.data.schema import DataError
from vlp.data.sources import Selected
from vlp.embed import Encoder
from vlp.registry import Named, Part, nearest
from vlp.tune.folder import read_folder
from vlp.tune.guard import Guard
from vlp.tune.protocols import FewShot, Protocol
from vlp.tune.stock import Stock

ProtocolPart = Annotated[Protocol, Named("vlp.tune:PROTOCOLS")]
Shots = Annotated[int, Field(ge=0)] | Literal["all"]


class TuneSet(Part):
    """One data set: pictures by split, or `features`, a folder of .npz files, in place of all else.

    `label`, `names` and `templates` as for the benchmark `zeroshot`. `prompts`: JSON {class: [sentences]}, in place of
    templates. Without `train` it can only be measured.
    """

    dataset: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    features: str | None = None
    train: DataField | None = None
    validation: DataField | None = None
    unlabelled: DataField | None = None
    test: DataField | None = None
    label: str = "cls"  # member or JSON field with the class index or class name
    names: tuple[str, ...] | str | None = None
    templates: tuple[str, ...] | str | None = None
    prompts: str | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> TuneSet:
        pictures = [self.train, self.validation, self.unlabelled, self.test]
        if (self.features is None) == (self.test is None) or (self.features and any(pictures)):
            raise ValueError("give either `features`, a folder of .npz files, or `test` with pictures (and `train`)")
        modes = {data.resize_mode for data in pictures if data is not None}
        if len(modes) > 1:
            raise ValueError("resize_mode differs between splits, so that they would not show the same; set it in all")
        return self


class Tuning(Part):
    """A file of `vlp tune`. Relative paths start at `data`; without it here, or at the folder of the file."""

    name: str
    data: str | None = None  # the folder that holds the data: `data=FOLDER` moves a whole file
    sets: tuple[TuneSet, ...] = ()
    sets_of: str | None = Field(None, pattern=r"^[^/\\]+\.ya?ml$")  # a file beside this one whose sets are taken
    only: tuple[str, ...] = ()  # of the sets, by name; default: all of them
    targets: tuple[TuneSet, ...] = ()
    protocol: ProtocolPart = FewShot()
    methods: tuple[AdapterPart, ...] = ()
    shots: tuple[Shots, ...] = Field((1, 2, 4, 8, 16), min_length=1)  # of each class; all: all of train
    seeds: tuple[int, ...] = Field((1, 2, 3), min_length=1)
    augmentation_seed: int = Field(0, ge=0)  # of the copies that some methods learn from
    folder: str = "."  # of the file itself; `load_tuning` fills it in

    @model_validator(mode="after")
    def _one_place(self) -> Tuning:
        if bool(self.sets) == bool(self.sets_of):
            raise ValueError("give either `sets`, or `sets_of` with a file beside this one whose sets are taken")
        return self

    @model_validator(mode="after")
    def _one_size(self) -> Tuning:
        if self.targets:
            check_size([*self.sets, *self.targets], where="targets")
        return self

    def folders(self) -> list[Path]:
        """Where relative paths are looked for, in order."""
        here = [Path(), Path(self.folder)]
        return list(dict.fromkeys(place / self.data for place in here)) if self.data else here


def check_size(sets: Sequence[TuneSet], *, where: str) -> None:
    """ValueError where what is learned and what is measured would not be brought to size alike."""
    if len({part.test.resize_mode for part in sets if part.test is not None}) > 1:
        raise ValueError(f"{where}: resize_mode differs from that of the sets, so that they would not look the same")


def load_tuning(path: str | Path, overrides: Sequence[str] = ()) -> Tuning:
    """The file with `key=value` overrides, and the sets that it names; ConfigError with dotted paths for its faults."""
    path = Path(path)
    values = config.apply_overrides({"folder": str(path.parent), **config.read_yaml(path)}, overrides)
    tuning = config.validate(Tuning, values, where=str(path))
    if tuning.sets_of is not None:
        other = config.load(Tuning, path.parent / tuning.sets_of)
        if other.sets_of is not None:
            raise config.ConfigError(f"{path}: sets_of: {tuning.sets_of} has no sets itself; name {other.sets_of}")
        taken = {"data": tuning.data or other.data, "sets": other.sets, "sets_of": None}
        tuning = config.validate(Tuning, {**dict(tuning), **taken}, where=str(path))
    return tuning.model_copy(update={"sets": _chosen(tuning, path)}) if tuning.only else tuning


def _chosen(tuning: Tuning, path: Path) -> tuple[TuneSet, ...]:
    """The sets in `only`, in the order of the sets."""
    names = [part.dataset for part in tuning.sets]
    for place, name in enumerate(tuning.only):
        if name not in names:
            raise config.ConfigError(f'{path}: only.{place}: there is no set "{name}"{nearest(name, names)}')
    return tuple(part for part in tuning.sets if part.dataset in tuning.only)


def open_stock(part: TuneSet, tuning: Tuning, encoder: Encoder | None, *, model: str = "features") -> Stock:
    """The data set as the encoder sees it, every split opened before the first is encoded."""
    if part.features is not None:
        found = read_folder(Path(locate(part.features, folders=tuning.folders())))
        return replace(found, dataset=part.dataset)
    if encoder is None:
        raise ValueError(f"{part.dataset}: these are pictures: give a model to encode them with")
    return _Pictures(part, tuning, encoder).stock(model)


@contextmanager
def resized(encoder: Encoder, part: TuneSet) -> Iterator[None]:
    """While open, every picture is brought to size as the data ask for, also those that adapters read."""
    dual = encoder.dual
    own, mode = dual.transform, part.test.resize_mode if part.test is not None else None
    dual.transform = own if mode is None else own.model_copy(update={"resize_mode": mode})
    try:
        yield
    finally:
        dual.transform = own


class _Pictures:
    """The splits of a data set of pictures, as views of one encoder."""

    def __init__(self, part: TuneSet, tuning: Tuning, encoder: Encoder) -> None:
        self.part, self.encoder, self.seed = part, encoder, tuning.augmentation_seed
        self.words = [*tuning.folders(), Path(tuning.folder), Path()]
        splits = ("train", "validation", "unlabelled", "test")
        self.views = {
            name: self._open(name, data, tuning) for name in splits if (data := getattr(part, name)) is not None
        }
        self.skips = Counter[str]()

    def _open(self, name: str, data: Data, tuning: Tuning) -> View:
        opened = open_data(data, folders=tuning.folders())
        return View(self.encoder, opened, dataset=f"{self.part.dataset} {name}", folders=self.words)

    def stock(self, model: str) -> Stock:
        """Everything encoded; labels of all but the test pictures read."""
        prints = {name: view.opened.records.fingerprint for name, view in self.views.items()}
        if self.seed:
            prints["augmentation_seed"] = str(self.seed)
        names = self._names()
        learned = {name: self._labelled(name, names) for name in ("train", "validation") if name in self.views}
        pool = self.views.get("unlabelled")
        test = self.views["test"]
        text, sentences = self._text(names)
        if sentences:
            prints["prompts"] = short_hash(sentences)
        guard = Guard(_examples(test), lambda: self._test_labels(names), where=test.dataset)
        self.skips.update({f"test_{reason}": count for reason, count in test.encoded.reasons().items()})
        found = Stock(
            dataset=self.part.dataset,
            model=model,
            encoder=self.encoder,
            names=names,
            test=guard,
            templates=class_templates(self.part.templates, test),
            text=text,
            train=learned.get("train"),
            validation=learned.get("validation"),
            unlabelled=_examples(pool) if pool is not None else None,
            unlabelled_label=(lambda: self._pool_labels(pool, names)) if pool is not None else None,
            augment=ViewFeatures(self.encoder, seed=self.seed),
            hashes=prints,
            skips=dict(self.skips),
        )
        return found.checked()

    def _names(self) -> tuple[str, ...]:
        if self.part.names is None:
            known = {view.opened.names for view in self.views.values() if view.opened.names is not None}
            if len(known) > 1:
                raise DataError(
                    f"{self.part.dataset}: its splits do not have the same class names, so one label means several "
                    "classes; give `names`, and as `label` a field with names"
                )
            if known:
                return known.pop()
        return class_names(self.part.names, self.views["test"])

    def _labels(self, names: tuple[str, ...]) -> Labels:
        return Labels(field=self.part.label, classes=names if len(set(names)) == len(names) else ())

    def _labelled(self, name: str, names: tuple[str, ...]) -> Examples:
        view = self.views[name]
        found = view.labels(self._labels(names), purpose="learning")
        for reasons in (view.encoded.reasons(), found.skips):
            self.skips.update({f"{name}_{reason}": count for reason, count in reasons.items()})
        return _examples(view, found.rows.tolist(), found.label)

    def _test_labels(self, names: tuple[str, ...]) -> Tensor:
        """Class of every test picture that could be read, -1 where it has none of the names."""
        view = self.views["test"]
        return _spread(view, view.labels(self._labels(names), purpose="scoring"))

    def _pool_labels(self, view: View, names: tuple[str, ...]) -> Tensor:
        """The same of pictures to learn from without labels; they may have none at all."""
        try:
            return _spread(view, view.labels(self._labels(names), purpose="reporting"))
        except DataError:
            return torch.full((len(view.image),), -1)

    def _text(self, names: tuple[str, ...]) -> tuple[Tensor | None, list[str]]:
        """Features of the sentences of every class, one mean a class where they are not equally many; the sentences."""
        if self.part.prompts is None:
            return None, []
        file = locate(self.part.prompts, folders=self.words)
        sentences = read_sentences(file)
        if without := [name for name in names if not sentences.get(name)]:
            raise ValueError(said_missing(without, sentences, of=len(names), what="sentence", where=file))
        counts = [len(sentences[name]) for name in names]
        said = [text for name in names for text in sentences[name]]
        features = self.encoder.texts(said).split(counts)
        if len(set(counts)) == 1:
            return torch.stack(features), said
        return normalize(torch.stack([own.mean(dim=0) for own in features]), dim=-1)[:, None], said


def _spread(view: View, found: Classes) -> Tensor:
    """Class of every picture of the view, -1 for those without one."""
    label = torch.full((len(view.image),), -1)
    label[found.rows] = found.label
    return label


def _examples(view: View, rows: list[int] | None = None, label: Any = None) -> Examples:
    """Pictures of a view that have a key of their own; they stay where they lie until they are asked for."""
    rows = list(range(len(view.image))) if rows is None else rows
    places = np.array([view.encoded.kept[row] for row in rows], dtype=np.int64)
    keys = picture_keys(view, rows)
    if len(set(keys)) < len(keys):
        raise DataError(
            f'{view.dataset}: several pictures are called "{Counter(keys).most_common(1)[0][0]}"; a draw needs keys '
            "that differ"
        )
    pictures = Selected(view.opened.records, places, left_out="no_class_or_unreadable")
    return Examples(view.image[rows], label, tuple(keys), pictures)
