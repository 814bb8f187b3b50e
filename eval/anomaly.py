"""Anomalies by words for a flaw and for its absence (WinCLIP, arXiv 2303.14814), or by what an adapter learned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import interpolate

from eval.anomaly_judges import ByAdapter, ByWords, flat
from eval.anomaly_table import Numbers, Scored, Seen, table
from eval.anomaly_words import ANOMALOUS_STATES, NORMAL_STATES, TEMPLATES, Prompts
from eval.benchmark import BenchmarkPart, Outcome
from eval.data import Data, DataField
from eval.dense_adapted import DenseAdapterPart, adapter_name, check_adapter, check_apart, described, hashes, patch_maps
from eval.identity import label_of
from eval.prompts import class_templates
from eval.view import View
from vlp.adapters.dense_task import DenseExamples, DenseTask, PatchMaps
from vlp.adapters.task import short_hash
from vlp.data.decode import decode
from vlp.data.schema import DataError
from vlp.metrics.anomaly import AnomalyDetection, AnomalyLocalization
from vlp.metrics.multilabel import percentiles
from vlp.models.dense import grid_of
from vlp.types import BadSampleError

Words = tuple[str, ...] | str


class Anomaly(BenchmarkPart):
    """AUROC, average precision and best F1 of pictures, and with `mask` those of pixels and their per-region overlap.

    score = softmax over (normal, anomalous) of scale * cosine with the mean of the prompts' features, which are states
    of the object in templates. Its map is the same of the projected patches; WinCLIP's windows are not made, and
    patches of a model trained without them know little of words. With `normal`, data of normal pictures, the map is the
    mean with each patch's (1 - cosine) / 2 to the nearest of theirs, and the score the mean with the most of these.

    A picture is normal whose `label` is one of `good` in any case. Maps are enlarged to the model's size, to which
    masks (a member; not 0: anomalous) are brought as pictures are. `object_name` fills the slot of the states;
    `object_field` names a field with each picture's object: prompts, references and numbers are then of each object,
    and numbers without its name are means over objects, as papers print them for MVTec AD and VisA.

    how: which patches, see `vlp.models.dense`. adapter: learned from `auxiliary`, data of other objects or of another
    look with the same fields and masks; `normal` are its prompts, for adapters that compare. Its words are those of
    `object_name`, whatever the object. `seed`: of what it draws.
    """

    task: ClassVar[str] = "anomaly_detection"

    label: str = "class"
    good: tuple[str, ...] = ("good", "normal", "0", "false")
    object_name: str = "object"
    object_field: str | None = None
    normal_states: Words = NORMAL_STATES
    anomalous_states: Words = ANOMALOUS_STATES
    templates: Words = TEMPLATES
    normal: DataField | None = None
    mask: str | None = None
    how: Literal["maskclip", "tokens"] = "tokens"
    adapter: DenseAdapterPart | None = None
    auxiliary: DataField | None = None
    seed: int = 0
    limit: float = Field(0.3, gt=0, le=1)  # share of normal pixels up to which per-region overlap counts
    n_boot: int = Field(1000, ge=1)

    @model_validator(mode="after")
    def _one_way(self) -> Anomaly:
        if self.adapter is not None:
            check_adapter(self.adapter, "anomalies", self.auxiliary, "auxiliary")
            if self.mask is None:
                raise ValueError(f"adapter: {adapter_name(self.adapter)} learns from masks; give `mask`, their member")
        elif self.auxiliary is not None:
            raise ValueError("auxiliary teaches an adapter: give one, such as adapter: adaptclip, or leave it out")
        return self

    def others(self) -> tuple[Data, ...]:
        """The normal and the auxiliary pictures."""
        return tuple(data for data in (self.normal, self.auxiliary) if data is not None)

    def apart(self) -> tuple[object, ...]:
        return *super().apart(), self.normal is None, self.how, self.adapter and adapter_name(self.adapter)

    def measure(self, view: View) -> Outcome:
        """Numbers of pictures and pixels; intervals draw pictures, of each object apart, normal and anomalous apart."""
        words = (class_templates(given, view) for given in (self.templates, self.normal_states, self.anomalous_states))
        prompts, outcome = Prompts(*words), Outcome({}, n=0)
        judge = self._by_words(view, prompts) if self.adapter is None else self._by_adapter(view, prompts, outcome)
        seen, skips = self._seen(view, purpose="scoring")
        found = {}
        for name in sorted({one.object for one in seen}):
            own = [one for one in seen if one.object == name]
            scores, maps = judge(name, [one.row for one in own])
            found[name] = Scored(own, scores, maps, self._numbers(view, own, scores, maps, skips))
        if self.normal:
            normal = view.beside(self.normal)
            skips.update({f"normal_{reason}": count for reason, count in self._objects(normal)[1].items()})
            outcome.selection |= {"normal_hash": normal.opened.records.fingerprint}
        outcome.n, outcome.skips = len(seen), {reason: count for reason, count in skips.items() if count}
        outcome.counts = {"images": len(seen), "anomalous": sum(one.anomalous for one in seen), "objects": len(found)}
        outcome.head, outcome.templates_hash, outcome.classes_hash = judge.head, prompts.hash, short_hash(list(found))
        self._add_numbers(outcome, found, view)
        places = next(iter(found.values())).maps
        file = table(found, grid=None if places is None else grid_of(places.shape[1], _size(view)))
        outcome.files = {f"{self.stem()}.json": file}
        outcome.shown = {one["row"] for one in [*file["examples"], *file["spread"]]}
        return outcome

    def stem(self) -> str:
        """The name of the file, which tells ways to score apart."""
        if self.adapter is not None:
            return f"anomaly_{adapter_name(self.adapter)}{'_reference' if self.normal else ''}"
        return f"anomaly{'_reference' if self.normal else ''}{'' if self.how == 'tokens' else f'_{self.how}'}"

    def _by_words(self, view: View, prompts: Prompts) -> ByWords:
        if self.mask is None and self.normal is None:
            return ByWords(view, prompts, None, None)
        patches, reference = self._patches(view), None
        if self.normal is not None:
            other = self._apart(view, self.normal)
            tokens = self._patches(other)
            reference = {name: flat(tokens[rows]) for name, rows in self._objects(other)[0].items()}
        return ByWords(view, prompts, patches, reference)

    def _patches(self, view: View) -> Tensor:
        """Patches [N, P, D] of a view's pictures; those of a reducer stand nowhere, so none are reduced."""
        if self.how == "tokens":
            return view.image_tokens(reduce=False).tokens
        return patch_maps(view, self.how, hidden=False).patches

    def _by_adapter(self, view: View, prompts: Prompts, outcome: Outcome) -> ByAdapter:
        assert self.adapter is not None
        assert self.auxiliary is not None
        views = {"auxiliary": view.beside(self.auxiliary)}
        views |= {} if self.normal is None else {"normal": self._apart(view, self.normal)}
        check_apart(view, views)
        maps = {name: patch_maps(own, self.how, hidden=self.adapter.hidden) for name, own in views.items()}
        support, told = self._examples(views["auxiliary"], maps["auxiliary"])
        text = prompts.sides(view, self.object_name).float()
        task = DenseTask(("normal", "anomalous"), text=text, support=support, seed=self.seed)
        classifier = self.adapter.fit(view.encoder, task)
        outcome.selection = {**described(classifier), **hashes(views), "auxiliary_images": len(support)}
        outcome.selection |= {f"auxiliary_{reason}": count for reason, count in told.items()}
        normal = None
        if self.normal is not None:
            normal = {name: maps["normal"].only(rows) for name, rows in self._objects(views["normal"])[0].items()}
        own = patch_maps(view, self.how, hidden=self.adapter.hidden)
        return ByAdapter(view, classifier, own, normal, name=adapter_name(self.adapter))

    def _examples(self, other: View, maps: PatchMaps) -> tuple[DenseExamples, Counter[str]]:
        """Auxiliary pictures with masks at the model's size, and why others were left out."""
        seen, told = self._seen(other, purpose="learning")
        masks, kept = list[Tensor](), list[Seen]()
        for one in seen:
            try:
                masks.append(self._truth(other, one).short())
                kept.append(one)
            except BadSampleError as error:
                told[error.reason] += 1
        label = torch.tensor([int(one.anomalous) for one in kept])
        rows = [one.row for one in kept]
        return DenseExamples(maps.only(rows), torch.stack(masks), label, tuple(one.object for one in kept)), told

    def _seen(self, view: View, *, purpose: str) -> tuple[list[Seen], Counter[str]]:
        view.label_reads[purpose] += 1
        good, seen, skips = {word.lower() for word in self.good}, list[Seen](), Counter[str]()
        for row in range(len(view.encoded.kept)):
            try:
                fields = view.fields(row, (self.label, *filter(None, (self.object_field,))))
                anomalous = label_of(fields, self.label).lower() not in good
                name = label_of(fields, self.object_field) if self.object_field else self.object_name
            except BadSampleError as error:
                skips[error.reason] += 1
                continue
            seen.append(Seen(row, name, anomalous))
        if not seen:
            raise DataError(f"{view.dataset}: no picture has a label in {self.label}: {dict(skips)}")
        return seen, skips

    def _apart(self, view: View, normal: Data) -> View:
        other = view.beside(normal)
        if other.opened.records.fingerprint == view.opened.records.fingerprint:
            raise DataError(f"{view.dataset}: normal are the pictures of data, which would be compared with themselves")
        return other

    def _objects(self, normal: View) -> tuple[dict[str, list[int]], Counter[str]]:
        """Rows of the normal pictures of each object, and why others were left out."""
        found, skips = dict[str, list[int]](), Counter[str](normal.encoded.reasons())
        for row in range(len(normal.encoded.kept)):
            try:
                field = self.object_field
                name = label_of(normal.fields(row, (field,)), field) if field else self.object_name
            except BadSampleError as error:
                skips[error.reason] += 1
                continue
            found.setdefault(name, []).append(row)
        return found, skips

    def _numbers(
        self, view: View, seen: Sequence[Seen], scores: Tensor, maps: Tensor | None, skips: Counter[str]
    ) -> list[Numbers]:
        pictures = AnomalyDetection()
        pictures.update(scores, torch.tensor([one.anomalous for one in seen]))
        if maps is None or self.mask is None:
            return [pictures]
        pixels, size = AnomalyLocalization(self.limit), _size(view)
        lost = Counter[str]()
        for one, patches in zip(seen, maps.view(len(maps), 1, 1, *grid_of(maps.shape[1], size))):
            try:
                truth = self._truth(view, one)
            except BadSampleError as error:
                lost[error.reason] += 1
                continue
            pixels.update(interpolate(patches, size=size, mode="bilinear", align_corners=False)[0], truth[None])
        skips.update(lost)
        if lost and sum(lost.values()) == sum(one.anomalous for one in seen):
            raise DataError(
                f"{view.dataset}: no anomalous picture of {seen[0].object} has a mask that shows something in "
                f"{self.mask}: {dict(lost)}; without `mask` only pictures are scored"
            )
        return [pictures, pixels]

    def _truth(self, view: View, one: Seen) -> Bool[Tensor, "H W"]:
        """Anomalous pixels at the model's size; BadSampleError where there is no mask, or nothing of it is seen."""
        size = _size(view)
        if not one.anomalous:
            return torch.zeros(size, dtype=torch.bool)
        assert self.mask is not None
        raw = view.fields(one.row, (), raw=(self.mask,)).members.get(self.mask)
        if raw is None:
            raise BadSampleError("no_mask", f"no {self.mask}")
        try:
            marked = (decode(raw) > 0).any(dim=0)
        except BadSampleError as error:
            raise BadSampleError(f"mask_{error.reason}", error.detail) from error
        how = {"resize_mode": view.resize_mode, "interpolation": "bilinear", "fill": 0}
        fitted = view.encoder.dual.transform.model_copy(update=how).fit((marked * 255).byte().repeat(3, 1, 1))
        truth: Tensor = fitted[0] > 127
        if not truth.any():
            raise BadSampleError("mask_not_seen", "cropped away, or smaller than a pixel at the model's size")
        return truth

    def _add_numbers(self, outcome: Outcome, found: dict[str, Scored], view: View) -> None:
        """Of every object with its name behind, and means over objects."""
        for kind in range(max(len(scored.numbers) for scored in found.values())):
            values, guessed, drawn = [], [], []
            for seed, (name, scored) in enumerate(found.items()):
                numbers = scored.numbers[kind]
                try:
                    values.append(numbers.compute())
                except ValueError as error:
                    raise DataError(f"{view.dataset}: {name}: {error}") from None
                guessed.append(numbers.chance())
                parts = list(numbers.draws(n_boot=self.n_boot, seed=seed))  # objects are drawn independently
                drawn.append({key: torch.cat([part[key] for part in parts]) for key in values[-1]})
            for key in values[0]:
                outcome.metrics[key] = sum(each[key] for each in values) / len(values)
                outcome.chance[key] = sum(each[key] for each in guessed) / len(guessed)
                outcome.ci95[key] = percentiles(torch.stack([draws[key] for draws in drawn]).mean(dim=0))
            for place, name in enumerate(found if self.object_field else ()):
                outcome.metrics |= {f"{key}_{name}": value for key, value in values[place].items()}
                outcome.chance |= {f"{key}_{name}": value for key, value in guessed[place].items()}
                outcome.ci95 |= {f"{key}_{name}": percentiles(draws) for key, draws in drawn[place].items()}


def _size(view: View) -> tuple[int, int]:
    height, width = view.encoder.dual.transform.size
    return height, width
