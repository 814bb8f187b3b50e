"""A small residual network behind the towers (CLIP-Adapter, Gao et al. 2021, arXiv 2110.04544)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from vlp.adapters.adapter import Given, class_weights
from vlp.adapters.archive import read, write
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.selection import NOTHING, choose, folds, pooled, score
from vlp.adapters.shots import feature_shots
from vlp.adapters.task import Examples, Task
from vlp.adapters.tuning import Tuner

RATIOS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
UNCHOSEN = 0.2


class ClipAdapter(Tuner):
    """Logits s f'·t'_c with f' = norm(r A(f) + (1 - r) f), A(x) = ReLU(W2 ReLU(W1 x)) (2110.04544, section 3.2).

    W1 is [D / reduction, D], without biases. `ratio` r is .2 as in the released code; None: chosen among 0, .2, ... 1
    on validation, else by cross-validation in the support, at six trainings a fold (with neither, .2). `text_ratio`
    adapts the class weights likewise, by a network of their own. f has unit norm before A too, theirs only after. SGD
    with the epochs of CoOp, in whose loop the released code runs; the epochs see features of augmented copies. The rate
    is CLIP's, for a scale of 100, and made fit for the model's own (`lr_for`).
    """

    wants: ClassVar[tuple[Given, ...]] = ("support",)
    views: ClassVar[int] = 10

    ratio: float | None = Field(UNCHOSEN, ge=0, le=1)
    text_ratio: float = Field(0.0, ge=0, le=1)
    reduction: int = Field(4, ge=1)
    lr_for: float | None = Field(100.0, gt=0)

    def usual_epochs(self, shots: int) -> int:
        """As CoOp: 200 from 8 shots on, 100 from 2 on, else 50."""
        return 200 if shots >= 8 else 100 if shots >= 2 else 50

    def fit(self, encoder: Any, task: Task) -> AdaptedClassifier:
        """A classifier that holds the adapter; with both ratios 0 nothing is trained."""
        support, text = self.given(task, "support"), class_weights(encoder, task)
        ratio, selection = self._choose(task, text, encoder.scale)
        bottlenecks, trained = self._train(support, text, encoder.scale, ratio, task.seed)
        about = {
            "adapter": "clip_adapter",
            "settings": self.model_dump(mode="json"),
            "seed": task.seed,
            "selection": {**selection, "ratio": ratio},
            **trained,
        }
        zeroshot = LinearClassifier(text, names=task.names, scale=encoder.scale, about=about)
        return AdaptedClassifier(zeroshot, bottlenecks)

    def transfer(self, encoder: Any, classifier: Any, task: Task) -> AdaptedClassifier:
        """The same adapter before the weights of other classes."""
        text = class_weights(encoder, task)
        zeroshot = LinearClassifier(text, names=task.names, scale=encoder.scale, about=classifier.about)
        return AdaptedClassifier(zeroshot, classifier.bottlenecks)

    def _choose(self, task: Task, text: Float[Tensor, "C D"], scale: float) -> tuple[float, dict[str, Any]]:
        """The ratio, and what a record says of the choice."""
        if self.ratio is not None:
            return self.ratio, NOTHING
        found = folds(task)
        if not found.folds:
            return UNCHOSEN, NOTHING

        def judge(ratio: float) -> Any:
            scores = []
            for learn, held in found.folds:  # of all classes: words know those without a picture to learn from
                made = self._train(learn, text, scale, ratio, task.seed)[0]
                scores.append((score(made.logits(held.image, text, scale), held.known), len(held)))
            return pooled(scores)

        chosen = choose(RATIOS, judge, split=found.split, unchosen=UNCHOSEN)
        return chosen.value, chosen.selection

    def _train(
        self, support: Examples, text: Float[Tensor, "C D"], scale: float, ratio: float, seed: int
    ) -> tuple[Bottlenecks, dict[str, Any]]:
        """The adapter of features and that of class weights, and what a record says of their training."""
        rng = torch.Generator().manual_seed(seed)
        width = support.image.shape[1]
        ratios = (ratio, self.text_ratio)
        made = Bottlenecks([Bottleneck(width, max(1, width // self.reduction), one, rng) for one in ratios])
        if not any(ratios):
            return made, {"epochs": 0, "steps": 0}
        own, device = (
            feature_shots(support, size=self.batch, seed=seed, device=text.device),
            _Stored(text.device, scale),
        )
        found = self.tune(
            device,
            made,
            own,
            lambda batch: cross_entropy(made.logits(batch.image, text, scale), batch.label),
            epochs=self.epochs_for(support),
        )
        made.requires_grad_(False)
        return made, found


class _Stored(NamedTuple):
    """Where features are trained on: as stored, whatever precision made them."""

    device: torch.device
    scale: float
    precision: str = "fp32"
    quiet: bool = True


class Bottleneck(nn.Module):
    """norm(r ReLU(W2 ReLU(W1 x)) + (1 - r) x) for unit rows x; x itself, bit for bit, where r is 0."""

    def __init__(self, width: int, hidden: int, ratio: float, rng: torch.Generator) -> None:
        super().__init__()
        self.ratio = ratio
        self.down = nn.Parameter(_uniform(hidden, width, rng))
        self.up = nn.Parameter(_uniform(width, hidden, rng))

    def forward(self, x: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:
        if not self.ratio:
            return x
        new = ((x @ self.down.T.to(x.dtype)).relu() @ self.up.T.to(x.dtype)).relu()
        return normalize(self.ratio * new + (1 - self.ratio) * x, dim=-1)


class Bottlenecks(nn.Module):
    """One for features, one for class weights."""

    def __init__(self, both: list[Bottleneck]) -> None:
        super().__init__()
        self.image, self.text = both

    def logits(self, inputs: Float[Tensor, "n D"], text: Float[Tensor, "C D"], scale: float) -> Float[Tensor, "n C"]:
        """Logits s f'·t'_c."""
        image: Tensor = self.image(inputs)
        adapted: Tensor = self.text(text)
        return scale * image @ adapted.T


class AdaptedClassifier:
    """A Classifier over unit-norm features, with a network before a zero-shot one and one behind its weights."""

    needs = "features"
    kind = "clip_adapter"

    def __init__(self, zeroshot: LinearClassifier, bottlenecks: Bottlenecks) -> None:
        self.zeroshot, self.bottlenecks = zeroshot, bottlenecks
        with torch.no_grad():
            adapted = bottlenecks.text(zeroshot.weight)
        self.inner = LinearClassifier(adapted, names=zeroshot.names, scale=zeroshot.scale)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.zeroshot.names

    @property
    def about(self) -> Mapping[str, Any]:
        """How it was made."""
        return self.zeroshot.about

    @torch.no_grad()
    def __call__(self, inputs: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Logits; with both ratios 0 those of zero-shot."""
        return self.inner(self.bottlenecks.image(inputs))

    def save(self, folder: Path) -> None:
        """Writes the tensors as safetensors and the rest as JSON."""
        facts = {"kind": self.kind, "names": self.names, "scale": self.zeroshot.scale, "about": self.about}
        ratios = {"image": self.bottlenecks.image.ratio, "text": self.bottlenecks.text.ratio}
        write(folder, {"weight": self.zeroshot.weight, **self.bottlenecks.state_dict()}, {**facts, "ratio": ratios})

    @classmethod
    def load(cls, folder: Path) -> AdaptedClassifier:
        """The classifier that `save` wrote; ValueError naming the folder if it is none."""
        needed = ("weight", "image.down", "image.up", "text.down", "text.up")
        found, facts = read(folder, kind=cls.kind, tensors=needed)
        weight = found.pop("weight")
        hidden, width = found["image.down"].shape
        rng = torch.Generator()
        made = [Bottleneck(width, hidden, facts["ratio"][side], rng) for side in ("image", "text")]
        bottlenecks = Bottlenecks(made).requires_grad_(False)
        bottlenecks.load_state_dict(found)
        zeroshot = LinearClassifier(weight, names=facts["names"], scale=facts["scale"], about=facts["about"])
        return cls(zeroshot, bottlenecks)


def _uniform(rows: int, columns: int, rng: torch.Generator) -> Float[Tensor, "rows columns"]:
    """As torch draws a layer's own weights: within 1 / sqrt(columns)."""
    bound = 1 / math.sqrt(columns)
    return torch.empty(rows, columns).uniform_(-bound, bound, generator=rng)
