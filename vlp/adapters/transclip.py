"""Transductive zero- and few-shot by Gaussians, neighbours and words (TransCLIP, Zanella et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from vlp.adapters.adapter import Adapter, Given, class_weights
from vlp.adapters.archive import read, write
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.selection import choose, folds, pooled, score
from vlp.adapters.task import Examples, Task
from vlp.probe.neighbours import neighbours

GAMMAS = (0.002, 0.01, 0.02, 0.2)
UNCHOSEN = 0.02  # gamma where nothing can be chosen
TEMPER = 50.0  # divides the Gaussians' log-likelihood, and multiplies the support's weight, as in the released code
SPREAD = 1e-12  # least variance, of a dimension in which nothing differs


class TransClip(Adapter):
    """Assignments z of the measured pictures to C Gaussians of one diagonal variance (arXiv 2406.01837).

    `inner` times a step z = softmax(lambda log y + log N(f; mu, s2) / 50 + sum_j (w_ij + w_ji) z_j / 2k), y what
    zero-shot says and w_ij >= 0 the cosine to the k = `nearest` other pictures; then mu is the normalised mean and s2
    the mean squared deviation weighted by z. It starts at z = y, mu from the `confident` likeliest of each class, s2 =
    1/D. With a support its pictures count in mu and s2 (weight 50 gamma, all together) and as neighbours of their
    nearest; lambda (`words`) is 1 without and .5 with one; gamma (None: chosen) on validation, else by
    cross-validation in the support, else .02. `steps: 0` is zero-shot.

    Ours: the classes are the names, where the released code counts labels of the test pictures. Its few-shot neighbours
    are pictures shifted by the size of the support, and each gamma goes on from the one before; here the graph and z
    have one order, and each starts anew.
    """

    wants: ClassVar[tuple[Given, ...]] = ("query",)
    takes: ClassVar[tuple[Given, ...]] = ("support",)
    transductive: ClassVar[bool] = True

    steps: int = Field(10, ge=0)
    inner: int = Field(5, ge=1)
    nearest: int = Field(3, ge=0)
    confident: int = Field(8, ge=1)
    words: float | None = Field(None, ge=0)
    gamma: float | None = Field(None, ge=0)

    def fit(self, encoder: Any, task: Task) -> TransClipClassifier | LinearClassifier:
        """A classifier that holds Gaussians and assignments; of the measured pictures it says the last of these."""
        query, text = self.given(task, "query"), class_weights(encoder, task)
        support = task.support if task.support is not None and len(task.support) else None
        zeroshot = LinearClassifier(text, names=task.names, scale=encoder.scale)
        gamma, selection = (0.0, {"split": "none"})
        if self.steps and support is not None:
            gamma, selection = self._choose(query, zeroshot, task)
        zeroshot.about = {
            "adapter": "transclip",
            "settings": self.model_dump(mode="json"),
            "selection": {**selection, "n": len(query)},
            "form": "zero-shot" if support is None else "few-shot",
        }
        return self._solved(query, zeroshot, support, gamma) if self.steps else zeroshot

    def _choose(self, query: Examples, zeroshot: LinearClassifier, task: Task) -> tuple[float, dict[str, Any]]:
        """gamma, and what a record says of it."""
        found = folds(task) if self.gamma is None else None
        if found is None or not found.folds:
            gamma = UNCHOSEN if self.gamma is None else self.gamma
            return gamma, {"split": "none", "gamma": gamma}

        def judge(gamma: float) -> Any:
            parts = []
            for learn, held in found.folds:
                made = self._solved(query, zeroshot, learn, gamma)
                parts.append((score(made(held.image), held.known), len(held)))
            return pooled(parts)

        chosen = choose(GAMMAS, judge, split=found.split, unchosen=UNCHOSEN)
        return chosen.value, {**chosen.selection, "gamma": chosen.value}

    def _solved(
        self, query: Examples, zeroshot: LinearClassifier, support: Examples | None, gamma: float
    ) -> TransClipClassifier:
        words = (1.0 if support is None else 0.5) if self.words is None else self.words
        features, prior = query.image.double(), zeroshot(query.image).double().log_softmax(dim=1)
        graph = Graph.of(features, self.nearest)
        known = Known.of(support, gamma, len(zeroshot.names), features)
        beside = torch.zeros_like(prior) if support is None else _pull(features, support, known.share, self.nearest)
        share = prior.exp()
        gaussians = Gaussians(self._means(features, share, known), torch.full_like(features[0], 1 / features.shape[1]))
        for step in range(self.steps + 1):
            if step:
                gaussians = gaussians.moved(features, share, known)
            start = words * prior + gaussians.log_likelihood(features) / TEMPER
            for _ in range(self.inner):
                logits = start + (graph.seen(share) + beside) / (2 * max(1, self.nearest))
                share = logits.softmax(dim=1)
        return TransClipClassifier(zeroshot, gaussians, query.image, logits, words=words, nearest=self.nearest)

    def _means(self, features: Float[Tensor, "n D"], share: Float[Tensor, "n C"], known: Known) -> Float[Tensor, "C D"]:
        """The support's where a class has some, else those of its likeliest pictures, weighted by how likely."""
        top = share.topk(min(self.confident, len(share)), dim=0)
        likeliest = torch.einsum("kc,kcd->cd", top.values, features[top.indices])
        there = known.share.sum(dim=0)[:, None] > 0
        return normalize(torch.where(there, known.share.T @ known.features, likeliest), dim=1)


