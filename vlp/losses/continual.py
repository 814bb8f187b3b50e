"""What a model that goes on to another domain keeps of the one before: how the samples of a batch relate."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from vlp import dist
from vlp.kernels.recompute import by_rows
from vlp.losses.contrast import global_mean, pool
from vlp.losses.distill import RelationDistill, divergence, teacher_pool
from vlp.losses.loss import column
from vlp.types import Batch, Features

ADVICE = (
    "the companion {name: compatible_momentum, pretrained: RUN} makes it, RUN the run of the previous domain; or name "
    "the columns of another frozen model (image_column, text_column), such as teacher/image of the companion `teacher`"
)


class Topology(RelationDistill):
    """CTP's topology preservation (arXiv 2308.07146): the batch's relations stay those of the reference model.

    (KL_i2t + KL_t2i) / 2 + (KL_i2i + KL_t2t) / 2, each the mean over rows of
    KL(softmax(R_ref / tau) || softmax(R / tau)) over the global batch, R the cosines between the sides and within each;
    no gradient to the reference, tau fixed and the same for both. K captions an image as in `infonce`.

    Our deviations: within a side i itself is left out, where the authors' code writes -1000 over it. Blocks of rows,
    the same values. Their distillation of masked-language logits is not here.
    """

    image_column: str = Field("reference/image", description="column of the reference's picture features [B, E]")
    text_column: str = Field("reference/text", description="column of its caption features [B, K, E]")

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """The terms "cross" (pictures and captions) and "within" (each side by itself)."""
        for name in (self.image_column, self.text_column):
            column(batch, name, advice=ADVICE)
        everyone, reference = pool(features, batch), teacher_pool(batch, self.image_column, self.text_column)
        valid, own = dist.gather_const(batch.valid), everyone.own
        cross, texts = [], []
        for k in range(everyone.text.shape[1]):
            real = everyone.real[:, k]
            image, text = (everyone.image, reference.image), (everyone.text[:, k], reference.text[:, k])
            cross += [self._across(image, text, real, own), self._across(text, image, real, own)]
            texts.append(self._side(*text, real, own))
        num_images = valid.sum().clamp(min=1).to(everyone.image)
        pictures = global_mean(self._side(everyone.image, reference.image, valid, own), num_images)
        captions = global_mean(torch.stack(texts).sum(), everyone.num_captions)
        return {
            "cross": global_mean(torch.stack(cross).sum() / 2, everyone.num_captions),
            "within": (pictures + captions) / 2,
        }

    def _across(
        self, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor], real: Bool[Tensor, "N"], own: slice
    ) -> Float[Tensor, ""]:
        """Sum of the divergences of this rank's rows; model's and reference's features stand beside each other."""
        (x, u), (y, v) = rows, (columns[0], columns[1].to(rows[0]))

        def tile(x: Tensor, u: Tensor) -> Tensor:
            seen = real.expand(len(x), -1)
            model, reference = x @ y.T / self.temperature, u @ v.T / self.temperature
            return divergence(reference, model, seen, entropy=True)

        found = by_rows(tile, x[own], u[own].to(x), num_columns=len(y), impl=self.impl, block=self.block)
        return torch.where(real[own], found, 0.0).sum()
