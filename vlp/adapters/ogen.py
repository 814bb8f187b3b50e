"""Features of classes that were not seen, made up to steady a prompt learner (OGEN, Zang et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from vlp.adapters.adapter import Adapter, Given, Level
from vlp.adapters.coop import CoOp
from vlp.adapters.feature_generator import FeatureGenerator, Imagined, Terms
from vlp.adapters.fitting import seeded
from vlp.adapters.local_mean import LocalMean
from vlp.adapters.opened import Opened, closed, opened
from vlp.adapters.prompted import ContextClassifier, fitted_by
from vlp.adapters.shots import Shots
from vlp.adapters.task import Examples, Task
from vlp.adapters.tuning import frozen
from vlp.registry import Named
from vlp.text.templates import checked_names, read_names

AdapterPart = Annotated[Any, Named("vlp.adapters:ADAPTERS")]


class OGEN(Adapter):
    """A prompt learner with made-up features of classes it must not overfit away from (2401.15914, section 3).

    loss = image * own loss + unknown * CE(made-up feature of the picture's class) + known * CE(of its neighbours) / k
    + novel * CE(of the k nearest new classes) / k + the squared distances of what is made up to what is there; for the
    first `start` of the epochs only these. The generator and the prompts learn together, at the rates of `of`.

    new: "names" takes the names of the classes that will be new at test time, as the released code does; `names` lists
    them (or is a file), and `about` discloses them. "held_out" needs no such names: `held` of the task's own classes,
    other ones in each epoch, act as new, and their pictures only serve the learner's own loss. `teacher`: weight of the
    distance to the mean of the prompts over the last epochs (adaptive local mean teacher), `window` from and to so
    many; the code for it was never released, and 0 leaves it out. `of`: coop, kgcoop, vpt, ivlp, maple or promptsrc.
    """

    level: ClassVar[Level] = "text"
    wants: ClassVar[tuple[Given, ...]] = ("support",)

    of: AdapterPart = CoOp()
    new: Literal["names", "held_out"] = "held_out"
    names: tuple[str, ...] | str | None = None
    held: float = Field(0.3, gt=0, lt=1)
    neighbours: int = Field(3, ge=1)
    start: float = Field(0.2, ge=0, le=1)
    image: float = Field(0.25, ge=0)
    unknown: float = Field(0.25, ge=0)
    known: float = Field(0.25, ge=0)
    novel: float = Field(0.5, ge=0)
    matching: float = Field(1.0, ge=0)  # the paper's 512 mean squares of 512 numbers are one squared distance
    heads: int = Field(4, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    teacher: float = Field(0.0, ge=0)
    window: tuple[int, int] = (2, 9)

    @model_validator(mode="after")
    def _names_where_they_are_used(self) -> OGEN:
        if (self.new == "names") != (self.names is not None):
            raise ValueError(
                "new: names goes with `names`, the classes that will be new (a list or a file); new: held_out without"
            )
        if not 1 <= self.window[0] <= self.window[1]:
            raise ValueError(f"window is {list(self.window)}; it goes from at least 1 epoch to at least as many")
        return self

    def fit(self, encoder: Any, task: Task) -> ContextClassifier:
        """The classifier of `of`, of prompts that were learned so."""
        support, extra = self.given(task, "support"), self._new_names(task)
        with frozen(encoder), seeded(encoder.device, task.seed) as rng:
            view = opened(self.of, encoder, task)
            epochs = 0 if view.idle else self.of.epochs_for(support)
            width = support.image.shape[1]
            generator = FeatureGenerator(width, heads=self.heads, dropout=self.dropout).to(encoder.device)
            imagined = self._imagined(encoder, task, support, extra, generator, rng)
            mean = LocalMean(opened(self.of, encoder, task), self.window, epochs) if self.teacher else None
            keep = view.keep(epochs)

            def after(epoch: int) -> None:
                if mean is not None:
                    mean.add(view.learned)
                if keep is not None:
                    keep(epoch)

            said = self.of.tune(
                encoder,
                nn.ModuleDict({"prompts": view.learned, "generator": generator}),
                _announced(view.shots(support), imagined),
                self._loss(view, imagined, extra, mean, early=int(self.start * epochs)),
                epochs=epochs,
                after_epoch=after,
            )
            vectors = {name: tensor.detach() for name, tensor in view.vectors().items()}
        made = closed(self.of, encoder, task, vectors, {})
        made.about = self._about(made, task, **said, new_classes=self._disclosed(extra))
        return made

    def transfer(self, encoder: Any, classifier: Any, task: Task) -> ContextClassifier:
        """The learned prompts with other names."""
        made: OGEN = fitted_by(self, encoder, classifier)
        if classifier.learned.get("context", torch.empty(0)).ndim == 3:
            raise NotImplementedError("specific: true learns a context for each of its classes, none for other ones")
        moved = closed(made.of, encoder, task, classifier.learned, {})
        moved.about = made._about(moved, task, fitted=list(classifier.names))
        return moved

    def _new_names(self, task: Task) -> tuple[str, ...]:
        """Names behind the task's own."""
        if self.names is None:
            return ()
        names = read_names(self.names) if isinstance(self.names, str) else checked_names(self.names)
        if both := [name for name in names if name in task.names]:
            raise ValueError(f'names: "{both[0]}" is a class of the task, so it is not new')
        if len(names) < 2:
            raise ValueError(f"names: of {len(names)} new class nothing can be told apart; give at least 2")
        return tuple(names)

    def _imagined(
        self, encoder: Any, task: Task, support: Examples, extra: Sequence[str], generator: nn.Module, rng: Any
    ) -> Imagined:
        return Imagined(
            generator,
            support,
            classes=len(task.names),
            extra=len(extra),
            held=None if self.new == "names" else self.held,
            neighbours=self.neighbours,
            scale=encoder.scale,
            device=encoder.device,
            rng=rng,
        )

    def _loss(
        self, view: Opened, imagined: Imagined, extra: Sequence[str], mean: LocalMean | None, *, early: int
    ) -> Callable[[Shots], Tensor]:
        weights, classes = view.weights(extra), len(view.task.names)

        def loss(shots: Shots) -> Tensor:
            weight = weights()
            features = view.features(shots.image).to(weight.dtype)
            terms = imagined.terms(features, shots.label, weight)
            value = self.matching * (terms.unknown_distance + terms.known_distance)
            if imagined.epoch < early:
                return value
            own = weight[:classes]
            value = value + self.image * view.loss(shots, features, own) + self._classified(terms)
            return value if mean is None else value + self.teacher * mean.distance(shots, features, own)

        return loss

    def _classified(self, terms: Terms) -> Tensor:
        found: Tensor = (
            self.unknown * terms.unknown
            + self.known / self.neighbours * terms.known
            + self.novel / self.neighbours * terms.novel
        )
        return found

    def _disclosed(self, extra: Sequence[str]) -> dict[str, Any]:
        """What a record must say of names seen in advance."""
        if self.new == "names":
            return {"mode": "names", "names": list(extra), "seen": "names of classes that are new at test time"}
        return {"mode": "held_out", "held": self.held, "seen": "no names but the task's"}

    def _about(self, made: ContextClassifier, task: Task, **more: Any) -> dict[str, Any]:
        own = {key: made.about[key] for key in ("weights_hash", "selection")}
        settings = self.model_dump(mode="json")
        return {"adapter": "ogen", "settings": settings, "seed": task.seed, **own, **more}


def _announced(shots: Callable[[int], Iterator[Shots]], imagined: Imagined) -> Callable[[int], Iterator[Shots]]:
    """The same batches, and the epoch told."""

    def batches(epoch: int) -> Iterator[Shots]:
        imagined.begin(epoch)
        yield from shots(epoch)

    return batches
