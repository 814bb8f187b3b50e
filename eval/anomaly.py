"""Zero-shot anomaly detection: words for a flaw against words for its absence (WinCLIP, arXiv 2303.14814)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from eval.benchmark import BenchmarkPart, Outcome
from eval.data import Data, DataField
from eval.identity import label_of
from eval.prompts import class_templates
from eval.view import View
from vlp.adapters.task import short_hash
from vlp.data.decode import decode
from vlp.data.schema import DataError
from vlp.metrics.anomaly import AnomalyDetection, AnomalyLocalization
from vlp.metrics.multilabel import percentiles
from vlp.text.templates import fill
from vlp.token_store import ImageTokens
from vlp.types import BadSampleError

# Words of WinCLIP's appendix: states of the object, and sentences around them
NORMAL_STATES = (
    "{}", "flawless {}", "perfect {}", "unblemished {}", "{} without flaw", "{} without defect", "{} without damage",
)  # fmt: skip
ANOMALOUS_STATES = ("damaged {}", "{} with flaw", "{} with defect", "{} with damage")
TEMPLATES = (
    *(f"a {kind} photo of {article} {{}}."
      for kind in ("cropped", "close-up", "bright", "dark", "jpeg corrupted", "blurry") for article in ("the", "a")),
    *(f"a photo of {article} {size}{{}}." for size in ("", "small ", "large ") for article in ("the", "a")),
    *(f"a photo of {article} {{}} for {what}."
      for what in ("visual inspection", "anomaly detection") for article in ("the", "a")),
)  # fmt: skip
SHOWN = 6  # pictures of each kind of mistake

Words = tuple[str, ...] | str
Numbers = AnomalyDetection | AnomalyLocalization


class Prompts(NamedTuple):
    """Templates with a slot for a state, and states with a slot for the object."""

    templates: tuple[str, ...]
    normal: tuple[str, ...]
    anomalous: tuple[str, ...]

    def direction(self, view: View, name: str) -> Float[Tensor, "D"]:
        """The mean feature of an object's anomalous prompts, of unit norm, minus that of the normal ones."""
        filled = [[fill(state, name) for state in states] for states in (self.normal, self.anomalous)]
        sides = [[fill(template, state) for state in states for template in self.templates] for states in filled]
        features = view.text_features([*sides[0], *sides[1]]).double()
        normal, anomalous = (normalize(part.mean(0), dim=0) for part in features.split([len(side) for side in sides]))
        return anomalous - normal


class Seen(NamedTuple):
    """A picture whose label could be read."""

    row: int
    object: str
    anomalous: bool


