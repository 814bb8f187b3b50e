"""Prompts learned from few labels, or none, and pseudolabels of CLIP (FPL, IFPL, GRIP, Menghini et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import cross_entropy

from vlp.adapters.adapter import Given, Level
from vlp.adapters.coop import CoOp
from vlp.adapters.maple import MaPLe
from vlp.adapters.opened import closed, opened
from vlp.adapters.prompted import ContextClassifier, fitted_by
from vlp.adapters.pseudo_shots import leaderboard, logits_over
from vlp.adapters.shots import Shots
from vlp.adapters.task import Examples, Task
from vlp.adapters.tuning import Tuner, frozen
from vlp.adapters.vpt import VPT
from vlp.adapters.zeroshot import ZeroShot
from vlp.data.augment import Augment

LEARNED = {"textual": 16, "visual": 16, "multimodal": 4}  # vectors


class PseudoPrompts(Tuner):
    """What the three share: labelled * mean CE over the support + pseudo * mean CE over pseudolabelled pictures.

    prompts: "textual" is CoOp's context over stored features, "visual" VPT in front of zero-shot weights, "multimodal"
    MaPLe's coupled prompts in place of the authors' small transformer over both. tokens: 16, multimodal 4. With a
    support it is their semi-supervised setting, without one the unsupervised one. Each class has a leaderboard of
    pictures, so that every class gets as many, and a picture can stand on several. The means are over whole sets,
    where functions of the released code disagree. The rate rises from warm_lr over `warm_epochs`, where theirs rises
    from 0, and falls by a cosine; it is .01 for multimodal prompts. The last epoch counts.
    """

    level: ClassVar[Level] = "towers"
    wants: ClassVar[tuple[Given, ...]] = ("unlabelled",)
    takes: ClassVar[tuple[Given, ...]] = ("support",)

    prompts: Literal["textual", "visual", "multimodal"] = "textual"
    words: str | None = None
    tokens: int | None = Field(None, ge=0)
    depth: int = Field(1, ge=1)
    labelled: float = Field(1.0, ge=0)
    pseudo: float = Field(1.0, ge=0)
    augment: Augment | None = None
    lr: float = Field(0.1, gt=0)
    batch: int = Field(16, ge=1)
    weight_decay: float = Field(0.1, ge=0)
    warm_lr: float = Field(1e-4, gt=0)
    warm_epochs: int = Field(5, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _slower_for_two_towers(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("prompts") == "multimodal":
            return {"lr": 0.01, **values}
        return values

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> Self:
        if self.prompts == "textual" and (self.augment is not None or self.depth != 1 or self.tokens == 0):
            raise ValueError(
                "textual prompts are learned from stored features: without `augment` and `depth`, and with 1 token or "
                "more; or prompts: visual"
            )
        return self

    def usual_epochs(self, shots: int) -> int:
        """150."""
        return 150

    def rate(self, epoch: int, epochs: int) -> float:
        """Linear from warm_lr, then half a cosine."""
        if epoch < self.warm_epochs:
            return self.warm_lr + (self.lr - self.warm_lr) * epoch / self.warm_epochs
        part = (epoch - self.warm_epochs) / max(1, epochs - self.warm_epochs)
        return self.lr * 0.5 * (1 + math.cos(math.pi * part))

    def counts(self, pictures: int, classes: int) -> list[int]:
        """Pictures a class in each iteration."""
        raise NotImplementedError

    def fit(self, encoder: Any, task: Task) -> ContextClassifier:
        """A classifier over features ("textual") or pictures; `about` holds the pseudolabels of the last iteration."""
        pool, name = self.given(task, "unlabelled"), type(self).__name__
        labelled = task.support if task.support is not None and len(task.support) else None
        made: Any = ZeroShot().fit(encoder, task)
        believed, said, done = None, dict[str, Any](), 0
        for most in self.counts(len(pool), len(task.names)):
            found = leaderboard(logits_over(made, encoder, pool, who=name), most)
            if found.same(believed):  # what starts alike and sees the same learns the same
                continue
            believed, done = found, done + 1
            made, said = self._learn(encoder, task, labelled, believed.shots(pool))
        assert believed is not None
        more: dict[str, Any] = {"iterations": done, "labelled": 0 if labelled is None else len(labelled)}
        more["pseudolabels"] = believed.record(pool, task.names)
        made.about = self.about(encoder, task, **said, **more)
        result: ContextClassifier = made
        return result

    def transfer(self, encoder: Any, classifier: Any, task: Task) -> ContextClassifier:
        """The learned prompts with other names."""
        made: PseudoPrompts = fitted_by(self, encoder, classifier)
        moved = closed(made.learner(), encoder, task, classifier.learned, {})
        moved.about = made.about(encoder, task, fitted=list(classifier.names))
        return moved

    def learner(self) -> Tuner:
        """The prompt learner whose vectors are learned."""
        tokens = LEARNED[self.prompts] if self.tokens is None else self.tokens
        if self.prompts == "visual":
            return VPT(tokens=tokens, depth=self.depth, batch=self.batch, augment=self.augment)
        if self.prompts == "multimodal":
            return MaPLe(words=self.words, tokens=tokens, depth=self.depth, batch=self.batch, augment=self.augment)
        return CoOp(words=self.words, tokens=self.tokens if self.words else tokens, batch=self.batch)

    def _learn(
        self, encoder: Any, task: Task, labelled: Examples | None, pseudo: Examples
    ) -> tuple[ContextClassifier, dict[str, Any]]:
        """The classifier that prompts, begun anew, give after learning from both, and what a record says of it."""
        both = pseudo if labelled is None else joined(labelled, pseudo)
        share = shares(0 if labelled is None else len(labelled), len(pseudo), self.labelled, self.pseudo)
        share = share.to(encoder.device)
        view = opened(self.learner(), encoder, task)
        weights, scale = view.weights(), encoder.scale

        def loss(shots: Shots) -> Tensor:
            weight = weights()
            logits = scale * view.features(shots.image).to(weight.dtype) @ weight.T
            each = cross_entropy(logits, shots.label, reduction="none")
            return (share[shots.rows.to(share.device)] * each).mean()

        with frozen(encoder):
            epochs = 0 if view.idle else self.epochs_for(both)
            said = self.tune(encoder, view.learned, view.shots(both), loss, epochs=epochs)
            vectors = {name: tensor.detach() for name, tensor in view.vectors().items()}
        return closed(view.learner, encoder, task, vectors, {}), said


class FPL(PseudoPrompts):
    """Few pseudolabels: the `shots` pictures that zero-shot finds likeliest of each class (2306.01669, section 3.2)."""

    shots: int = Field(16, ge=1)

    def counts(self, pictures: int, classes: int) -> list[int]:
        """Once `shots`."""
        return [min(self.shots, pictures)]


class IFPL(FPL):
    """FPL again and again: each iteration is labelled by the model of the last, with as many (2306.01669, section 3.2).

    Prompts begin anew each time. An iteration that believes the same as the last learns nothing anew.
    """

    iterations: int = Field(10, ge=1)

    def counts(self, pictures: int, classes: int) -> list[int]:
        """`shots`, so many times."""
        return super().counts(pictures, classes) * self.iterations


class GRIP(PseudoPrompts):
    """Grow and refine: iteration i of I believes i |U| / (I C) pictures of each class (GRIP, 2306.01669, section 3.2).

    The last one has as many pseudolabels as there are pictures. Prompts begin anew each time.
    """

    iterations: int = Field(10, ge=1)

    def counts(self, pictures: int, classes: int) -> list[int]:
        """Growing, at least one."""
        every = range(1, self.iterations + 1)
        return [max(1, number * pictures // (self.iterations * classes)) for number in every]


def joined(first: Examples, second: Examples) -> Examples:
    """The pictures of both, the first ones first."""
    pictures = None
    if first.pictures is not None and second.pictures is not None:
        pictures = [one.pictures[row] for one in (first, second) for row in range(len(one))]
    keys = (*first.keys, *second.keys) if first.keys and second.keys else ()
    return Examples(torch.cat([first.image, second.image]), torch.cat([first.known, second.known]), keys, pictures)


def shares(labelled: int, pseudo: int, first: float, second: float) -> Tensor:
    """Weights [n] with which the mean over both sets is first * mean over one + second * mean over the other."""
    whole = labelled + pseudo
    return torch.cat(
        [torch.full((labelled,), first * whole / max(labelled, 1)), torch.full((pseudo,), second * whole / pseudo)]
    )
