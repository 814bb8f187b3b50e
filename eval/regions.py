"""Regions: crops of given boxes, named by words, or by prompts learned from proposals (DetPro, 2203.14940)."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from eval.benchmark import BenchmarkPart, Outcome
from eval.data import Data, DataField
from eval.dense_adapted import DenseAdapterPart, adapter_name, check_adapter, check_apart, described, hashes
from eval.hits import hits_file, picture_keys
from eval.prompts import Names, Templates, class_names, class_templates
from eval.view import View
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.regions import BACKGROUND, Crops, Proposals, Regions, RegionTask, jittered
from vlp.adapters.task import Task, short_hash
from vlp.adapters.zeroshot import ZeroShot
from vlp.data.schema import DataError
from vlp.metrics.interval import of_means
from vlp.pictures import read_picture
from vlp.registry import nearest
from vlp.types import BadSampleError


class Boxes(NamedTuple):
    """Given boxes (x0, y0, x1, y1), in pixels of the stored picture, by row of the view, and class of each."""

    rows: Int[Tensor, "n"]
    boxes: Float[Tensor, "n 4"]
    label: Int[Tensor, "n"]


class RegionClasses(BenchmarkPart):
    """acc1 over given boxes, each cut out and seen as a whole picture is; of new classes apart where some are learned.

    objects: a field with a list; `box` of each object is its box, `object_class` is filled from its fields to give the
    class. An object whose class is none of the names is left out and counted. adapter: learns from `train`, around
    whose boxes `proposals` each are drawn by `jitter`; only `learned` classes of names (default: all) are shown to it,
    and boxes of other classes count as nothing. `margin`: of the box's sides, on each side of it.
    """

    task: ClassVar[str] = "region_classification"

    names: Names = None
    templates: Templates = None
    objects: str = "objects"
    box: str = "box"
    object_class: str = "{shape}"
    margin: float = Field(0.0, ge=0)
    adapter: DenseAdapterPart | None = None
    train: DataField | None = None
    learned: tuple[str, ...] | None = None
    proposals: int = Field(10, ge=0)
    jitter: float = Field(0.7, gt=0)
    seed: int = 0
    n_boot: int = Field(1000, ge=1)

    @model_validator(mode="after")
    def _one_way(self) -> RegionClasses:
        if self.adapter is not None:
            check_adapter(self.adapter, "regions", self.train, "train")
        elif self.train is not None or self.learned is not None:
            raise ValueError("train and learned teach an adapter: give one, such as adapter: detpro, or leave them out")
        return self

    def others(self) -> tuple[Data, ...]:
        """The pictures to learn from."""
        return () if self.train is None else (self.train,)

    def apart(self) -> tuple[object, ...]:
        return *super().apart(), self.adapter and adapter_name(self.adapter)

    def measure(self, view: View) -> Outcome:
        """acc1, and acc1_learned, acc1_new and their harmonic mean where some classes are not learned."""
        names, templates = class_names(self.names, view), class_templates(self.templates, view)
        skips, outcome = Counter[str](), Outcome({}, n=0)
        classifier = self._fitted(view, names, templates, outcome, skips)
        view.label_reads["scoring"] += 1
        found = self._boxes(view, names, skips)
        image, kept = self._features(view, found.rows, found.boxes, skips)
        label = found.label[kept]
        order = torch.tensor([classifier.names.index(name) for name in names])
        logits = classifier(image)[:, order]
        own = logits.gather(1, label[:, None])
        hits = (logits >= own).sum(dim=1) == 1  # a tie counts against the model
        rows = found.rows[kept]
        new = torch.tensor([self.learned is not None and names[c] not in self.learned for c in label.tolist()])
        self._add(outcome, hits, rows, new, len(names))
        outcome.n, outcome.skips = len(rows.unique()), {reason: count for reason, count in skips.items() if count}
        outcome.counts = {"images": outcome.n, "regions": len(label), "classes": len(names)}
        outcome.head = "global" if self.adapter is None else adapter_name(self.adapter)
        outcome.templates_hash, outcome.classes_hash = short_hash(templates), short_hash(names)
        texts = [names[c] for c in label.tolist()]
        columns = {"acc1": hits.int().tolist()}
        outcome.files = hits_file("regions", picture_keys(view, rows.tolist()), texts, columns)
        return outcome

    def _add(self, outcome: Outcome, hits: Tensor, rows: Tensor, new: Tensor, classes: int) -> None:
        parts = {"acc1": torch.ones_like(new)}
        if self.learned is not None:
            parts |= {"acc1_learned": ~new, "acc1_new": new}
        for name, chosen in parts.items():
            if chosen.any():
                outcome.metrics[name] = float(hits[chosen].double().mean())
                outcome.chance[name] = 1 / classes
                interval = of_means(hits[chosen].double()[:, None], groups=rows[chosen], n_boot=self.n_boot)
                outcome.ci95[name] = interval[0]
        if {"acc1_learned", "acc1_new"} <= set(outcome.metrics):
            known, unknown = outcome.metrics["acc1_learned"], outcome.metrics["acc1_new"]
            outcome.metrics["acc1_harmonic"] = 2 * known * unknown / (known + unknown) if known + unknown else 0.0

    def _fitted(
        self, view: View, names: tuple[str, ...], templates: tuple[str, ...], outcome: Outcome, skips: Counter[str]
    ) -> LinearClassifier:
        if self.adapter is None or self.train is None:
            return ZeroShot().fit(view.encoder, Task(names, templates))
        learned = self.learned or names
        for name in learned:
            if name not in names:
                raise ValueError(f'{view.dataset}: learned: "{name}" is no class{nearest(name, names)}')
        train = view.beside(self.train)
        check_apart(view, {"train": train})
        train.label_reads["learning"] += 1
        told = Counter[str]()
        regions = self._proposed(train, tuple(learned), told)
        skips.update({f"train_{reason}": count for reason, count in told.items()})
        others = tuple(name for name in names if name not in learned)
        task = RegionTask(learned, others, templates, support=regions, seed=self.seed)
        classifier: LinearClassifier = self.adapter.fit(view.encoder, task)
        outcome.selection = {**described(classifier), **hashes({"train": train}), "train_regions": len(regions)}
        return classifier

    def _proposed(self, view: View, learned: tuple[str, ...], told: Counter[str]) -> Regions:
        """Boxes and proposals around them, of each picture with a box of a class that is learned."""
        given = self._boxes(view, learned, told)
        generator = torch.Generator().manual_seed(self.seed)
        rows, made = list[Tensor](), list[Proposals]()
        for row in given.rows.unique().tolist():
            own = given.rows == row
            height, width = self._picture(view, row).shape[-2:]
            made.append(
                jittered(
                    given.boxes[own],
                    given.label[own],
                    size=(height, width),
                    each=self.proposals,
                    jitter=self.jitter,
                    generator=generator,
                )
            )
            rows.append(torch.full((len(made[-1].boxes),), row))
        image, kept = self._features(view, torch.cat(rows), torch.cat([one.boxes for one in made]), told)
        label, iou = torch.cat([one.label for one in made]), torch.cat([one.iou for one in made])
        label = torch.where(iou > 0, label, BACKGROUND)
        return Regions(image, label[kept], iou[kept])

    def _boxes(self, view: View, names: tuple[str, ...], skips: Counter[str]) -> Boxes:
        places, rows, boxes, label = {name: c for c, name in enumerate(names)}, [], [], []
        for row in range(len(view.encoded.kept)):
            found = view.fields(row, (self.objects,)).find(self.objects)
            if not isinstance(found, list):
                skips["no_objects"] += 1
                continue
            for facts in found:
                try:
                    name, box = self._object(facts)
                except BadSampleError as error:
                    skips[error.reason] += 1
                    continue
                if name not in places:
                    skips["other_class"] += 1
                    continue
                rows.append(row)
                boxes.append(box)
                label.append(places[name])
        if not rows:
            raise DataError(f"{view.dataset}: no box of a known class in {self.objects}: {dict(skips)}")
        return Boxes(torch.tensor(rows), torch.tensor(boxes), torch.tensor(label))

    def _object(self, facts: Any) -> tuple[str, list[float]]:
        try:
            name, box = self.object_class.format(**facts), [float(value) for value in facts[self.box]]
        except (KeyError, TypeError, ValueError) as error:
            raise BadSampleError("bad_object", f"{facts!r}: {error}") from None
        if len(box) != 4 or box[2] <= box[0] or box[3] <= box[1]:
            raise BadSampleError("bad_box", f"{box}: give x0, y0, x1, y1")
        return name, box

    def _features(self, view: View, rows: Tensor, boxes: Tensor, skips: Counter[str]) -> tuple[Tensor, Tensor]:
        """Features of the crops that could be read, and which ones these are."""
        wanted = list(zip(rows.tolist(), boxes.tolist()))
        made = view.encoder.images(Crops(lambda row: self._picture(view, row), wanted, margin=self.margin))
        skips.update({f"crop_{reason}": count for reason, count in made.reasons().items()})
        return made.features, torch.tensor(made.kept)

    def _picture(self, view: View, row: int) -> Tensor:
        """uint8 [3, h, w] as it is stored."""
        found: Tensor = view.encoder.dual.transform.read(read_picture(view.opened.records[view.encoded.kept[row]]))
        return found
