"""Class weights and a small network trained on pictures without labels (TFUP-T, Long et al. 2024, arXiv 2404.16339)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from vlp.adapters.archive import read, write
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.clip_adapter import Bottleneck
from vlp.adapters.pseudo_shots import PseudoLabels
from vlp.adapters.task import Examples, Task
from vlp.adapters.tfup import Tfup, TfupClassifier, cache_logits, log_probabilities, typical
from vlp.metrics.accuracy import Accuracy

EPS = 1e-6  # inside of the logarithm of mean probabilities, as in the released code


class TfupT(Tfup):
    """Logits s f'·t'_c, f' = norm(r A(f) + (1 - r) f), t' = norm((1 - q) t + q R), trained from what `tfup` says.

    A(x) = ReLU(W2 ReLU(W1 x)); R [C, D] starts at 0; AdamW with a cosine. The first `warmup` epochs learn from typical
    pictures as in `tfup`, `refined` N / C a class, labelled by the fitted `tfup`. Then all: cross-entropy of
    augmented copies to what `tfup` with f', t' says of the picture itself, where that is sure (> `threshold`), and
    `balance` * sum_c m_c log m_c with m the mean prediction. No cache afterwards. Copies are `views` of the pool where
    it has some, else the plain features (about: strong).

    The last epoch is kept; `protocol: paper` keeps the best on test, as the released code does. t is as long as
    `length` before R is added: theirs adds to weights of CLIP's own length, about 10, and lr is fitted to that. Our
    cosine ends where training does; theirs is reached before that, and the rate rises again. `epochs: 0` is zero-shot.
    """

    views: ClassVar[int] = 10

    text_ratio: float = Field(0.5, ge=0, lt=1)
    image_ratio: float = Field(0.2, ge=0, le=1)
    reduction: int = Field(4, ge=1)
    length: float = Field(10.0, gt=0)
    refined: float = Field(0.75, gt=0)
    threshold: float = Field(0.9, ge=0, le=1)
    balance: float = Field(0.3, ge=0)
    epochs: int = Field(30, ge=0)
    warmup: int = Field(5, ge=0)
    batch: int = Field(256, ge=1)
    lr: float = Field(0.012, gt=0)
    eps: float = Field(0.003, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    protocol: Literal["honest", "paper"] = "honest"

    def fit(self, encoder: Any, task: Task) -> TfupTClassifier | LinearClassifier:
        """A classifier that holds the network and the class weights."""
        teacher, pool = self.cached(encoder, task), self.given(task, "unlabelled")
        about: dict[str, Any] = {
            **teacher.about,
            "adapter": "tfup_t",
            "seed": task.seed,
            "strong": "features" if pool.views is None else "views",
        }
        zeroshot = teacher.zeroshot
        if not self.epochs:
            return LinearClassifier(zeroshot.weight, names=task.names, scale=encoder.scale, about=about)
        if self.leaky and task.test is None:
            raise ValueError("protocol: paper keeps the epoch that is best on test pictures, and this task holds none")
        rng = torch.Generator().manual_seed(task.seed)
        model = Adapted(self, zeroshot.weight, encoder.scale, rng)
        lessons = _Lessons(self, model, teacher, pool, rng)
        about["pseudolabels"] = PseudoLabels(lessons.row, lessons.label).record(pool, task.names)
        found, chosen = self._kept(model, self._train(model, lessons, rng), task)
        about["selection"] |= chosen
        linear = LinearClassifier(found.weight(), names=task.names, scale=encoder.scale, about=about)
        return TfupTClassifier(linear, found.image)

    def _kept(self, model: Adapted, epochs: Iterator[int], task: Task) -> tuple[Adapted, dict[str, Any]]:
        """The model after the epoch that is kept, and what a record says of the choice."""
        chosen: dict[str, Any] = {"epoch": self.epochs}
        best, found = -1.0, model
        for epoch in epochs:
            if self.leaky and task.test is not None:
                reached = _accuracy(model, task.test)
                if reached > best:
                    best, found = reached, deepcopy(model)
                    chosen = {"split": "test", "candidates": self.epochs, "epoch": epoch + 1, "acc1": reached}
        return found.requires_grad_(False), chosen

    def _train(self, model: Adapted, lessons: _Lessons, rng: torch.Generator) -> Iterator[int]:
        """Moves the parameters; says when an epoch, from 0, is over."""
        counts = [len(lessons.row) if epoch < self.warmup else len(lessons.pool) for epoch in range(self.epochs)]
        total, step = sum(-(-count // self.batch) for count in counts), 0
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.lr, eps=self.eps, weight_decay=self.weight_decay)
        for epoch, count in enumerate(counts):
            for rows in torch.randperm(count, generator=rng).split(self.batch):
                optimizer.param_groups[0]["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * step / total))
                optimizer.zero_grad()
                with torch.enable_grad():
                    loss = lessons.refined(rows) if epoch < self.warmup else lessons.whole(rows)
                    if not loss.isfinite():
                        raise ValueError(
                            f"tfup_t: the loss is {loss.item()} at step {step} of {total}; set a smaller lr"
                        )
                    loss.backward()
                optimizer.step()
                step += 1
            yield epoch


class Adapted(nn.Module):
    """The network before the class weights, and what is added to these, R [C, D]."""

    def __init__(self, settings: TfupT, text: Float[Tensor, "C D"], scale: float, rng: torch.Generator) -> None:
        super().__init__()
        width = text.shape[1]
        self.image = Bottleneck(width, max(1, width // settings.reduction), settings.image_ratio, rng)
        self.residual = nn.Parameter(torch.zeros_like(text))
        self.text, self.ratio, self.scale = settings.length * text, settings.text_ratio, scale

    def weight(self) -> Float[Tensor, "C D"]:
        """Class weights of unit norm."""
        return normalize((1 - self.ratio) * self.text + self.ratio * self.residual, dim=1)

    def forward(self, inputs: Float[Tensor, "n D"]) -> Float[Tensor, "n C"]:
        """Logits of features of unit norm."""
        found: Tensor = self.scale * self.image(inputs) @ self.weight().T
        return found


class _Lessons:
    """Losses of pictures by their number: among the refined ones, and in the whole pool."""

    def __init__(
        self, settings: TfupT, model: Adapted, teacher: TfupClassifier, pool: Examples, rng: torch.Generator
    ) -> None:
        self.settings, self.model, self.teacher, self.pool, self.rng = settings, model, teacher, pool, rng
        weight = teacher.zeroshot.weight
        shots = max(settings.least, int(settings.refined * len(pool) / len(weight)))
        self.row = typical(log_probabilities(pool.image, weight), shots).flatten()
        self.label = teacher(pool.image[self.row]).argmax(dim=1)

    def refined(self, rows: Int[Tensor, "b"]) -> Tensor:
        """Cross-entropy to what the cache said of them before training."""
        return cross_entropy(self.model(self._strong(self.row[rows])), self.label[rows])

    def whole(self, rows: Int[Tensor, "b"]) -> Tensor:
        """Cross-entropy to what it says now where it is sure, and the negative entropy of the mean prediction."""
        logits = self.model(self._strong(rows))
        sure, label = self._said(rows).softmax(dim=1).max(dim=1)
        mean = logits.softmax(dim=1).mean(dim=0)
        loss: Tensor = self.settings.balance * (mean * (mean + EPS).log()).sum()
        kept = sure > self.settings.threshold
        return loss + cross_entropy(logits[kept], label[kept]) if kept.any() else loss

    @torch.no_grad()
    def _said(self, rows: Int[Tensor, "b"]) -> Float[Tensor, "b C"]:
        """Logits of the pictures themselves by `tfup` with the adapted features and class weights."""
        teacher, weak, weight = self.teacher, self.model.image(self.pool.image[rows]), self.model.weight()
        cache = cache_logits(weak, teacher.key, teacher.label, weight, beta=teacher.beta)
        said: Tensor = self.model.scale * weak @ weight.T + teacher.alpha * cache
        return said

    def _strong(self, rows: Int[Tensor, "b"]) -> Float[Tensor, "b D"]:
        views = self.pool.views
        if views is None:
            return self.pool.image[rows]
        return views[rows, torch.randint(views.shape[1], rows.shape, generator=self.rng)]


class TfupTClassifier:
    """A Classifier over unit-norm features: a network before class weights."""

    needs = "features"
    kind = "tfup_t"

    def __init__(self, linear: LinearClassifier, network: Bottleneck) -> None:
        self.linear, self.network = linear, network

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.linear.names

    @property
    def about(self) -> Mapping[str, Any]:
        """How it was made."""
        return self.linear.about

    @torch.no_grad()
    def __call__(self, inputs: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Logits of features of unit norm."""
        return self.linear(self.network(inputs))

    def save(self, folder: Path) -> None:
        """Writes the tensors as safetensors and the rest as JSON."""
        facts = {"kind": self.kind, "names": self.names, "scale": self.linear.scale, "about": self.about}
        tensors = {"weight": self.linear.weight, **self.network.state_dict()}
        write(folder, tensors, {**facts, "ratio": self.network.ratio})

    @classmethod
    def load(cls, folder: Path) -> TfupTClassifier:
        """The classifier that `save` wrote; ValueError naming the folder if it is none."""
        found, facts = read(folder, kind=cls.kind, tensors=("weight", "down", "up"))
        weight = found.pop("weight")
        hidden, width = found["down"].shape
        network = Bottleneck(width, hidden, facts["ratio"], torch.Generator()).requires_grad_(False)
        network.load_state_dict(found)
        linear = LinearClassifier(weight, names=facts["names"], scale=facts["scale"], about=facts["about"])
        return cls(linear, network)


@torch.no_grad()
def _accuracy(model: Adapted, examples: Examples) -> float:
    accuracy = Accuracy(len(model.text), k=(1,))
    accuracy.update(model(examples.image), examples.known)
    return accuracy.compute()["acc1"]
