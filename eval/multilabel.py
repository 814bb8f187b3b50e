"""Zero-shot classification of pictures that show any number of classes: mean average precision over classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eval.adapted import Adapted
from eval.benchmark import Outcome
from eval.heads import file_name
from eval.view import View
from vlp.adapters.task import Task
from vlp.data.columns import Column
from vlp.data.fields import Fields
from vlp.data.schema import DataError
from vlp.metrics.multilabel import MeanAveragePrecision
from vlp.registry import nearest
from vlp.types import BadSampleError

SHOWN_CLASSES, SHOWN_EXAMPLES = 8, 4


class Shown(NamedTuple):
    """The pictures whose label could be read, and which classes each of them shows."""

    rows: Int[Tensor, "n"]
    labels: Bool[Tensor, "n C"]
    skips: dict[str, int]


class MultiLabel(Adapted):
    """Mean average precision over classes, of pictures that show any number of them.

    `label`: a JSON field with a list of class names or indices (one alone is a list of one), or an array of numpy with
    a zero or one for each class, which CLIP_benchmark's webdatasets have in the member `npy`. A picture without one, or
    with one that names no class, is left out and counted; an empty list, or only zeros, says that none is shown.
    `names`, `templates`, `adapter`: as for `zeroshot`. A class that no picture shows is left out of the mean.
    """

    task: ClassVar[str] = "zeroshot_classification"  # CLIP_benchmark's word, also for several labels; the metric tells

    label: str = "npy"

    def measure(self, view: View) -> Outcome:
        """mean_average_precision; intervals draw pictures."""
        fitted = self.fitted(view)
        task, classifier, inputs = fitted
        shown = self._shown(view, task)
        scores = torch.cat([logits.cpu() for _, logits in self.logits(classifier, inputs, shown.rows)])
        precision = MeanAveragePrecision(len(task.names))
        precision.update(scores, shown.labels)
        table = _table(precision, task, shown, scores)
        return Outcome(
            metrics=precision.compute(),
            n=len(shown.rows),
            counts={
                "images": len(shown.rows),
                "classes": len(task.names),
                "templates": len(task.templates),
                "labels": int(shown.labels.sum()),
                **precision.skipped,
            },
            ci95=precision.intervals(n_boot=self.n_boot),
            chance=precision.chance(),
            head=getattr(classifier, "head", None),
            templates_hash=task.templates_hash,
            classes_hash=task.names_hash,
            skips=shown.skips,
            files={file_name(self.stem("multilabel"), fitted.head): table},
            shown={row for one in table["worst"] for row in (*one["missed"], *one["false"])},
        )

    def _shown(self, view: View, task: Task) -> Shown:
        """The labels; DataError where no picture has one, or none shows a class."""
        view.label_reads["scoring"] += 1
        unique = len(set(task.names)) == len(task.names)  # of repeated names only indices say which one is meant
        places = {name: place for place, name in enumerate(task.names)} if unique else {}
        rows, found, skips, first = list[int](), list[Tensor](), Counter[str](), dict[str, str]()
        for row in range(len(view.encoded.kept)):
            try:
                fields = view.fields(row, (self.label.partition(":")[0],))
                found.append(labels_of(fields, self.label, places=places, classes=len(task.names)))
                rows.append(row)
            except BadSampleError as error:
                skips[error.reason] += 1
                first.setdefault(error.reason, error.detail)
        if not found or not torch.stack(found).any():
            said = f"{view.dataset}: no picture shows one of {len(task.names)} classes by its {self.label}"
            reasons = "; ".join(f"{count} x {reason}, {first[reason]}" for reason, count in skips.items())
            raise DataError(f"{said}: {reasons or f'the labels of all {len(rows)} are empty'}")
        return Shown(torch.tensor(rows), torch.stack(found), dict(skips))


def labels_of(fields: Fields, field: str, *, places: Mapping[str, int], classes: int) -> Bool[Tensor, "C"]:
    """Which classes a sample shows; BadSampleError no_label, or bad_label where that cannot be known."""
    if field.partition(":")[0].split(".")[-1] in ("npy", "npz"):
        try:
            return torch.from_numpy(Column(field=field, shape=(classes,), dtype="bool").read(fields))
        except BadSampleError as error:
            raise BadSampleError("no_label" if error.reason == "no_column" else "bad_label", error.detail) from error
    value = fields.find(field)
    if value is None or value == "":
        raise BadSampleError("no_label", f"no {field}")
    every = value if isinstance(value, list) else [value]
    if len(every) == classes > 2 and all(one in (0, 1) for one in every):
        raise BadSampleError("bad_label", f"{field} is {classes} zeros and ones, not indices; store these as an array")
    shown = torch.zeros(classes, dtype=torch.bool)
    shown[[_place(one, field, places, classes) for one in every]] = True
    return shown


def _place(value: Any, field: str, places: Mapping[str, int], classes: int) -> int:
    if isinstance(value, str):
        value = value.strip()
        if value in places:
            return places[value]
        value = int(value) if value.isdecimal() and value.isascii() else value
    if isinstance(value, bool) or not isinstance(value, int):
        hint = nearest(value, places) if isinstance(value, str) else ""
        raise BadSampleError("bad_label", f"{field} holds {value!r}{hint}")
    if not 0 <= value < classes:
        raise BadSampleError("bad_label", f"{field} holds {value}, there are {classes} classes")
    return value


def _table(precision: MeanAveragePrecision, task: Task, shown: Shown, scores: Float[Tensor, "n C"]) -> dict[str, Any]:
    """Every class; and of the worst ones the pictures that show it and score least, and that do not and score most."""
    found = precision.table()
    average = [float(value) if support else None for value, support in zip(found.average_precision, found.support)]
    order = sorted((value, place) for place, value in enumerate(average) if value is not None)
    worst = []
    for value, place in order[:SHOWN_CLASSES]:
        rising = scores[:, place].argsort(stable=True)
        rows, has = shown.rows[rising], shown.labels[rising, place]
        missed, false = rows[has][:SHOWN_EXAMPLES].tolist(), rows[~has].flip(0)[:SHOWN_EXAMPLES].tolist()
        worst.append({"class": place, "average_precision": value, "missed": missed, "false": false})
    columns = {"support": found.support.tolist(), "average_precision": average}
    return {"schema": 1, "names": list(task.names), **columns, "worst": worst}
