"""A linear probe of few pictures a class, over numbers of shots and draws, with zero-shot beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool
from pydantic import Field, field_validator
from torch import Tensor

from eval.benchmark import Outcome
from eval.data import locate
from eval.hits import hits_file
from eval.labelled import Known, Measured, Predict, Selection
from eval.probe import Linear
from eval.prompts import Templates, class_templates
from eval.view import View
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.task import Task, short_hash
from vlp.adapters.zeroshot import ZeroShot
from vlp.data.schema import DataError
from vlp.metrics.interval import of_means
from vlp.probe.draw import Draw, Draws, draw, read_draws, rows_of
from vlp.probe.logistic import Choice

Hits = dict[str, Bool[Tensor, "n S"]]  # by metric: whether picture and seed were right


class Run(NamedTuple):
    """What one draw gave."""

    draw: Draw
    found: Choice
    images: int
    validation_images: int


class FewShot(Linear):
    """Mean and standard deviation over draws of the accuracy of a linear probe (2109.01134, "linear probe CLIP").

    C is chosen anew for each draw, on min(shots, 4) pictures a class of `validation`, or of train beyond the shots. The
    draws are written to few_shot_draws.json, and taken from such a file where `draws` names one; `vlp.probe.draw` says
    why they are the same for every model. With class names, zero-shot is measured on the same pictures and classes.
    """

    task: ClassVar[str] = "few_shot"

    shots: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 2, 4, 8, 16), min_length=1)
    seeds: tuple[int, ...] = Field((1, 2, 3), min_length=1)
    draws: str | None = None
    templates: Templates = None  # as for `zeroshot`

    @field_validator("shots", "seeds")
    @classmethod
    def _each_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"{list(value)}: each number once, or its draw counts twice")
        return value

    def measure(self, view: View) -> Outcome:
        """acc1@Kshot and acc1@Kshot_std for each number of shots, and acc1_zeroshot."""
        known = self.known(view)
        draws = self._draws(view, known)
        runs = [self._run(view, known, one) for one in draws.draws]
        task = Task(known.names, class_templates(self.templates, view)) if known.names else None
        zeroshot = ZeroShot().fit(view.encoder, task) if task else None
        test = self.measured(view, known)  # everything is fitted
        hits = self._hits(test, known, runs, zeroshot)
        outcome = self._outcome(test, known, runs, hits)
        outcome.templates_hash = task.templates_hash if task else None
        outcome.files["few_shot.json"] = {"schema": 1, "runs": [_row(run, hits, self.seeds) for run in runs]}
        outcome.files["few_shot_draws.json"] = draws.model_dump(mode="json", by_alias=True)
        return outcome

    def _draws(self, view: View, known: Known) -> Draws:
        if self.draws is None:
            own = known.validation
            held = (known.words(own), own.keys) if own is not None else None
            train = (known.words(known.train), known.train.keys)
            return draw(*train, shots=self.shots, seeds=self.seeds, validation=held)
        path = Path(locate(self.draws, folders=view.folders))
        there = {(one.seed, one.shots): one for one in read_draws(path).draws}
        wanted = [(seed, shots) for seed in self.seeds for shots in self.shots]
        if missing := [pair for pair in wanted if pair not in there]:
            raise ValueError(
                f"{path}: no draw with seed {missing[0][0]} of {missing[0][1]} shots (and {len(missing) - 1} more of "
                f"{len(wanted)} asked for); it has seeds and shots {sorted(there)}"
            )
        return Draws(draws=tuple(there[pair] for pair in wanted))

    def _run(self, view: View, known: Known, one: Draw) -> Run:
        where = f"{view.dataset}: {one.shots} shots with seed {one.seed}"
        words = known.words(known.train)
        if missing := sorted(set(words) - {name for name, keys in one.train.items() if keys}):
            raise ValueError(f'{where}: the draw has no picture of class "{missing[0]}"; draw again from these data')
        train = known.train.only(rows_of(one.train, words, known.train.keys))
        if self.C is not None:
            return Run(one, self.fitted(train), len(train.keys), 0)
        held = known.train if known.validation is None else known.validation
        validation = held.only(rows_of(one.validation, known.words(held), held.keys))
        if not validation.keys:
            raise DataError(f"{where} leave no picture to choose C on; give `validation`, or `C`")
        return Run(one, self.fitted(train, validation), len(train.keys), len(validation.keys))

    def _hits(self, test: Measured, known: Known, runs: list[Run], zeroshot: LinearClassifier | None) -> Hits:
        def right(predict: Predict) -> Tensor:
            return test.accuracy(predict, classes=len(known.classes), step=self.batch).hits()["acc1"]

        found: Hits = {}
        for shots in self.shots:
            found[f"acc1@{shots}shot"] = torch.stack(
                [right(run.found.fitted) for run in runs if run.draw.shots == shots], dim=1
            )
        if zeroshot is not None:
            once = right(lambda features: zeroshot(features.cpu())[:, known.classes])
            found["acc1_zeroshot"] = once[:, None].expand(-1, len(self.seeds))
        return found

    def _outcome(self, test: Measured, known: Known, runs: list[Run], hits: Hits) -> Outcome:
        metrics: dict[str, float] = {}
        for name, hit in hits.items():
            metrics[name] = float(hit.double().mean())
            if name != "acc1_zeroshot" and len(self.seeds) > 1:
                metrics[f"{name}_std"] = float(hit.double().mean(dim=0).std())
        by_picture = torch.stack([hit.double().mean(dim=1) for hit in hits.values()], dim=1)
        counts = {"images": len(test.label), "classes": len(known.classes), "train_images": len(known.train.keys)}
        counts |= {"draws": len(runs), "fits_not_converged": sum(run.found.unconverged for run in runs)}
        for run in runs:
            if run.draw.short:
                counts[f"classes_short@{run.draw.shots}shot"] = run.draw.short
        seeds = [f"seed {seed}" for seed in self.seeds for _ in test.keys]
        columns = {name: hit.T.flatten().tolist() for name, hit in hits.items()}
        return Outcome(
            metrics=metrics,
            n=len(test.label),
            counts=counts,
            ci95=dict(zip(hits, of_means(by_picture, n_boot=self.n_boot), strict=True)),
            chance=dict.fromkeys(hits, 1 / len(known.classes)),
            head="global",
            classes_hash=short_hash(known.names) if known.names else None,
            skips=test.skips,
            selection={**self._selection(known, runs), **known.hashes},
            files=hits_file(self.task, test.keys * len(self.seeds), seeds, columns),
        )

    def _selection(self, known: Known, runs: list[Run]) -> Selection:
        if self.C is not None:
            return {"split": "none", "C": f"{self.C:.6g}"}
        chosen: Selection = {
            f"C@{shots}shot": ", ".join(f"{run.found.C:.6g}" for run in runs if run.draw.shots == shots)
            for shots in self.shots
        }
        return {
            "split": "train" if known.validation is None else "validation",
            "pictures": "min(shots, 4) of each class",
            "candidates": sum(len(run.found.tried) for run in runs),
            "criterion": "acc1, then likelihood",
            **chosen,
        }


def _row(run: Run, hits: Hits, seeds: tuple[int, ...]) -> dict[str, Any]:
    """One line of few_shot.json."""
    hit = hits[f"acc1@{run.draw.shots}shot"][:, seeds.index(run.draw.seed)]
    tried = [{"C": C, **score._asdict()} for C, score in run.found.tried.items()]
    return {
        "seed": run.draw.seed,
        "shots": run.draw.shots,
        "images": run.images,
        "validation_images": run.validation_images,
        "C": run.found.C,
        "acc1": float(hit.double().mean()),
        "tried": tried,
    }