class Known(NamedTuple):
    """Pictures of known class: features, one-hot classes, and the weight of each beside 1/n of a measured one."""

    features: Float[Tensor, "m D"]
    share: Float[Tensor, "m C"]
    weight: float

    @classmethod
    def of(cls, support: Examples | None, gamma: float, classes: int, like: Float[Tensor, "n D"]) -> Known:
        """Those of the support; none without one."""
        if support is None:
            return cls(like[:0], like.new_zeros(0, classes), 0.0)
        share = one_hot(support.known, classes).double()
        return cls(support.image.double(), share, gamma * TEMPER / len(support))


class Gaussians(NamedTuple):
    """C means and one variance a dimension."""

    mean: Float[Tensor, "C D"]
    variance: Float[Tensor, "D"]

    def log_likelihood(self, features: Float[Tensor, "n D"]) -> Float[Tensor, "n C"]:
        """That of every picture under every class, but for what is the same for all classes."""
        return (features / self.variance) @ self.mean.T - (self.mean.square() / self.variance).sum(dim=1) / 2

    def moved(self, features: Float[Tensor, "n D"], share: Float[Tensor, "n C"], known: Known) -> Gaussians:
        """Those of these assignments; a class that has nothing keeps its mean."""
        total = share.T @ features / len(features) + known.weight * known.share.T @ known.features
        mass = share.mean(dim=0) + known.weight * known.share.sum(dim=0)
        mean = torch.where(total.norm(dim=1, keepdim=True) > 0, normalize(total, dim=1), self.mean)
        squares = features.square().mean(dim=0) + known.weight * known.features.square().sum(dim=0)
        deviation = squares - 2 * (mean * total).sum(dim=0) + mass @ mean.square()
        return Gaussians(mean, (deviation / mass.sum()).clamp(min=SPREAD))


class Graph(NamedTuple):
    """The nearest other pictures of each, and their cosines."""

    row: Int[Tensor, "n k"]
    weight: Float[Tensor, "n k"]

    @classmethod
    def of(cls, features: Float[Tensor, "n D"], count: int) -> Graph:
        """Of the features; a picture is no neighbour of itself, not even where another equals it."""
        wanted = min(count, len(features) - 1)
        found = neighbours(features, features, k=wanted + 1)
        own = found.row == torch.arange(len(features))[:, None]
        order = own.int().argsort(dim=1, stable=True)[:, :wanted]  # itself last; where it is not there, the farthest
        return cls(found.row.gather(1, order), found.similarity.gather(1, order).clamp(min=0))

    def seen(self, share: Float[Tensor, "n C"]) -> Float[Tensor, "n C"]:
        """sum_j (w_ij + w_ji) z_j."""
        total = torch.zeros_like(share)
        for row, weight in zip(self.row.T, self.weight.T[:, :, None], strict=True):
            total += weight * share[row]
            total.index_add_(0, row, weight * share)
        return total


