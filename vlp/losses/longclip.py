"""Long captions against whole pictures, short ones against what pictures have in common."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from torch.autograd.function import once_differentiable

from vlp.kernels.blocks import full, no_autocast
from vlp.losses.contrast import global_mean
from vlp.losses.infonce import InfoNCE
from vlp.losses.scale import scale_of
from vlp.types import Batch, Features


class LongCLIP(InfoNCE):
    """Long-CLIP (arXiv 2403.15378): InfoNCE(x, long) + InfoNCE(PCA_n(x), short).

    Caption slot 0 holds the long caption, slot 1 the short one; other slots are not looked at.
    PCA_n(x) are the pictures' features projected on their n principal components (`components`) and back, not made
    unit again. Gradients go through the components too. Our deviation: the components are those of the global batch,
    where the authors take each process's own, so that the number of processes changes nothing.
    """

    label_smoothing: float = Field(0.1, ge=0.0, lt=1.0, description="share of the target spread over all columns")
    components: int = Field(32, ge=1, description="principal components that a short caption is compared with")

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """The terms "long" and "short"."""
        if batch.caption_mask.shape[1] < 2:
            raise ValueError(
                "longclip needs two captions a picture, the long one first, and there is one slot: set data.captions "
                "to 2 and let `captions` of the sources give both"
            )
        everyone = self._everyone(features, batch)
        scale = scale_of(features, self.temperature)
        counts = everyone.real.sum(0).clamp(min=1).to(scale.dtype)
        coarse = principal(everyone.image, everyone.real[:, 1], components=self.components)
        return {
            "long": global_mean(self._slot(everyone, 0, scale), counts[0]),
            "short": global_mean(self._slot(everyone._replace(image=coarse), 1, scale), counts[1]),
        }


def principal(x: Float[Tensor, "N D"], valid: Bool[Tensor, "N"], *, components: int) -> Float[Tensor, "N D"]:
    """The valid rows, centred, projected on their first principal components, and put back; zero in other rows."""
    with no_autocast(x):
        x = torch.where(valid[:, None], full(x), 0.0)
        mean = x.sum(0) / valid.sum().clamp(min=1)
        centred = torch.where(valid[:, None], x - mean, 0.0)
        projector: Tensor = _TopProjector.apply(centred.T @ centred, min(components, x.shape[1]))
        back: Tensor = centred @ projector + mean
        return torch.where(valid[:, None], back, 0.0)


class _TopProjector(torch.autograd.Function):
    """Projector on the eigenvectors of the n largest eigenvalues of a symmetric matrix.

    Its gradient needs only the gaps between the n and the rest, where that of the eigenvectors themselves has those
    between all, and is infinite in a batch that is smaller than the features are wide.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, n: int) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)  # smallest first
        ctx.save_for_backward(values, vectors)
        ctx.n = n
        top: Tensor = vectors[:, -n:]
        return top @ top.T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        values, vectors = ctx.saved_tensors
        top, rest = vectors[:, -ctx.n :], vectors[:, : -ctx.n]
        gap = values[-ctx.n :] - values[: -ctx.n, None]
        turned = rest.T @ (grad + grad.T) @ top
        # equal values: directions that no row has, which change nothing, or a choice that no gradient speaks of
        apart = gap > len(values) * torch.finfo(values.dtype).eps * values[-1]
        half = rest @ torch.where(apart, turned / torch.where(apart, gap, 1.0), 0.0) @ top.T
        return (half + half.T) / 2, None
