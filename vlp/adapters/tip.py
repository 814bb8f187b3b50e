"""A cache of few-shot pictures beside zero-shot (Tip-Adapter, Zhang et al. 2022, arXiv 2111.03930)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

from vlp.adapters.adapter import Adapter, Given, class_weights
from vlp.adapters.archive import read, write
from vlp.adapters.cache_search import Judged, search
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.selection import NOTHING, Folds, folds
from vlp.adapters.shots import feature_shots
from vlp.adapters.task import Examples, Task
from vlp.metrics.accuracy import Accuracy

START = (1.0, 1.17)  # beta and alpha where nothing can be chosen, and while keys are trained
BETAS, ALPHAS = 200, 20  # steps of the grid


class Keys(NamedTuple):
    """Keys [n, D] of the cache, and what a record says of how they were learned."""

    key: Float[Tensor, "n D"]
    about: dict[str, Any]


class Tip(Adapter):
    """Logits s f·t_c + alpha * sum_i exp(-beta (1 - f·k_i)) [y_i = c] (2111.03930), nothing trained.

    Key k_i is the normalised mean of the augmented copies of picture i (of their unit features; theirs are not scaled
    before the mean), or its own feature without copies. alpha and beta (None: chosen) on the authors' grid of 20 x 200
    from 0.1 up to `search` (beta, alpha), on validation, else by cross-validation in the support; with neither beta is
    1 and alpha 1.17. Pictures of classes without a key judge too. Equal accuracies are decided by likelihood.
    `protocol: paper` searches on test.
    """

    wants: ClassVar[tuple[Given, ...]] = ("support",)
    views: ClassVar[int] = 10
    method: ClassVar[str] = "tip"

    alpha: float | None = Field(None, ge=0)
    beta: float | None = Field(None, gt=0)
    search: tuple[float, float] = (7.0, 3.0)
    protocol: Literal["honest", "paper"] = "honest"

    def fit(self, encoder: Any, task: Task) -> TipClassifier:
        """A classifier that holds the cache."""
        support = self.given(task, "support")
        text, start = class_weights(encoder, task), self._start()
        found = folds(task, leaky=self.leaky)
        zeroshot = LinearClassifier(text, names=task.names, scale=encoder.scale)
        whole = self._keys(support, zeroshot, start, task)
        (beta, alpha), selection = self._choose(found, zeroshot, whole, task)
        zeroshot.about = {
            "adapter": self.method,
            "settings": self.model_dump(mode="json"),
            "selection": {**selection, "beta": beta, "alpha": alpha, **whole.about},
        }
        return TipClassifier(zeroshot, whole.key, support.known, beta=beta, alpha=alpha)

    def _start(self) -> tuple[float, float]:
        return (START[0] if self.beta is None else self.beta, START[1] if self.alpha is None else self.alpha)

    def _keys(self, support: Examples, zeroshot: LinearClassifier, start: tuple[float, float], task: Task) -> Keys:
        if support.views is None:
            return Keys(support.image, {})
        return Keys(normalize(support.views.mean(dim=1), dim=1), {})

    def _choose(
        self, found: Folds, zeroshot: LinearClassifier, whole: Keys, task: Task
    ) -> tuple[tuple[float, float], dict[str, Any]]:
        """The two strengths, and what a record says of the choice."""
        if not found.folds or None not in (self.alpha, self.beta):
            return self._start(), NOTHING
        judged = []
        for learn, judge in found.folds:  # of all classes: words know those that have no key
            keys = whole if found.split != "train" else self._keys(learn, zeroshot, self._start(), task)
            affinity = judge.image @ keys.key.T
            judged.append(Judged(zeroshot(judge.image), affinity, learn.known, judge.known))
        betas = _grid(self.search[0], BETAS) if self.beta is None else [self.beta]
        alphas = _grid(self.search[1], ALPHAS) if self.alpha is None else [self.alpha]
        chosen = search(judged, betas, alphas, split=found.split, unchosen=self._start())
        return chosen.value, chosen.selection


class TipF(Tip):
    """Tip-Adapter-F: the keys are trained from where `tip` has them (2111.03930), then as `tip`.

    AdamW (lr .001, eps 1e-4) with a cosine, cross-entropy of the logits at `beta` and `alpha`, else 1 and 1.17; each
    epoch sees one copy of every picture. The keys of the last epoch are kept; theirs are of the epoch that was best on
    test, as with `protocol: paper`.
    """

    method: ClassVar[str] = "tip_f"

    lr: float = Field(0.001, gt=0)
    epochs: int = Field(20, ge=0)
    batch: int = Field(256, ge=1)

    def _keys(self, support: Examples, zeroshot: LinearClassifier, start: tuple[float, float], task: Task) -> Keys:
        key = super()._keys(support, zeroshot, start, task).key.clone().requires_grad_()
        model = TipClassifier(zeroshot, key, support.known, beta=start[0], alpha=start[1])
        best = (-1.0, -1, key.detach())
        for epoch in self._train(model, support, task.seed):
            if self.leaky and task.test is not None:
                reached = _accuracy(model, task.test)
                best = max(best, (reached, -epoch, key.detach().clone()), key=lambda one: one[:2])
        if self.leaky and self.epochs:
            return Keys(best[2], {"split": "test", "epoch": 1 - best[1]})
        return Keys(key.detach(), {"epoch": self.epochs})

    def _train(self, model: TipClassifier, support: Examples, seed: int) -> Iterator[int]:
        """Moves the keys; says when an epoch, from 0, is over."""
        optimizer = torch.optim.AdamW([model.key], lr=self.lr, eps=1e-4)
        shots = feature_shots(support, size=self.batch, seed=seed, device=model.key.device)
        total, step = self.epochs * -(-len(support) // self.batch), 0
        for epoch in range(self.epochs):
            for batch in shots(epoch):
                optimizer.param_groups[0]["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * step / total))
                optimizer.zero_grad()
                with torch.enable_grad():
                    cross_entropy(model(batch.image), batch.label).backward()
                optimizer.step()
                step += 1
            yield epoch


class TipClassifier:
    """A Classifier over unit-norm features around a zero-shot one, with a cache of n keys and their labels."""

    needs = "features"
    kind = "tip"

    def __init__(
        self,
        zeroshot: LinearClassifier,
        key: Float[Tensor, "n D"],
        label: Int[Tensor, "n"],
        *,
        beta: float,
        alpha: float,
    ) -> None:
        self.zeroshot, self.key, self.label, self.beta, self.alpha = zeroshot, key, label, beta, alpha
        self.value = one_hot(label, len(zeroshot.names)).to(key.dtype)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.zeroshot.names

    @property
    def about(self) -> Mapping[str, Any]:
        """How it was made."""
        return self.zeroshot.about

    def __call__(self, inputs: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Logits; with alpha 0 those of zero-shot."""
        return self.zeroshot(inputs) + self.alpha * ((self.beta * (inputs @ self.key.T - 1)).exp() @ self.value)

    def save(self, folder: Path) -> None:
        """Writes the tensors as safetensors and the rest as JSON."""
        facts = {"kind": self.kind, "names": self.names, "scale": self.zeroshot.scale, "about": self.about}
        tensors = {"weight": self.zeroshot.weight, "key": self.key, "label": self.label}
        write(folder, tensors, {**facts, "beta": self.beta, "alpha": self.alpha})

    @classmethod
    def load(cls, folder: Path) -> TipClassifier:
        """The classifier that `save` wrote; ValueError naming the folder if it is none."""
        found, facts = read(folder, kind=cls.kind, tensors=("weight", "key", "label"))
        zeroshot = LinearClassifier(found["weight"], names=facts["names"], scale=facts["scale"], about=facts["about"])
        return cls(zeroshot, found["key"], found["label"], beta=facts["beta"], alpha=facts["alpha"])


def _grid(top: float, steps: int) -> Sequence[float]:
    """From 0.1 in equal steps to just below `top`."""
    return [0.1 + place * (top - 0.1) / steps for place in range(steps)]


@torch.no_grad()
def _accuracy(model: TipClassifier, examples: Examples) -> float:
    accuracy = Accuracy(len(model.names), k=(1,))
    accuracy.update(model(examples.image), examples.known)
    return accuracy.compute()["acc1"]
