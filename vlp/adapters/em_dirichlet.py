"""Transductive classification by a mixture of Dirichlet densities (EM-Dirichlet, Martin et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from vlp.adapters.adapter import Adapter, Given, class_weights
from vlp.adapters.archive import read, write
from vlp.adapters.assignment import assign
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.dirichlet import EPS, Labelled, by_mm, labelled, log_density, log_features, log_shares, sums
from vlp.adapters.task import Task


class EmDirichlet(Adapter):
    """Assignments u of the measured pictures by a penalised mixture of K Dirichlet densities (arXiv 2405.18437).

    z = softmax(`temperature` f·w); from u = z, alpha = 1 each of `steps` rounds does: alpha_k the likeliest by MM,
    v_k = log mean u_k + 1, u = softmax_k(log Dirichlet(z; alpha_k) + penalty v_k). The penalty, lambda / |Q| in the
    paper, is floor(C / `effective`): 5 classes are supposed to be among the pictures. A whole test set has all of
    them, and with `effective` at 5 its rarer classes are emptied; set it to their number. With a support its pictures
    join their clusters' sums. Without one, clusters with pictures are matched to classes by mean z: `assign` gives
    each its own class (Hungarian), `argmax` its best. `steps: 0` is zero-shot.
    """

    wants: ClassVar[tuple[Given, ...]] = ("query",)
    takes: ClassVar[tuple[Given, ...]] = ("support",)
    transductive: ClassVar[bool] = True

    temperature: float = Field(30.0, gt=0)
    steps: int = Field(20, ge=0)
    mm_steps: int = Field(1000, ge=1)
    effective: int = Field(5, ge=1)
    match: Literal["assign", "argmax", "none"] = "assign"

    def fit(self, encoder: Any, task: Task) -> DirichletClassifier | LinearClassifier:
        """A classifier that holds the mixture; of the measured pictures it says the last assignments."""
        query, text = self.given(task, "query"), class_weights(encoder, task)
        support = task.support if task.support is not None and len(task.support) else None
        about = {
            "adapter": "em_dirichlet",
            "settings": self.model_dump(mode="json"),
            "selection": {"split": "none", "n": len(query)},
            "form": "zero-shot" if support is None else "few-shot",
        }
        if not self.steps:
            return LinearClassifier(text, names=task.names, scale=encoder.scale, about=about)
        log_z = log_features(cosines(query.image, text), self.temperature)
        known = None
        if support is not None:
            known = labelled(log_features(cosines(support.image, text), self.temperature), support.known)
        alpha, prior, share = self._mixture(log_z, known)
        used = int(share.argmax(dim=1).unique().numel())
        return DirichletClassifier(
            text,
            alpha,
            prior,
            owner=torch.arange(len(text)) if support is not None else self._owners(share, log_z.exp()),
            temperature=self.temperature,
            names=task.names,
            about={**about, "clusters": used},
        )

    def _mixture(self, log_z: Float[Tensor, "n K"], known: Labelled | None) -> tuple[Tensor, Tensor, Tensor]:
        """The parameters alpha [K, K], penalty times v [K], and assignments [n, K]."""
        count, classes = log_z.shape
        penalty = classes // min(self.effective, classes)
        share = log_z.exp()
        alpha = torch.ones(classes, classes, dtype=log_z.dtype)
        prior = torch.zeros(classes, dtype=log_z.dtype)
        for _ in range(self.steps):
            mass, log_sum = sums(share, log_z, known)
            full = mass > EPS  # an empty cluster keeps its parameters
            alpha[full] = by_mm(alpha[full], log_sum[full] / mass[full][:, None], steps=self.mm_steps)
            prior = penalty * log_shares(share, count)
            share = (log_density(log_z, alpha) + prior).softmax(dim=1)
        return alpha, prior, share

    def _owners(self, share: Float[Tensor, "n K"], z: Float[Tensor, "n K"]) -> Int[Tensor, "K"]:
        """Class of each cluster; one without pictures keeps its class if that is free, else takes one that is left."""
        classes = share.shape[1]
        owner = torch.arange(classes)
        if self.match == "none":
            return owner
        member = one_hot(share.argmax(dim=1), classes).to(z)
        size = member.sum(dim=0)
        used = size > 0
        mean = (member.T @ z)[used] / size[used, None]
        if self.match == "argmax":
            owner[used] = mean.argmax(dim=1)
            return owner
        owner[used] = assign(mean)
        free = set(range(classes)) - set(owner[used].tolist())
        empty = torch.where(~used)[0].tolist()
        kept = [cluster for cluster in empty if cluster in free]
        left = sorted(free - set(kept))
        owner[[cluster for cluster in empty if cluster not in free]] = torch.tensor(left, dtype=torch.long)
        return owner


class DirichletClassifier:
    """A Classifier over unit-norm features by K Dirichlet densities on z = softmax(temperature f·w).

    Logits of cluster k are sharpness * (log Dirichlet(z; alpha_k) + prior_k), in fp64, and go to the class that owns
    it: several clusters of one class are added up as probabilities, and a class without one has -inf.
    """

    needs = "features"
    kind = "dirichlet"

    def __init__(
        self,
        weight: Float[Tensor, "K D"],
        alpha: Float[Tensor, "K K"],
        prior: Float[Tensor, "K"],
        *,
        owner: Int[Tensor, "K"],
        temperature: float,
        names: Sequence[str],
        sharpness: float = 1.0,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.weight, self.alpha, self.prior, self.owner = weight, alpha, prior, owner
        self.temperature, self.sharpness = temperature, sharpness
        self.names, self.about = tuple(names), dict(about or {})

    def __call__(self, inputs: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Logits of features of unit norm."""
        log_z = log_features(cosines(inputs, self.weight), self.temperature)
        logits = self.sharpness * (log_density(log_z, self.alpha) + self.prior)
        owner = self.owner.expand_as(logits)
        best = torch.full_like(logits, -torch.inf).scatter_reduce(1, owner, logits, "amax")
        above = (logits - best.gather(1, owner)).exp()
        return best + torch.zeros_like(logits).scatter_add_(1, owner, above).log()

    def save(self, folder: Path) -> None:
        """Writes the tensors as safetensors and the rest as JSON."""
        tensors = {"weight": self.weight, "alpha": self.alpha, "prior": self.prior, "owner": self.owner}
        scales = {"temperature": self.temperature, "sharpness": self.sharpness}
        write(folder, tensors, {"kind": self.kind, "names": self.names, **scales, "about": self.about})

    @classmethod
    def load(cls, folder: Path) -> DirichletClassifier:
        """The classifier that `save` wrote; ValueError naming the folder if it is none."""
        found, facts = read(folder, kind=cls.kind, tensors=("weight", "alpha", "prior", "owner"))
        rest = {name: facts[name] for name in ("temperature", "sharpness", "names", "about")}
        return cls(found["weight"], found["alpha"], found["prior"], owner=found["owner"], **rest)


def cosines(features: Float[Tensor, "n D"], weight: Float[Tensor, "K D"]) -> Float[Tensor, "n K"]:
    """Of features and class weights of unit norm, in fp64."""
    return features.double() @ weight.double().T