def _pull(features: Tensor, support: Examples, share: Float[Tensor, "m C"], count: int) -> Float[Tensor, "n C"]:
    """The sum of w_ji z_j over support pictures j that have i among their nearest."""
    total = features.new_zeros(len(features), share.shape[1])
    if count:
        found = neighbours(support.image.double(), features, k=min(count, len(features)))
        for row, weight in zip(found.row.T, found.similarity.clamp(min=0).T, strict=True):
            total.index_add_(0, row, weight[:, None] * share)
    return total


class TransClipClassifier:
    """A Classifier over unit-norm features, with Gaussians and the assignments of the n pictures they were fitted to.

    For one of these pictures (the same feature, bit for bit) it gives the logits of the fitted assignment. For any
    other the last step is taken with the neighbours that it has among them, as if these had it for theirs:
    lambda log y + log N / 50 + mean over the k nearest of w z. fp64.
    """

    needs = "features"
    kind = "transclip"

    def __init__(
        self,
        zeroshot: LinearClassifier,
        gaussians: Gaussians,
        query: Float[Tensor, "n D"],
        logits: Float[Tensor, "n C"],
        *,
        words: float,
        nearest: int,
    ) -> None:
        self.zeroshot, self.gaussians, self.query, self.logits = zeroshot, gaussians, query, logits
        self.words, self.nearest = words, nearest
        self.places = {row: place for place, row in enumerate(_bytes(query))}

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.zeroshot.names

    @property
    def about(self) -> Mapping[str, Any]:
        """How it was made."""
        return self.zeroshot.about

    def __call__(self, inputs: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Logits whose softmax are assignments."""
        place = torch.tensor(
            [self.places.get(row, -1) for row in _bytes(inputs.to(self.query.dtype))], dtype=torch.long
        )
        logits = self.logits[place]
        other = torch.where(place < 0)[0]
        if len(other):
            logits[other] = self._outside(inputs[other])
        return logits

    def _outside(self, inputs: Float[Tensor, "b D"]) -> Float[Tensor, "b C"]:
        features, count = inputs.double(), min(self.nearest, len(self.query))
        prior = self.zeroshot(inputs).double().log_softmax(dim=1)
        logits = self.words * prior + self.gaussians.log_likelihood(features) / TEMPER
        if count:
            found, share = neighbours(features, self.query.double(), k=count), self.logits.softmax(dim=1)
            for row, weight in zip(found.row.T, found.similarity.clamp(min=0).T, strict=True):
                logits = logits + weight[:, None] * share[row] / self.nearest
        return logits

    def save(self, folder: Path) -> None:
        """Writes the tensors as safetensors and the rest as JSON."""
        mean, variance = self.gaussians
        tensors = {"weight": self.zeroshot.weight, "mean": mean, "variance": variance}
        facts = {"kind": self.kind, "names": self.names, "scale": self.zeroshot.scale, "about": self.about}
        settings = {"words": self.words, "nearest": self.nearest}
        write(folder, {**tensors, "query": self.query, "logits": self.logits}, {**facts, **settings})

    @classmethod
    def load(cls, folder: Path) -> TransClipClassifier:
        """The classifier that `save` wrote; ValueError naming the folder if it is none."""
        found, facts = read(folder, kind=cls.kind, tensors=("weight", "mean", "variance", "query", "logits"))
        zeroshot = LinearClassifier(found["weight"], names=facts["names"], scale=facts["scale"], about=facts["about"])
        gaussians = Gaussians(found["mean"], found["variance"])
        settings = {"words": facts["words"], "nearest": facts["nearest"]}
        return cls(zeroshot, gaussians, found["query"], found["logits"], **settings)


def _bytes(features: Float[Tensor, "n D"]) -> list[bytes]:
    """Each row as what it is in memory."""
    return [row.tobytes() for row in features.detach().cpu().contiguous().numpy()]
