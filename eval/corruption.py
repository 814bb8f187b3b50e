"""Classification of corrupted pictures (ImageNet-C, Hendrycks & Dietterich, arXiv 1903.12261), made on the fly."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from eval.adapted import Inputs
from eval.benchmark import Outcome
from eval.classify import Classification
from eval.data import locate
from eval.heads import Head, file_name
from eval.hits import picture_keys
from eval.view import View
from vlp.data.corrupt import IMAGENET_C, SEVERITIES, VERSION, check, corrupt
from vlp.data.corrupt.sheet import contact_sheet
from vlp.data.schema import DataError
from vlp.metrics.accuracy import Accuracy
from vlp.metrics.interval import Interval, of_means
from vlp.metrics.shifts import corruption_errors, corruption_intervals
from vlp.pictures import Pictures, read_picture
from vlp.registry import nearest

Transform = Callable[[Any], Tensor]


class Corruptions(Classification):
    """`zeroshot` on pictures as they are and under each of `corruptions` at each of `severities`.

    Pictures are corrupted after they are brought to the model's size, as ImageNet-C is; each pass encodes them anew,
    the classifier is fitted once. Default: its 15 corruptions; the other four are speckle_noise, gaussian_blur, spatter
    and saturate. `baseline` names the corruptions.json that another model left here: mce is then the mean over
    corruptions of the error divided by that model's. Ours: the paper's baseline is AlexNet on ImageNet-C.
    """

    task: ClassVar[str] = "zeroshot_classification_corrupted"

    corruptions: tuple[str, ...] = Field(IMAGENET_C, min_length=1)
    severities: tuple[int, ...] = Field(SEVERITIES, min_length=1)
    seed: int = Field(0, ge=0)  # of the noise
    baseline: str | None = None

    @field_validator("corruptions")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            check(name, SEVERITIES[0])
        return _each_once(names)

    @field_validator("severities")
    @classmethod
    def _five(cls, severities: tuple[int, ...]) -> tuple[int, ...]:
        if not set(severities) <= set(SEVERITIES):
            raise ValueError(f"severities are 1 to 5, not {list(severities)}; the clean pictures are always measured")
        return _each_once(severities)

    def measure(self, view: View) -> Outcome:
        """acc1 of the clean pictures, acc1_CORRUPTION, acc1_corrupted (mean of these) and relative_drop."""
        baseline = self._read_baseline(view)  # before anything is encoded
        fitted = self.fitted(view)
        if fitted.classifier.needs == "pictures":
            raise ValueError(
                f"{view.dataset}: corruptions are encoded by the model's own tower, and this adapter has another; "
                "choose an adapter of features or tokens"
            )
        clean = self.scored(view, fitted)
        labels = clean.items["labels"]
        rows = [row for row, label in enumerate(labels) if label is not None]
        label, classifier = torch.tensor([labels[row] for row in rows]), fitted.classifier
        hits = [self._right(classifier, fitted.inputs, torch.tensor(rows), label)]
        for name in self.corruptions:
            for severity in self.severities:
                pictures = Corrupted(
                    view.opened.records,
                    [view.encoded.kept[row] for row in rows],
                    _transform(view),
                    name,
                    severity,
                    seed=self.seed,
                )
                inputs = _encode(view, pictures, tokens=classifier.needs == "tokens")
                hits.append(self._right(classifier, inputs, torch.arange(len(rows)), label))
        found = self._outcome(clean, torch.stack(hits, dim=1), baseline)
        found.files = {**clean.files, **self._files(view, rows, found, torch.stack(hits, dim=1))}
        return found

    def _right(self, classifier: Any, inputs: Inputs, rows: Tensor, label: Tensor) -> Tensor:
        """[n] fp64: 1 where the picture's class comes first, alone."""
        accuracy = Accuracy(len(classifier.names))
        for part, logits in self.logits(classifier, inputs, rows):
            accuracy.update(logits, label[part])
        return (accuracy.predictions() == label).double()

    def _columns(self, hits: Tensor) -> dict[str, Tensor]:
        """[n] by metric, of hits [n, 1 + K * S]: clean, then one corruption after the other."""
        corrupted = hits[:, 1:].unflatten(1, (len(self.corruptions), len(self.severities))).mean(dim=2)
        each = {f"acc1_{name}": column for name, column in zip(self.corruptions, corrupted.T)}
        return {"acc1": hits[:, 0], "acc1_corrupted": corrupted.mean(dim=1), **each}

    def _outcome(self, clean: Outcome, hits: Tensor, baseline: Tensor | None) -> Outcome:
        columns = self._columns(hits)
        metrics = {name: float(column.mean()) for name, column in columns.items()}
        intervals = dict(zip(columns, of_means(torch.stack(list(columns.values()), dim=1), n_boot=self.n_boot)))
        if metrics["acc1"]:  # what was never right cannot drop
            metrics["relative_drop"] = 1 - metrics["acc1_corrupted"] / metrics["acc1"]
            interval = relative_drop_interval(columns["acc1"], columns["acc1_corrupted"], n_boot=self.n_boot)
            intervals |= {"relative_drop": interval} if interval is not None else {}
        chance = dict.fromkeys(columns, clean.chance["acc1"])
        if baseline is not None:
            wrong = (hits[:, 1:] == 0).unflatten(1, baseline.shape)
            guessed = torch.full_like(baseline, 1 - clean.chance["acc1"])
            metrics["mce"] = corruption_errors(wrong.double().mean(dim=0), baseline=baseline)["mce"]
            intervals["mce"] = corruption_intervals(wrong, baseline=baseline, n_boot=self.n_boot)["mce"]
            chance["mce"] = corruption_errors(guessed, baseline=baseline)["mce"]
        passes = {"corruptions": len(self.corruptions), "severities": len(self.severities)}
        return replace(
            clean,
            metrics=metrics,
            ci95=intervals,
            chance=chance,
            counts={**clean.counts, **passes},
            lower_is_better=frozenset({"relative_drop", "mce"}),
        )

    def _read_baseline(self, view: View) -> Tensor | None:
        """Errors [K, S] of the other model; ValueError if it lacks a corruption or severity, or makes no errors."""
        if self.baseline is None:
            return None
        path = locate(self.baseline, folders=view.folders)
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        known, severities = found.get("accuracy", {}), found.get("severities", [])
        for name in self.corruptions:
            if name not in known:
                raise ValueError(f'{path}: no accuracy under "{name}"{nearest(name, known)}')
        absent = [severity for severity in self.severities if severity not in severities]
        if absent:
            raise ValueError(f"{path}: no severity {absent[0]}, only {severities}; set `severities` to what is there")
        places = [severities.index(severity) for severity in self.severities]
        right = [[known[name][place] for place in places] for name in self.corruptions]
        errors = 1 - torch.tensor(right, dtype=torch.float64)
        corruption_errors(errors, baseline=errors)  # refused where it makes no errors at all
        return errors

    def _files(self, view: View, rows: Sequence[int], found: Outcome, hits: Tensor) -> dict[str, Any]:
        """The table of accuracies with one picture under everything, and each picture's share of hits."""
        by: Head = "tokens" if found.head == "tokens" else "global"
        table = hits[:, 1:].mean(dim=0).view(len(self.corruptions), -1).tolist()
        place = view.encoded.kept[rows[0]]
        sample = view.opened.records[place]
        sheet = contact_sheet(
            _transform(view)(read_picture(sample)),
            names=self.corruptions,
            severities=self.severities,
            key=sample.key,
            seed=self.seed,
        )
        data = io.BytesIO()
        sheet.save(data, "PNG")
        names = found.items["names"]
        columns = {name: values.tolist() for name, values in self._columns(hits).items() if name != "acc1"}
        return {
            file_name(self.stem("corruptions"), by): {
                "schema": 1,
                "severities": list(self.severities),
                "clean": found.metrics["acc1"],
                "accuracy": dict(zip(self.corruptions, table)),
                "sheet_row": rows[0],
                "sheet": base64.b64encode(data.getvalue()).decode(),
            },
            file_name(f"{self.stem('corruptions')}_hits", by): {
                "schema": 1,
                "keys": picture_keys(view, rows),
                "items": [names[found.items["labels"][row]] for row in rows],
                "columns": columns,
            },
        }


