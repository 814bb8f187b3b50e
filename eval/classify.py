"""Classification by an adapter, zero-shot unless another one is named."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from eval.adapted import Adapted, Fitted
from eval.benchmark import Outcome
from eval.heads import file_name
from eval.hits import hits_file, picture_keys
from eval.view import Classes, View
from vlp.adapters.task import Task
from vlp.data.labels import Labels
from vlp.metrics.accuracy import Accuracy
from vlp.metrics.calibration import Calibration
from vlp.metrics.interval import of_means

SHOWN_PAIRS, SHOWN_CLASSES, SHOWN_EXAMPLES = 20, 5, 4


class Classification(Adapted):
    """Accuracy on pictures with one class each; `eval.adapted` says where names and templates come from."""

    task: ClassVar[str] = "zeroshot_classification"

    label: str = "cls"  # member or JSON field with the class index or class name
    bins: int = Field(15, ge=1)

    def measure(self, view: View) -> Outcome:
        """acc1, acc5, mean_per_class_recall and calibration."""
        return self.scored(view, self.fitted(view))

    def scored(self, view: View, fitted: Fitted) -> Outcome:
        """The same by a classifier that was fitted before."""
        task, classifier, inputs = fitted
        # a set with repeated class names can only have indices as labels
        known = tuple(task.names) if len(set(task.names)) == len(task.names) and all(task.names) else ()
        classes = view.labels(Labels(field=self.label, classes=known), purpose="scoring")
        accuracy, calibration = Accuracy(len(task.names)), Calibration(self.bins)
        for part, logits in self.logits(classifier, inputs, classes.rows):
            accuracy.update(logits, classes.label[part])
            calibration.update(logits, classes.label[part])
        confusion = _confusion(accuracy, classes, task)
        found = Outcome(
            metrics={**accuracy.compute(), **calibration.compute()},
            n=len(classes.rows),
            counts={"images": len(classes.rows), "classes": len(task.names), "templates": len(task.templates)},
            ci95=accuracy.intervals(n_boot=self.n_boot),
            chance=accuracy.chance(),
            head=getattr(classifier, "head", None),
            templates_hash=task.templates_hash,
            classes_hash=task.names_hash,
            skips=classes.skips,
            items={"names": list(task.names), "labels": _labels(classes, len(view.image))},
            files={
                file_name(self.stem("confusion"), fitted.head): confusion,
                file_name(self.stem("reliability"), fitted.head): _reliability(calibration),
                **self._hits(view, accuracy, classes, fitted),
            },
            shown=_shown(confusion),
        )
        return _with_distance(found, classifier, accuracy, classes, self.n_boot)

    def _hits(self, view: View, accuracy: Accuracy, classes: Classes, fitted: Fitted) -> dict[str, Any]:
        """Whether each picture's class was first, and among the first five."""
        items = [fitted.task.names[label] for label in classes.label.tolist()]
        columns = {name: hit.tolist() for name, hit in accuracy.hits().items()}
        keys = picture_keys(view, classes.rows.tolist())
        return hits_file(self.stem("zeroshot"), keys, items, columns, head=fitted.head)


def _with_distance(found: Outcome, classifier: Any, accuracy: Accuracy, classes: Classes, n_boot: int) -> Outcome:
    """With mean_squared_distance where the classifier knows how far labels are from each other (Loki)."""
    squared = getattr(classifier, "squared", None)
    if squared is not None:
        each = squared[classes.label, accuracy.predictions()].double()
        found.metrics["mean_squared_distance"] = float(each.mean())
        found.ci95["mean_squared_distance"] = of_means(each[:, None], n_boot=n_boot)[0]
        found.chance["mean_squared_distance"] = float(squared[classes.label].double().mean())
        found.lower_is_better |= {"mean_squared_distance"}
    return found


def _confusion(accuracy: Accuracy, classes: Classes, task: Task) -> dict[str, Any]:
    """The most frequent mistakes, with some pictures of each."""
    table, counts = accuracy.table(), accuracy.confusion()
    counts.fill_diagonal_(0)
    order = counts.flatten().topk(min(SHOWN_PAIRS, counts.numel()))
    predicted = accuracy.predictions()
    pairs = []
    for cell, count in zip(order.indices.tolist(), order.values.tolist()):
        if count:
            true, guess = divmod(cell, len(task.names))
            rows = classes.rows[(classes.label == true) & (predicted == guess)]
            examples = rows[:SHOWN_EXAMPLES].tolist()
            pairs.append({"true": true, "predicted": guess, "count": count, "examples": examples})
    recall = [float(value) if support else None for value, support in zip(table.recall, table.support)]
    found = {"names": list(task.names), "support": table.support.tolist(), "recall": recall, "pairs": pairs}
    return {"schema": 1, **found, **_extremes(recall, predicted, classes)}


def _extremes(recall: list[float | None], predicted: Tensor, classes: Classes) -> dict[str, list[dict[str, Any]]]:
    """The classes found worst, with pictures taken for others, and best, with pictures that were found; none twice."""
    known = sorted((value, place) for place, value in enumerate(recall) if value is not None)
    worst = [place for value, place in known if value < 1][:SHOWN_CLASSES]
    best = [place for value, place in known[::-1] if value > 0 and place not in worst][:SHOWN_CLASSES]

    def pictures(place: int, *, found: bool) -> dict[str, Any]:
        chosen = (classes.label == place) & ((predicted == place) == found)
        places = chosen.nonzero().flatten()[:SHOWN_EXAMPLES].tolist()
        examples = [{"row": int(classes.rows[one]), "predicted": int(predicted[one])} for one in places]
        return {"class": place, "examples": examples}

    return {
        "worst": [pictures(place, found=False) for place in worst],
        "best": [pictures(place, found=True) for place in best],
    }


def _shown(confusion: dict[str, Any]) -> set[int]:
    mixed = {row for pair in confusion["pairs"] for row in pair["examples"]}
    return mixed | {one["row"] for key in ("worst", "best") for each in confusion[key] for one in each["examples"]}


def _reliability(calibration: Calibration) -> dict[str, Any]:
    """The bins of the top probability; null where a bin is empty."""
    table = calibration.table()
    means = {"confidence": table.confidence, "accuracy": table.accuracy}
    columns = {name: [None if math.isnan(one) else one for one in column.tolist()] for name, column in means.items()}
    return {"schema": 1, "bins": calibration.bins, "count": table.samples.tolist(), **columns}


def _labels(classes: Classes, count: int) -> list[int | None]:
    labels: list[int | None] = [None] * count
    for row, label in zip(classes.rows.tolist(), classes.label.tolist()):
        labels[row] = label
    return labels
