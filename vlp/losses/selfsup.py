"""Self-supervised terms between two views of one picture: SimCLR as in SLIP, SimSiam as in DeCLIP."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from vlp import dist
from vlp.kernels.blocks import Block, full
from vlp.kernels.masked import masked_logsumexp
from vlp.losses.contrast import global_mean
from vlp.losses.loss import Loss
from vlp.losses.per_sample import idle, mean_of
from vlp.losses.views import view_features
from vlp.types import Batch, Features

Norm = Literal["layer", "none"]  # BatchNorm would see the samples of one process and one micro-batch only


def mlp(sizes: Sequence[int], *, norm: Norm) -> nn.Sequential:
    """Linear layers of these widths; between them `norm` and ReLU."""
    layers: list[nn.Module] = [nn.Linear(sizes[0], sizes[1])]
    for width, out in pairwise(sizes[1:]):
        layers += [nn.LayerNorm(width)] if norm == "layer" else []
        layers += [nn.ReLU(), nn.Linear(width, out)]
    return nn.Sequential(*layers)


class SimCLR(Loss):
    """SLIP's self-supervised term (arXiv 2112.12750): NT-Xent (arXiv 2002.05709, eq. 1) between views 0 and 1.

    The 2N embeddings of all valid pictures are anchors; an anchor's positive is its picture's other view, all other
    embeddings are negatives. Labels play no part.

    Deviations: the head reads the unit features of the joint space, where SLIP's reads the vector before the
    projection, and it has LayerNorm in place of BatchNorm (`norm`), so that no result depends on how a batch is cut.
    """

    temperature: float = Field(0.1, gt=0.0, allow_inf_nan=False)
    hidden: int = Field(4096, ge=1, description="width of the head's two inner layers")
    out: int = Field(256, ge=1, description="width of the space in which views are compared")
    norm: Norm = "layer"
    block: Block = None

    cuts: ClassVar[bool] = False

    def heads(self, dual: Any) -> dict[str, nn.Module]:
        return {"simclr": SimCLRHead(mlp([dual.dim, self.hidden, self.hidden, self.out], norm=self.norm))}

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """The term "simclr"."""
        views = full(torch.where(batch.valid[:, None, None], features.extra["simclr/views"], 0.0))
        everyone, valid = dist.gather(views), dist.gather_const(batch.valid)
        own = slice(dist.rank() * len(batch), (dist.rank() + 1) * len(batch))
        terms = [
            _nt_xent(everyone, view, own, valid, scale=1 / self.temperature, block=self.block) for view in range(2)
        ]
        local = torch.where(batch.valid, torch.stack(terms), 0.0).sum()
        count = 2 * valid.sum().clamp(min=1)
        return {"simclr": global_mean(local, count.to(local.dtype)) + idle(features, batch)}


class SimCLRHead(nn.Module):
    """Unit embeddings of views 0 and 1: "simclr/views" [B, 2, E]."""

    def __init__(self, projector: nn.Module) -> None:
        super().__init__()
        self.projector = projector

    def forward(self, batch: Batch, towers: Any) -> dict[str, Tensor]:
        views = view_features(batch, towers, 2, who="simclr")
        return {"simclr/views": normalize(self.projector(views), dim=-1)}


def _nt_xent(
    everyone: Float[Tensor, "N 2 E"],
    view: int,
    own: slice,
    valid: Bool[Tensor, "N"],
    *,
    scale: float,
    block: int | None,
) -> Float[Tensor, "B"]:
    """Cross entropies of our anchors of one view against all valid embeddings but themselves."""
    anchors, others = everyone[own, view], everyone[own, 1 - view]
    place = torch.arange(2 * len(valid), device=valid.device)
    columns = torch.cat([everyone[:, view], everyone[:, 1 - view]])
    partition = masked_logsumexp(
        anchors,
        columns,
        anchors.new_full((1,), scale),
        row_group=place[own],
        column_group=place,
        column_valid=valid.repeat(2),
        block=block,
    )
    return partition.sums - scale * (anchors * others).sum(1)


class SimSiam(Loss):
    """DeCLIP's image term (arXiv 2110.05208, L_ISS): SimSiam (arXiv 2011.10566, eq. 2) between picture and view 0.

    Half the sum over both directions of -cos(predictor(z_1), stop-gradient(z_2)), averaged over the global batch.

    Deviations: the head reads the unit features of the joint space and has LayerNorm in place of BatchNorm (`norm`).
    """

    hidden: int = Field(2048, ge=1, description="width of the projector")
    bottleneck: int = Field(512, ge=1, description="width of the predictor's inner layer")
    norm: Norm = "layer"

    cuts: ClassVar[bool] = False

    def heads(self, dual: Any) -> dict[str, nn.Module]:
        projector = mlp([dual.dim, self.hidden, self.hidden, self.hidden], norm=self.norm)
        return {"simsiam": SimSiamHead(projector, mlp([self.hidden, self.bottleneck, self.hidden], norm=self.norm))}

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """The term "simsiam"."""
        term = mean_of(features.extra["simsiam/error"], batch.valid, batch)
        return {"simsiam": term + idle(features, batch)}


class SimSiamHead(nn.Module):
    """The symmetric negative cosine of picture and view 0: "simsiam/error" [B]."""

    def __init__(self, projector: nn.Module, predictor: nn.Module) -> None:
        super().__init__()
        self.projector = projector
        self.predictor = predictor

    def forward(self, batch: Batch, towers: Any) -> dict[str, Tensor]:
        view = view_features(batch, towers, 1, who="simsiam")[:, 0]
        projected = self.projector(torch.stack([towers.features.image, view], dim=1))
        cosine = cosine_similarity(full(self.predictor(projected)), full(projected.detach().flip(1)), dim=-1)
        return {"simsiam/error": -cosine.mean(dim=1)}
