"""Gaussian discriminant analysis without labels: EM from zero-shot (Wang et al. 2024, arXiv 2402.04087)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from vlp.adapters.adapter import Adapter, Given, class_weights
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.gaussian import blend, discriminant, scatter_of, shrunk, uniform
from vlp.adapters.pseudo_shots import PseudoLabels
from vlp.adapters.task import Task


class GdaEm(Adapter):
    """Gaussians of one covariance fitted to unlabelled pictures by EM, from zero-shot probabilities.

    E: gamma = softmax(s f·t_c + alpha (f·w_c + b_c)), the first time with the words alone. M: mu_c and the scatter
    weighted by gamma, P = (S + tr(S) / (n-1) I)^-1. So each picture's prior is what the words say of it, and the
    fitted classifier is what the last E step would use. `prior: empirical` adds log mean gamma of the class. Nothing
    can be chosen without labels; our alpha of 1 weighs words and Gaussians as probabilities. No code was released.
    """

    wants: ClassVar[tuple[Given, ...]] = ("unlabelled",)

    alpha: float = Field(1.0, ge=0)
    steps: int = Field(10, ge=0)
    prior: Literal["uniform", "empirical"] = "uniform"

    def fit(self, encoder: Any, task: Task) -> LinearClassifier:
        """A linear classifier with words and Gaussians added up; after 0 steps the words alone."""
        pool = self.given(task, "unlabelled")
        features = pool.image.double()
        text = class_weights(encoder, task)
        words = encoder.scale * features @ text.double().T
        gaussian = (torch.zeros_like(text, dtype=torch.float64), torch.zeros(len(text), dtype=torch.float64))
        mean = features.mean(dim=0).expand(len(text), -1)
        whole = scatter_of(features)
        for _ in range(self.steps if self.alpha else 0):
            gamma = (words + self.alpha * (features @ gaussian[0].T + gaussian[1])).softmax(dim=1)
            mean, gaussian = self._maximise(features, gamma, mean, whole)
        label = (words + self.alpha * (features @ gaussian[0].T + gaussian[1])).argmax(dim=1)
        return LinearClassifier(
            **blend(text, gaussian, scale=encoder.scale, alpha=self.alpha),
            names=task.names,
            scale=encoder.scale,
            about={
                "adapter": "gda_em",
                "settings": self.model_dump(mode="json"),
                "selection": {"split": "none", "n": len(features)},
                "pseudolabels": PseudoLabels(torch.arange(len(pool)), label).record(pool, task.names),
            },
        )

    def _maximise(
        self, features: Float[Tensor, "n D"], gamma: Float[Tensor, "n C"], last: Tensor, whole: Float[Tensor, "D D"]
    ) -> tuple[Float[Tensor, "C D"], tuple[Float[Tensor, "C D"], Float[Tensor, "C"]]]:
        """Means, and w and b, of pictures that belong to the classes by so much."""
        mass = gamma.sum(dim=0)
        tiny = torch.finfo(mass.dtype).tiny
        mean = torch.where(mass[:, None] > tiny, gamma.T @ features / mass.clamp(min=tiny)[:, None], last)
        scatter = whole - mean.T @ (mass[:, None] * mean)  # as each mean is that of its class, the mixed terms cancel
        log_prior = uniform(len(mass))
        if self.prior == "empirical":
            log_prior = (mass.clamp(min=tiny) / len(features)).log()
        return mean, discriminant(mean, shrunk(scatter, len(features)), log_prior)
