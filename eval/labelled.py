"""The data of probes: pictures with classes to learn from, to choose on, and to measure.

Everything is learned and chosen on `train` and `validation` before the labels of the measured pictures are read, once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from eval.benchmark import BenchmarkPart
from eval.data import Data, DataField
from eval.hits import picture_keys
from eval.prompts import Names, class_names
from eval.view import View
from vlp.data.labels import Labels
from vlp.data.schema import DataError
from vlp.metrics.accuracy import Accuracy

Selection = dict[str, str | int]  # what a record says of the choices


class Predict(Protocol):
    """Makes logits [B, C] of features [B, D]."""

    def __call__(self, features: Tensor, /) -> Tensor: ...


class Labelled(NamedTuple):
    """The pictures of one split that have a class; their keys are unique."""

    features: Float[Tensor, "n D"]
    label: Int[Tensor, "n"]
    keys: list[str]

    def only(self, rows: Sequence[int]) -> Labelled:
        """These rows in this order."""
        chosen = torch.tensor(rows, dtype=torch.long)
        return Labelled(self.features[chosen], self.label[chosen], [self.keys[row] for row in rows])

    def joined(self, other: Labelled) -> Labelled:
        """The rows of both."""
        features = torch.cat([self.features, other.features])
        return Labelled(features, torch.cat([self.label, other.label]), self.keys + other.keys)


class Known(NamedTuple):
    """What may be learned from; classes are numbered among those that train has."""

    train: Labelled
    validation: Labelled | None  # data of its own
    classes: Int[Tensor, "C"]  # label in the data of each number
    names: tuple[str, ...] | None
    skips: dict[str, int]
    hashes: Selection  # of the data learned from

    def words(self, data: Labelled) -> list[str]:
        """Class of each picture as draws say it: its name, or its label where there are no names or they repeat."""
        labels = self.classes[data.label].tolist()
        return [self.names[label] for label in labels] if self.names and _unique(self.names) else list(map(str, labels))


class Measured(NamedTuple):
    """The measured pictures whose class train has."""

    features: Float[Tensor, "n D"]
    label: Int[Tensor, "n"]
    keys: list[str]  # as in files of hits
    skips: dict[str, int]

    def accuracy(self, predict: Predict, *, classes: int, step: int) -> Accuracy:
        """Accuracy of what is predicted."""
        accuracy = Accuracy(classes)
        for features, label in zip(self.features.split(step), self.label.split(step), strict=True):
            accuracy.update(predict(features).cpu(), label)
        return accuracy


class Probe(BenchmarkPart):
    """What probes have in common: the data that they learn from.

    `train`, `validation`: as `data`. `names`: as for `zeroshot`, but needed only where labels are names. Pictures whose
    class train lacks are left out and counted.
    """

    train: DataField
    validation: DataField | None = None
    label: str = "cls"  # member or JSON field with the class index or class name
    names: Names = None
    batch: int = Field(4096, ge=1)  # pictures scored at once
    n_boot: int = Field(1000, ge=1)

    def others(self) -> tuple[Data, ...]:
        """Training and validation data."""
        return (self.train,) if self.validation is None else (self.train, self.validation)

    def known(self, view: View) -> Known:
        """Features and labels of train and validation; DataError where nothing can be learned from them."""
        views = [view.beside(data) for data in self.others()]
        prints = [one.opened.records.fingerprint for one in (view, *views)]
        if len(set(prints)) < len(prints):
            raise DataError(
                f"{view.dataset}: two of data, train and validation are the same pictures, so the result would be of "
                "pictures that were learned; give other data (without `validation` a part of train is held out)"
            )
        names, skips = self._class_names(view, views), Counter[str]()
        read = [self._read(one, names, kind, skips) for kind, one in zip(("train", "validation"), views)]
        classes = read[0].label.unique()
        if len(classes) < 2:
            raise DataError(f"{view.dataset}: all pictures of train are of one class; a probe needs two or more")
        if names and int(classes[-1]) >= len(names):
            raise DataError(
                f"{view.dataset}: train has label {int(classes[-1])}, but there are {len(names)} class names"
            )
        numbered, outside = zip(*(_numbered(found, classes) for found in read))
        skips["validation_class_not_in_train"] += sum(outside)
        return Known(
            train=numbered[0],
            validation=numbered[1] if self.validation is not None else None,
            classes=classes,
            names=names,
            skips={reason: count for reason, count in skips.items() if count},
            hashes=dict(zip(("train_hash", "validation_hash"), prints[1:])),
        )

    def measured(self, view: View, known: Known) -> Measured:
        """The pictures to score; this is where their labels are read."""
        found = view.labels(self._labels(known.names), purpose="scoring")
        rows = torch.isin(found.label, known.classes).nonzero().flatten()
        if not len(rows):
            raise DataError(f"{view.dataset}: no picture is of a class of train; does `{self.label}` mean one in both?")
        missing = len(found.label) - len(rows)
        skips = {**found.skips, **known.skips, **({"class_not_in_train": missing} if missing else {})}
        label, places = torch.searchsorted(known.classes, found.label[rows]), found.rows[rows]
        return Measured(view.image[places].to(_device(view)), label, picture_keys(view, places.tolist()), skips)

    def _read(self, view: View, names: tuple[str, ...] | None, kind: str, skips: Counter[str]) -> Labelled:
        try:
            found = view.labels(self._labels(names), purpose="learning")
        except DataError as error:
            remedy = "; without class names a label must be an index: give `names`" if names is None else ""
            raise DataError(f"{kind}: {error}{remedy}") from None
        for reasons in (view.encoded.reasons(), found.skips):
            skips.update({f"{kind}_{reason}": count for reason, count in reasons.items()})
        keys, features = _unique_keys(view), view.image[found.rows].to(_device(view))
        return Labelled(features, found.label, [keys[row] for row in found.rows.tolist()])

    def _labels(self, names: tuple[str, ...] | None) -> Labels:
        return Labels(field=self.label, classes=names if names and _unique(names) else ())  # else only indices

    def _class_names(self, view: View, others: Sequence[View]) -> tuple[str, ...] | None:
        """The names given, else those that the data have; DataError where these number classes differently."""
        if self.names is not None:
            return class_names(self.names, view)
        found = [one.opened.names or one.opened.records.classes for one in (view, *others)]
        said = list(dict.fromkeys(tuple(names) for names in found if names))
        if len(said) > 1:
            raise DataError(
                f"{view.dataset}: data, train and validation do not have the same class names ({len(said[0])} and "
                f"{len(said[1])}), so one label means several classes; give `names`, and as `label` a field with names"
            )
        return said[0] if said else None


def _numbered(found: Labelled, classes: Tensor) -> tuple[Labelled, int]:
    """The pictures of these classes, labels replaced by places among them; and the number of the others."""
    there = torch.isin(found.label, classes)
    inside = found.only(there.nonzero().flatten().tolist())
    return inside._replace(label=torch.searchsorted(classes, inside.label)), int((~there).sum())


def _unique_keys(view: View) -> list[str]:
    """A name for every row: its key, behind that of its shard where keys repeat."""
    keys = [place.key for place in view.places()]
    if len(set(keys)) < len(keys):
        keys = [f"{place.shard}:{place.key}" for place in view.places()]
    if len(set(keys)) < len(keys):
        twice = Counter(keys).most_common(1)[0][0]
        raise DataError(f'{view.dataset}: several pictures are called "{twice}"; a draw needs keys that differ')
    return keys


def _unique(names: Sequence[str]) -> bool:
    return len(set(names)) == len(names)


def _device(view: View) -> torch.device:
    """Where probes compute: they need double precision, which not every accelerator has."""
    return view.encoder.device if view.encoder.device.type == "cuda" else torch.device("cpu")
