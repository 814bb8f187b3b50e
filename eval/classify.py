"""Classification by an adapter, zero-shot unless another one is named."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from eval.benchmark import BenchmarkPart, Outcome
from eval.data import locate, located
from eval.heads import Head, file_name
from eval.hits import hits_file, picture_keys
from eval.view import Classes, View
from vlp.adapters.task import Task
from vlp.adapters.zeroshot import ZeroShot
from vlp.data.stages import Labels
from vlp.metrics.accuracy import Accuracy
from vlp.metrics.calibration import Calibration
from vlp.metrics.interval import of_means
from vlp.registry import Named
from vlp.text.templates import checked, read_names, read_templates, template_set

AdapterPart = Annotated[Any, Named("vlp.adapters:ADAPTERS")]
TOKEN_BATCH = 256  # pictures whose tokens are scored at once, since they take so much more room
SHOWN_PAIRS, SHOWN_CLASSES, SHOWN_EXAMPLES = 20, 5, 4


class Classification(BenchmarkPart):
    """Accuracy on pictures with one class each.

    `names`: the class names, in label order where labels are numbers, or a file with them; a picture whose label is
    none of them is left out and counted. `templates`: a set's name, a file, or the templates.
    What is given here is used; only what is not given is taken from the data set's folder, and then `photo`.
    """

    task: ClassVar[str] = "zeroshot_classification"

    label: str = "cls"  # member or JSON field with the class index or class name
    names: tuple[str, ...] | str | None = None
    templates: tuple[str, ...] | str | None = None
    adapter: AdapterPart = ZeroShot()
    bins: int = Field(15, ge=1)
    batch: int = Field(4096, ge=1)  # pictures scored at once
    n_boot: int = Field(1000, ge=1)

    def measure(self, view: View) -> Outcome:
        """acc1, acc5, mean_per_class_recall and calibration."""
        task = Task(class_names(self.names, view), class_templates(self.templates, view))
        classifier = located(self.adapter, view.folders).fit(view.encoder, task)
        by_tokens = classifier.needs == "tokens"
        inputs: Any = view.image_tokens().rows if by_tokens else view.image.__getitem__  # before one asks for labels
        # a set with repeated class names can only have indices as labels
        known = tuple(task.names) if len(set(task.names)) == len(task.names) and all(task.names) else ()
        classes = view.labels(Labels(field=self.label, classes=known), purpose="scoring")
        accuracy, calibration = Accuracy(len(task.names)), Calibration(self.bins)
        step = min(self.batch, TOKEN_BATCH) if by_tokens else self.batch
        for rows, label in zip(classes.rows.split(step), classes.label.split(step)):
            logits = classifier(inputs(rows))
            accuracy.update(logits, label)
            calibration.update(logits, label)
        confusion, head = _confusion(accuracy, classes, task), getattr(classifier, "head", None)
        by: Head = "tokens" if head == "tokens" else "global"
        found = Outcome(
            metrics={**accuracy.compute(), **calibration.compute()},
            n=len(classes.rows),
            counts={"images": len(classes.rows), "classes": len(task.names), "templates": len(task.templates)},
            ci95=accuracy.intervals(n_boot=self.n_boot),
            chance=accuracy.chance(),
            head=head,
            templates_hash=task.templates_hash,
            classes_hash=task.names_hash,
            skips=classes.skips,
            items={"names": list(task.names), "labels": _labels(classes, len(view.image))},
            files={
                file_name("confusion", by): confusion,
                file_name("reliability", by): _reliability(calibration),
                **_hits(view, accuracy, classes, task, by),
            },
            shown=_shown(confusion),
        )
        return _with_distance(found, classifier, accuracy, classes, self.n_boot)


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


def class_names(given: tuple[str, ...] | str | None, view: View) -> tuple[str, ...]:
    """The names given or in the file given, else those of the data set's folder."""
    if isinstance(given, str):
        return read_names(locate(given, folders=view.folders))
    names = given or view.opened.names
    if names is None:
        raise ValueError(
            f"{view.dataset}: no class names: the data set's folder has none (classnames.txt), so give "
            "`names: [...]` or `names: FILE` in the suite"
        )
    return names


def class_templates(given: tuple[str, ...] | str | None, view: View) -> tuple[str, ...]:
    """The templates, or set or file of them, given, else those of the data set's folder, else `photo`."""
    if given is None:
        return view.opened.templates or template_set("photo")
    if isinstance(given, str):
        is_file = given.endswith((".txt", ".json"))
        return read_templates(locate(given, folders=view.folders)) if is_file else template_set(given)
    return checked(given, where=f"{view.dataset}: templates")


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


def _hits(view: View, accuracy: Accuracy, classes: Classes, task: Task, head: Head) -> dict[str, Any]:
    """Whether each picture's class was first, and among the first five."""
    items = [task.names[label] for label in classes.label.tolist()]
    columns = {name: hit.tolist() for name, hit in accuracy.hits().items()}
    return hits_file("zeroshot", picture_keys(view, classes.rows.tolist()), items, columns, head=head)


def _labels(classes: Classes, count: int) -> list[int | None]:
    labels: list[int | None] = [None] * count
    for row, label in zip(classes.rows.tolist(), classes.label.tolist()):
        labels[row] = label
    return labels