class Scored(NamedTuple):
    """The pictures of one object."""

    seen: list[Seen]
    scores: Float[Tensor, "n"]
    maps: Float[Tensor, "n P"] | None  # by patch, row by row
    numbers: list[Numbers]


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
    limit: float = Field(0.3, gt=0, le=1)  # share of normal pixels up to which per-region overlap counts
    n_boot: int = Field(1000, ge=1)

    def others(self) -> tuple[Data, ...]:
        """The normal pictures."""
        return () if self.normal is None else (self.normal,)

    def apart(self) -> tuple[object, ...]:
        return *super().apart(), self.normal is None

    def measure(self, view: View) -> Outcome:
        """Numbers of pictures and pixels; intervals draw pictures, of each object apart, normal and anomalous apart."""
        tokens = view.image_tokens(reduce=False) if self.mask or self.normal else None  # a reducer's stand nowhere
        words = (class_templates(given, view) for given in (self.templates, self.normal_states, self.anomalous_states))
        prompts = Prompts(*words)
        seen, skips = self._seen(view)
        references = self._references(view, self.normal, skips) if self.normal else {}
        found = {}
        for name in sorted({one.object for one in seen}):
            own = [one for one in seen if one.object == name]
            if self.normal and name not in references:
                raise DataError(f'{view.dataset}: normal: has no picture of "{name}", only of {sorted(references)}')
            scores, maps = self._scores(view, own, prompts, tokens, references.get(name))
            numbers = self._numbers(view, own, scores, maps, skips)
            found[name] = Scored(own, scores, maps, numbers)
        outcome = Outcome({}, n=len(seen), skips={reason: count for reason, count in skips.items() if count})
        outcome.counts = {"images": len(seen), "anomalous": sum(one.anomalous for one in seen), "objects": len(found)}
        outcome.head = "global"
        if self.normal:
            outcome.head = "global and nearest normal patch"
            outcome.selection |= {"normal_hash": view.beside(self.normal).opened.records.fingerprint}
        outcome.templates_hash = short_hash([word for words in prompts for word in words])
        outcome.classes_hash = short_hash(list(found))
        self._add_numbers(outcome, found, view)
        file = _table(found, grid=_grid(tokens.tokens.shape[1], _size(view)) if tokens else None)
        outcome.files = {"anomaly_reference.json" if self.normal else "anomaly.json": file}
        outcome.shown = {one["row"] for one in file["examples"]}
        return outcome

    def _seen(self, view: View) -> tuple[list[Seen], Counter[str]]:
        view.label_reads["scoring"] += 1
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

    def _references(self, view: View, normal: Data, skips: Counter[str]) -> dict[str, Tensor]:
        """Patches [R, D] of the normal pictures of each object."""
        other = view.beside(normal)
        if other.opened.records.fingerprint == view.opened.records.fingerprint:
            raise DataError(f"{view.dataset}: normal are the pictures of data, which would be compared with themselves")
        tokens = other.image_tokens(reduce=False)
        skips.update({f"normal_{reason}": count for reason, count in other.encoded.reasons().items()})
        found: dict[str, list[Tensor]] = {}
        for row, patches in enumerate(tokens.tokens):
            try:
                field = self.object_field
                name = label_of(other.fields(row, (field,)), field) if field else self.object_name
            except BadSampleError as error:
                skips[f"normal_{error.reason}"] += 1
                continue
            found.setdefault(name, []).append(patches.float())
        return {name: torch.cat(patches) for name, patches in found.items()}

    def _scores(
        self,
        view: View,
        seen: Sequence[Seen],
        prompts: Prompts,
        tokens: ImageTokens | None,
        reference: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Scores [n] of pictures, and [n, P] of patches where these are asked for."""
        rows = torch.tensor([one.row for one in seen])
        direction, scale = prompts.direction(view, seen[0].object), view.encoder.scale
        scores = torch.sigmoid(scale * view.image[rows].double() @ direction)  # of two, softmax is the difference's
        if tokens is None:
            return scores, None
        maps, device = torch.empty(len(rows), tokens.tokens.shape[1]), view.encoder.device
        known = None if reference is None else reference.to(device)
        for place, row in enumerate(rows.tolist()):
            patches = tokens.tokens[row].float()
            maps[place] = torch.sigmoid(scale * patches.double() @ direction)
            if known is not None:
                far = ((1 - (patches.to(device) @ known.T).amax(dim=1)) / 2).cpu()
                maps[place] = (maps[place] + far) / 2
                scores[place] = (scores[place] + far.max()) / 2
        return scores, maps

    def _numbers(
        self, view: View, seen: Sequence[Seen], scores: Tensor, maps: Tensor | None, skips: Counter[str]
    ) -> list[Numbers]:
        pictures = AnomalyDetection()
        pictures.update(scores, torch.tensor([one.anomalous for one in seen]))
        if maps is None or self.mask is None:
            return [pictures]
        pixels, size = AnomalyLocalization(self.limit), _size(view)
        lost = Counter[str]()
        for one, patches in zip(seen, maps.view(len(maps), 1, 1, *_grid(maps.shape[1], size))):
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


def _grid(patches: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of square patches that tile a picture of this size."""
    height, width = size
    down = round(math.sqrt(patches * height / width))
    if down * (across := patches // max(1, down)) != patches:
        raise ValueError(f"{patches} patches do not tile a picture of {height} x {width}; maps need a grid")
    return down, across


def _table(found: dict[str, Scored], *, grid: tuple[int, int] | None) -> dict[str, Any]:
    """All scores; and the normal pictures that score most and anomalous ones that score least, with their maps."""
    columns: dict[str, list[Any]] = {"rows": [], "objects": [], "anomalous": [], "scores": []}
    kinds: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for scored in found.values():
        for place, (one, score) in enumerate(zip(scored.seen, scored.scores.tolist())):
            for column, value in zip(columns.values(), (one.row, one.object, one.anomalous, score)):
                column.append(value)
            shown = {"row": one.row, "object": one.object, "anomalous": one.anomalous, "score": score}
            kinds[one.anomalous].append({**shown, "map": None if scored.maps is None else scored.maps[place]})
    normal, anomalous = (sorted(kind, key=lambda one: float(one["score"])) for kind in kinds)
    examples = [*normal[::-1][:SHOWN], *anomalous[:SHOWN]]
    for shown in examples:
        shown["map"] = None if shown["map"] is None else [round(value, 4) for value in shown["map"].tolist()]
    return {"schema": 1, "grid": None if grid is None else list(grid), **columns, "examples": examples}
