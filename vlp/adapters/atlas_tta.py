"""aTLAS without labels: pseudo-labels that the model trusts, for pictures of the domain or those to be measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from vlp.adapters.adapter import Given
from vlp.adapters.atlas import AT_LEAST, Atlas, Composition
from vlp.adapters.fitting import PictureBatches, pixels, seeded, steps_of
from vlp.adapters.task import Examples, Task
from vlp.adapters.tuned import TunedClassifier, features_and_weights
from vlp.adapters.tuning import frozen

MOST = 100  # trusted pictures of a class
UNTRUSTED = -1


class AtlasUFM(Atlas):
    """aTLAS on pictures without labels: FixMatch with trusted pictures (2407.02880, UFM).

    In every epoch the k = min(n / C / 10, 100) pictures, at least one, to which the model gives the highest
    probability of a class have that class as their label. The label of another picture is its best class, where that
    has a probability above `threshold`. Half of each batch is trusted. Cross-entropy of the augmented picture with the
    label of the plain one. Nothing is chosen: the last epoch counts, where the released code takes the best on test.
    It also trusts every picture, with labels of the zero-shot model, because of an index that is one too many.
    """

    method: ClassVar[str] = "atlas_ufm"
    wants: ClassVar[tuple[Given, ...]] = ("unlabelled",)
    source: ClassVar[Given] = "unlabelled"

    lr: float = Field(1e-3, gt=0)
    threshold: float = Field(0.99, ge=0, le=1)

    def fit(self, encoder: Any, task: Task) -> TunedClassifier:
        """A classifier with the composed weights."""
        pictures = self.given(task, self.source)
        vectors = self.composition(encoder, task)
        coefficients = vectors.start()
        per_epoch = steps_of(1, len(pictures), self.batch_size, at_least=AT_LEAST)
        with seeded(encoder.device, task.seed) as rng, frozen(encoder):
            loss = self._loss(encoder, pictures, task, vectors, coefficients, per_epoch=per_epoch, rng=rng)
            self.descend(encoder, coefficients, loss, steps=self.epochs * per_epoch, rows=len(pictures), rng=rng)
        return self.classifier(encoder, task, vectors.at(coefficients.detach()), inner=vectors.inner)

    def _loss(
        self,
        encoder: Any,
        pictures: Examples,
        task: Task,
        vectors: Composition,
        coefficients: Tensor,
        *,
        per_epoch: int,
        rng: torch.Generator,
    ) -> Callable[[Int[Tensor, "b"], int], Tensor]:
        plain = pixels(encoder, pictures, who=self.method)
        strong = PictureBatches(encoder, pictures, self.augment, rng, who=self.method)
        trusted = torch.full((len(pictures),), UNTRUSTED)

        def probabilities(rows: Tensor) -> Tensor:
            made = TunedClassifier(encoder, vectors.at(coefficients.detach()), names=task.names)
            return made(plain[rows]).softmax(dim=1)

        def loss(rows: Tensor, step: int) -> Tensor:
            if step % per_epoch == 0:
                trusted.copy_(trust(probabilities(torch.arange(len(plain)))))
            sure = torch.where(trusted != UNTRUSTED)[0]
            half = sure[torch.randint(len(sure), (-(-len(rows) // 2),), generator=rng)]
            rows = torch.cat([half, rows[len(half) :]])
            label = pseudo_labels(probabilities(rows), trusted[rows], threshold=self.threshold)
            features, weight = features_and_weights(encoder, vectors.at(coefficients), strong(rows, step))
            logits = encoder.scale * features @ weight.T
            return cross_entropy(logits, label.to(logits.device), ignore_index=UNTRUSTED)

        return loss


class AtlasTTA(AtlasUFM):
    """aTLAS on the measured pictures themselves: test-time adaptation (2407.02880)."""

    method: ClassVar[str] = "atlas_tta"
    wants: ClassVar[tuple[Given, ...]] = ("query",)
    source: ClassVar[Given] = "query"
    transductive: ClassVar[bool] = True


def trust(probabilities: Float[Tensor, "n C"]) -> Int[Tensor, "n"]:
    """Class of the pictures that are among the k = min(n / C / 10, 100), at least 1, most probable of it; others: -1.

    A picture among those of several classes has the one that it is most probable of.
    """
    count, classes = probabilities.shape
    most = min(max(1, min(count // classes // 10, MOST)), count)
    among = torch.zeros_like(probabilities, dtype=torch.bool)
    among.scatter_(0, probabilities.topk(most, dim=0).indices, True)
    best = probabilities.masked_fill(~among, -1).max(dim=1)
    return torch.where(among.any(dim=1), best.indices, UNTRUSTED)


def pseudo_labels(
    probabilities: Float[Tensor, "b C"], trusted: Int[Tensor, "b"], *, threshold: float
) -> Int[Tensor, "b"]:
    """The trusted label, else the best class where it is more probable than `threshold`, else -1."""
    best = probabilities.max(dim=1)
    sure = torch.where(best.values > threshold, best.indices, UNTRUSTED)
    return torch.where(trusted == UNTRUSTED, sure, trusted)