class Corrupted:
    """Records at `places`, brought to size by `transform` and then corrupted: uint8 [3, H, W], for `Encoder.images`.

    The encoder's own transform finds them of the right size and leaves them as they are.
    """

    def __init__(
        self, records: Any, places: Sequence[int], transform: Transform, name: str, severity: int, *, seed: int = 0
    ) -> None:
        self.records, self.places, self.transform = records, places, transform
        self.name, self.severity, self.seed = name, severity, seed

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Tensor:
        sample = self.records[self.places[index]]
        image = self.transform(read_picture(sample))
        return corrupt(image, self.name, self.severity, key=sample.key, seed=self.seed)

    @property
    def fingerprint(self) -> str:
        """What identifies the corrupted pictures for the cache of features."""
        made = [self.records.fingerprint, list(self.places), repr(self.transform)]
        how = [self.name, self.severity, self.seed, VERSION]
        return hashlib.sha256(json.dumps([*made, *how]).encode()).hexdigest()


def relative_drop_interval(clean: Tensor, corrupted: Tensor, *, n_boot: int = 1000, seed: int = 0) -> Interval | None:
    """95 % bootstrap interval of 1 - mean(corrupted) / mean(clean) over pictures, both drawn together.

    None where so few clean ones are right that a resample may have none.
    """
    rng = np.random.default_rng(seed)
    pairs = torch.stack([clean, corrupted], dim=1).numpy()
    means = np.stack([pairs[rng.integers(0, len(pairs), len(pairs))].mean(axis=0) for _ in range(n_boot)])
    if not means[:, 0].all():
        return None
    low, high = np.quantile(1 - means[:, 1] / means[:, 0], [0.025, 0.975])
    return Interval(float(low), float(high))


def _encode(view: View, pictures: Pictures, *, tokens: bool) -> Inputs:
    """What gives the features, or the tokens, of some of the pictures; DataError if not all could be read again."""
    found: Any = view.encoder.image_tokens(pictures) if tokens else view.encoder.images(pictures)
    if len(found.kept) != len(pictures):
        raise DataError(
            f"{view.dataset}: {len(pictures) - len(found.kept)} of {len(pictures)} pictures could be read once and not "
            "again; were the data changed meanwhile?"
        )
    look_up: Inputs = found.rows if tokens else found.features.__getitem__
    return look_up


def _transform(view: View) -> Transform:
    """The model's, with the size mode that the data ask for."""
    own: Any = view.encoder.dual.transform
    mode = view.opened.resize_mode
    changed: Transform = own if mode is None else own.model_copy(update={"resize_mode": mode})
    return changed


def _each_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        raise ValueError(f"{twice[0]} stands there twice")
    return values
