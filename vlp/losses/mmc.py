"""MMC: masked features, global to local, and contrast, between a student and its momentum copy."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from vlp import dist
from vlp.kernels.blocks import Block, Impl, full, no_autocast
from vlp.losses.contrast import global_mean
from vlp.losses.loss import Loss, column
from vlp.losses.momentum import Keys, attraction
from vlp.losses.patches import hidden_count, masking, refuse_other_towers, run_changed, shuffled
from vlp.losses.per_sample import idle, mean_of
from vlp.losses.selfsup import mlp
from vlp.losses.views import extra_views
from vlp.types import Batch, Features

_COPY = "the companion `momentum` fills it: give it outputs: [view_image, view_tokens]"


class MMC(Loss):
    """Masked momentum contrast: three terms on views 0 and 1, student against momentum copy.

    The student sees both views with a share of the patches replaced by a mask token, its copy sees them whole.

    masked: 1 - cos between a predictor of the student's token and the copy's token, at the masked places of a view.
    local: 1 - cos between the student's patches of a view and the copy's pooled feature of the other view, weighted by
    a softmax over patches of the copy's own similarity of these patches to that feature.
    contrast: InfoNCE of the student's pooled view 0 and the copy's pooled view 1 of the global batch, and the reverse;
    only the same picture is a positive.

    Deviation: written from the abstract; share, predictor, weights and temperatures are ours.
    """

    share: float = Field(0.5, gt=0.0, lt=1.0, description="of the student's patches that are masked")
    masked: float = Field(1.0, ge=0.0, allow_inf_nan=False, description="weight of that term")
    local: float = Field(1.0, ge=0.0, allow_inf_nan=False, description="weight of that term")
    contrast: float = Field(1.0, ge=0.0, allow_inf_nan=False, description="weight of that term")
    temperature: float = Field(0.2, gt=0.0, allow_inf_nan=False, description="of the contrast")
    local_temperature: float = Field(0.1, gt=0.0, allow_inf_nan=False, description="of the weights of patches")
    hidden: int = Field(1024, ge=1, description="width of the predictor")
    impl: Impl = "auto"
    block: Block = None

    cuts: ClassVar[bool] = False

    def heads(self, dual: Any) -> dict[str, nn.Module]:
        refuse_other_towers(dual, who="mmc")
        return {"mmc": MMCHead(self, dual)}

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """The terms "masked", "local" and "contrast", each with its weight."""
        extra = features.extra
        terms = {
            "masked": self.masked * mean_of(extra["mmc/masked"], batch.valid, batch) + idle(features, batch),
            "local": self.local * mean_of(extra["mmc/local"], batch.valid, batch),
        }
        terms["contrast"] = self.contrast * self._contrast(full(extra["mmc/image"]), batch)
        return terms

    def _contrast(self, views: Float[Tensor, "B 2 D"], batch: Batch) -> Float[Tensor, ""]:
        copies = column(batch, "momentum/view_image", advice=_COPY)[:, :2]
        everyone, valid = dist.gather_const(copies).to(views.dtype), dist.gather_const(batch.valid)
        picture = torch.arange(len(everyone), device=views.device)
        own = picture[dist.rank() * len(batch) :][: len(batch)]
        views = torch.where(batch.valid[:, None, None], views, 0.0)
        scale = views.new_full((1,), 1 / self.temperature)
        both = [
            attraction(
                views[:, v], own, Keys(everyone[:, 1 - v], valid, picture), scale, impl=self.impl, block=self.block
            )
            for v in range(2)
        ]
        local = torch.where(batch.valid, torch.stack(both).mean(0), 0.0).sum()
        return global_mean(local, valid.sum().clamp(min=1).to(local.dtype))


class MMCHead(nn.Module):
    """Unit features of both masked views, "mmc/image" [B, 2, D]; means over them, "mmc/masked" and "mmc/local" [B]."""

    def __init__(self, settings: MMC, dual: Any) -> None:
        super().__init__()
        self.hidden = hidden_count(dual, settings.share)
        self.temperature = settings.local_temperature
        self.mask = nn.Parameter(0.02 * torch.randn(dual.image_tower.width))
        self.predictor = mlp([dual.dim, settings.hidden, dual.dim], norm="layer")

    def forward(self, batch: Batch, towers: Any) -> dict[str, Tensor]:
        dual, views = towers.dual, extra_views(batch, 2, who="mmc")[:, :2]
        pooled, tokens = (
            full(column(batch, f"momentum/view_{name}", advice=_COPY)[:, :2]) for name in ("image", "tokens")
        )
        order = shuffled(2 * len(views), dual, views.device)
        masked = torch.zeros_like(order, dtype=torch.bool).scatter(1, order[:, : self.hidden], True)
        out = run_changed(dual, dual.pixels(views.flatten(0, 1)), masking(dual, self.mask, masked))
        guess = full(normalize(self.predictor(out.tokens), dim=-1)).unflatten(0, (-1, 2))
        patches = full(normalize(out.tokens, dim=-1)).unflatten(0, (-1, 2))
        with no_autocast(patches):
            return {
                "mmc/image": normalize(out.pooled, dim=-1).unflatten(0, (-1, 2)),
                "mmc/masked": masked_error(guess, tokens, masked.unflatten(0, (-1, 2))),
                "mmc/local": local_error(patches, tokens, pooled, temperature=self.temperature),
            }


def masked_error(
    guess: Float[Tensor, "B 2 P D"], tokens: Float[Tensor, "B 2 P D"], masked: Bool[Tensor, "B 2 P"]
) -> Float[Tensor, "B"]:
    """Mean over both views' masked places of 1 - cos."""
    distance = 1 - (guess * tokens).sum(-1)
    return (distance * masked).sum((1, 2)) / masked.sum((1, 2))


def local_error(
    patches: Float[Tensor, "B 2 P D"],
    tokens: Float[Tensor, "B 2 P D"],
    pooled: Float[Tensor, "B 2 D"],
    *,
    temperature: float,
) -> Float[Tensor, "B"]:
    """Mean over both views of the weighted mean over patches of 1 - cos to the copy's other view."""
    other = pooled.flip(1)[:, :, None]
    weight = ((tokens * other).sum(-1) / temperature).softmax(dim=-1)
    return (weight * (1 - (patches * other).sum(-1))).sum(-1).mean(1)
