"""A cache of typical pictures without labels beside zero-shot (TFUP, Long et al. 2024, arXiv 2404.16339)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from vlp.adapters.adapter import Adapter, Given, class_weights
from vlp.adapters.archive import read, write
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.pseudo_shots import PseudoLabels
from vlp.adapters.task import Task

TEMPERATURE = 10.0  # of the probabilities that select and compare; 100 would leave nothing to compare


class Tfup(Adapter):
    """Logits s f·t_c + alpha * sum_m exp(-beta (1 - f·k_m sim_m)) [y_m = c], keys k from pictures without labels.

    p = softmax(10 f·t). Of each class the 2S pictures of the highest p_c (confident), and of these the S with the least
    sum of KL(p_j || p_m) over the others (typical); all are given that class. S = `proportion` N / C, within `least`
    and `most`. sim_m in [0, 2] falls with KL(p(f) || p(k_m)): 2 (1 - min-max over the cache). The released code takes
    z-scores before, which the min-max undoes; without any spread sim is 1, where theirs is 0/0. One picture may stand
    in the caches of several classes. Class weights are means of normalised prompts, as everywhere here; theirs are not
    normalised first.
    """

    wants: ClassVar[tuple[Given, ...]] = ("unlabelled",)

    alpha: float = Field(0.3, ge=0)
    beta: float = Field(1.0, gt=0)
    proportion: float = Field(0.3, gt=0)
    least: int = Field(9, ge=1)
    most: int = Field(16, ge=1)

    def fit(self, encoder: Any, task: Task) -> Any:
        """A TfupClassifier."""
        return self.cached(encoder, task)

    def cached(self, encoder: Any, task: Task) -> TfupClassifier:
        """A classifier that holds the cache, and which pictures of the pool are in it."""
        pool, text = self.given(task, "unlabelled"), class_weights(encoder, task)
        shots = min(self.most, max(self.least, int(self.proportion * len(pool) / len(text))))
        rows = typical(log_probabilities(pool.image, text), shots)
        about = {
            "adapter": "tfup",
            "settings": self.model_dump(mode="json"),
            "selection": {"split": "none", "n": len(pool), "shots": rows.shape[1]},
        }
        label = torch.arange(len(text)).repeat_interleave(rows.shape[1])
        found = rows.flatten()
        about["pseudolabels"] = PseudoLabels(found, label).record(pool, task.names)
        zeroshot = LinearClassifier(text, names=task.names, scale=encoder.scale, about=about)
        return TfupClassifier(zeroshot, pool.image[found], label, row=found, alpha=self.alpha, beta=self.beta)


class TfupClassifier:
    """A Classifier over unit-norm features around a zero-shot one, with M keys, their labels, and rows in the pool."""

    needs = "features"
    kind = "tfup"

    def __init__(
        self,
        zeroshot: LinearClassifier,
        key: Float[Tensor, "M D"],
        label: Int[Tensor, "M"],
        *,
        row: Int[Tensor, "M"],
        alpha: float,
        beta: float,
    ) -> None:
        self.zeroshot, self.key, self.label, self.row, self.alpha, self.beta = zeroshot, key, label, row, alpha, beta

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
        words = self.zeroshot(inputs)
        if not self.alpha:
            return words
        return words + self.alpha * cache_logits(inputs, self.key, self.label, self.zeroshot.weight, beta=self.beta)

    def save(self, folder: Path) -> None:
        """Writes the tensors as safetensors and the rest as JSON."""
        facts = {"kind": self.kind, "names": self.names, "scale": self.zeroshot.scale, "about": self.about}
        tensors = {"weight": self.zeroshot.weight, "key": self.key, "label": self.label, "row": self.row}
        write(folder, tensors, {**facts, "alpha": self.alpha, "beta": self.beta})

    @classmethod
    def load(cls, folder: Path) -> TfupClassifier:
        """The classifier that `save` wrote; ValueError naming the folder if it is none."""
        found, facts = read(folder, kind=cls.kind, tensors=("weight", "key", "label", "row"))
        zeroshot = LinearClassifier(found["weight"], names=facts["names"], scale=facts["scale"], about=facts["about"])
        strengths = {"alpha": facts["alpha"], "beta": facts["beta"]}
        return cls(zeroshot, found["key"], found["label"], row=found["row"], **strengths)


def log_probabilities(features: Float[Tensor, "n D"], weight: Float[Tensor, "C D"]) -> Float[Tensor, "n C"]:
    """Logarithms of the probability of every class at temperature 10, in fp64."""
    return (TEMPERATURE * features.double() @ weight.double().T).log_softmax(dim=1)


def typical(log_p: Float[Tensor, "n C"], shots: int) -> Int[Tensor, "C S"]:
    """Rows of `shots` pictures a class (all, if there are fewer), the most typical among the 2 * shots likeliest.

    Typical is what has the least sum of Kullback-Leibler divergences to the other candidates.
    """
    likeliest = log_p.topk(min(2 * shots, len(log_p)), dim=0).indices
    found = []
    for candidates in likeliest.T:
        own = log_p[candidates]
        p = own.exp()
        divergence = len(own) * (p * own).sum(dim=1) - p @ own.sum(dim=0)
        found.append(candidates[divergence.argsort(stable=True)[:shots]])
    return torch.stack(found)


def cache_logits(
    inputs: Float[Tensor, "B D"],
    key: Float[Tensor, "M D"],
    label: Int[Tensor, "M"],
    weight: Float[Tensor, "C D"],
    *,
    beta: float,
) -> Float[Tensor, "B C"]:
    """What the cache says of each class, by cosines to its keys and by how alike the words find picture and key."""
    # KL up to the picture's own entropy, which is the same for all keys and so leaves the min-max
    divergence = -log_probabilities(inputs, weight).exp() @ log_probabilities(key, weight).T
    low, high = divergence.amin(dim=1, keepdim=True), divergence.amax(dim=1, keepdim=True)
    spread = high - low
    alike = torch.where(spread > 0, 2 * (1 - (divergence - low) / spread), 1.0).to(inputs.dtype)
    value = one_hot(label, len(weight)).to(inputs.dtype)
    return (beta * (inputs @ key.T * alike - 1)).exp() @ value
