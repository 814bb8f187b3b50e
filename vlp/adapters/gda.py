"""Gaussian discriminant analysis beside zero-shot, without training (Wang et al. 2024, arXiv 2402.04087)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from vlp.adapters.adapter import Adapter, Given, class_weights
from vlp.adapters.gaussian import (
    Estimator,
    GaussianClassifier,
    blend,
    discriminant,
    kubokawa,
    pseudo_inverse,
    scatter_of,
    uniform,
)
from vlp.adapters.seen import check_every_class, class_means, rows_of, seen
from vlp.adapters.selection import NOTHING, choose, folds, pooled, score
from vlp.adapters.task import Examples, Task

ALPHAS = tuple(10.0**power for power in range(-4, 3))
UNCHOSEN = 0.1  # the middle of them, where there is nothing to choose on


class Gda(Adapter):
    """Logits s f·t_c + alpha (f·w_c + b_c), w_c = P mu_c, b_c = log pi_c - mu_c·P mu_c / 2 (2402.04087).

    Rows are augmented copies where there are some. P by `precision`: "kubokawa" shrinks (their few-shot), "pooled" is
    the pseudo-inverse of the covariance within classes (LDA), "classes" that of the mean covariance of the classes
    (their base-to-new). `prior: empirical` has pi_c as in the pictures, for unequal classes. alpha (None: chosen on
    validation, else in the support) is of these rows: under "kubokawa" P shrinks as their number n grows, so n stands
    beside it, and folds weigh their own P by its size against that of the whole. One picture a class without copies
    has no spread: zero-shot plus a constant; in folds of two pictures a class it chooses nothing. `protocol: paper`
    chooses on test as their ImageNet does. `neighbours` and `copies` are for `transfer`.
    """

    wants: ClassVar[tuple[Given, ...]] = ("support",)
    views: ClassVar[int] = 10

    alpha: float | None = Field(None, ge=0)
    precision: Estimator = "kubokawa"
    prior: Literal["uniform", "empirical"] = "uniform"
    neighbours: int = Field(64, ge=2)
    copies: int = Field(16, ge=0)
    protocol: Literal["honest", "paper"] = "honest"

    def fit(self, encoder: Any, task: Task) -> GaussianClassifier:
        """A linear classifier with words and Gaussians added up."""
        support = self.given(task, "support")
        check_every_class(support, task.names, who="gda")
        text = class_weights(encoder, task)
        alpha, selection = self._choose(task, text, encoder.scale)
        rows = rows_of(support)[0]
        found = GaussianClassifier(
            **blend(text, self._gaussian(support, len(task.names)), scale=encoder.scale, alpha=alpha),
            names=task.names,
            scale=encoder.scale,
            about={
                "adapter": "gda",
                "settings": self.model_dump(mode="json"),
                "selection": {**selection, "alpha": alpha, "n": len(rows)},
            },
        )
        found.bank = rows.to(text.dtype)
        return found

    def transfer(self, encoder: Any, classifier: Any, task: Task) -> GaussianClassifier:
        """Gaussians for classes known by words alone (their base-to-new).

        mu_c is the mean of the `neighbours` rows nearest to t_c and of `copies` times t_c itself; P is the mean over
        classes of the shrunk precision of those neighbours around t_c. Theirs takes alpha as it is, chosen under
        "classes"; one that was chosen under "kubokawa" is first multiplied by D / (n - 1), the size of that precision
        against theirs.
        """
        bank = getattr(classifier, "bank", None)
        if bank is None:
            raise ValueError("gda keeps the features it learned from in memory only: fit it in the run that transfers")
        text, chosen = class_weights(encoder, task), classifier.about["selection"]
        count = min(self.neighbours, len(bank))
        alpha = chosen["alpha"] * self._size(len(bank), bank.shape[1])
        classes, rows = text.double(), bank.double()
        near = (classes @ rows.T).topk(count, dim=1).indices
        mean = (rows[near].sum(dim=1) + self.copies * classes) / (count + self.copies)
        precision = torch.zeros(bank.shape[1], bank.shape[1], dtype=torch.float64)
        for own, places in zip(classes, near, strict=True):
            precision += kubokawa(scatter_of(rows[places] - own), count) / len(classes)
        found = GaussianClassifier(
            **blend(text, discriminant(mean, precision, uniform(len(classes))), scale=encoder.scale, alpha=alpha),
            names=task.names,
            scale=encoder.scale,
            about={**classifier.about, "selection": {**chosen, "alpha_new": alpha, "neighbours": count}},
        )
        found.bank = bank
        return found

    def _size(self, rows: int, width: int) -> float:
        """That of P of so many rows: it divides what alpha must be."""
        return width / max(1, rows - 1) if self.precision == "kubokawa" else 1.0

    def _choose(self, task: Task, text: Float[Tensor, "C D"], scale: float) -> tuple[float, dict[str, Any]]:
        """alpha, and what a record says of the choice."""
        if self.alpha is not None:
            return self.alpha, NOTHING
        found = folds(task, leaky=self.leaky)
        whole, width = len(rows_of(self.given(task, "support"))[0]), text.shape[1]
        judged = []
        for part in seen(found):
            size = self._size(whole, width) / self._size(len(rows_of(part.learn)[0]), width)
            weight, bias = self._gaussian(part.learn, len(part.classes), times=size)
            if not weight.any():
                continue  # without spread there is nothing that alpha could weigh
            image, known = part.judge.image.double(), part.judge.known
            judged.append((scale * image @ text[part.classes].double().T, image @ weight.T + bias, known))
        if not judged:
            return UNCHOSEN, NOTHING
        chosen = choose(
            ALPHAS,
            lambda alpha: pooled((score(words + alpha * own, known), len(known)) for words, own, known in judged),
            split=found.split,
            unchosen=UNCHOSEN,
        )
        return chosen.value, chosen.selection

    def _gaussian(
        self, examples: Examples, classes: int, *, times: float = 1.0
    ) -> tuple[Float[Tensor, "C D"], Float[Tensor, "C"]]:
        """Weights and biases in fp64, of a precision multiplied by `times`."""
        rows, label = rows_of(examples)
        mean = class_means(rows, label, classes)
        count = label.bincount(minlength=classes).double()
        log_prior = uniform(classes) if self.prior == "uniform" else (count / len(rows)).log()
        return discriminant(mean, times * self._precision(rows - mean[label], label, count), log_prior)

    def _precision(self, centred: Tensor, label: Tensor, count: Tensor) -> Tensor:
        rows = len(centred)
        if self.precision == "kubokawa":
            return kubokawa(scatter_of(centred), rows)
        if self.precision == "pooled":
            return pseudo_inverse(scatter_of(centred) / max(1, rows - 1))
        several = count > 1  # one row has no covariance
        weight = torch.where(several, 1 / (count - 1).clamp(min=1), 0)[label] / several.sum().clamp(min=1)
        return pseudo_inverse(scatter_of(centred * weight.sqrt()[:, None]))
