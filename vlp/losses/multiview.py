"""DeCLIP's further contrasts: captions with more views of their picture, pictures with neighbours of their captions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from vlp.kernels.blocks import full
from vlp.kernels.masked import masked_nearest
from vlp.losses.infonce import InfoNCE
from vlp.losses.loss import column
from vlp.losses.per_sample import idle
from vlp.losses.views import view_features
from vlp.types import Batch, Features

QUEUE = "the companions `momentum` (outputs with text) and `queue` fill it"


class MultiView(InfoNCE):
    """DeCLIP's multi-view supervision (arXiv 2110.05208, L_MVS): InfoNCE between every extra view and all captions.

    With `infonce` beside it and V extra views, all (1 + V) x K pairings of views and captions are contrasted. The mean
    over the views. Fields are those of `infonce`. Deviation: a second caption is one of the sample's (`data.captions`),
    where the paper rewrites the same one by EDA.
    """

    joint: ClassVar[frozenset[str]] = frozenset({"multiview/image"})

    def heads(self, dual: Any) -> dict[str, nn.Module]:
        return {"multiview": MultiViewHead()}

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """The term "multiview"."""
        views = features.extra["multiview/image"]
        terms = [super(MultiView, self).__call__(features._replace(image=view), batch) for view in views.unbind(1)]
        mean = torch.stack([term["contrast"] for term in terms]).mean()
        return {"multiview": mean + idle(features, batch)}


class MultiViewHead(nn.Module):
    """Unit features of the extra views: "multiview/image" [B, V, D]."""

    def forward(self, batch: Batch, towers: Any) -> dict[str, Tensor]:
        return {"multiview/image": view_features(batch, towers, 1, who="multiview", every=True)}


class Neighbours(NamedTuple):
    """Of every caption its nearest in the queue."""

    text: Tensor  # [B, K, D], without gradient
    found: Tensor  # bool [B, K]; False where the queue has nothing to offer


class NearestText(InfoNCE):
    """DeCLIP's nearest-neighbour supervision (arXiv 2110.05208, L_NNS), both directions of InfoNCE.

    Each caption is replaced by its nearest among earlier captions, which a queue holds. Fields are those of `infonce`.
    While the queue is empty the term is 0.

    Deviations: entries with the pair's own label are passed over, or in data smaller than the queue the nearest would
    be the caption itself. The queue holds features of the momentum copy; its `momentum: 0` gives the student's.
    """

    joint: ClassVar[frozenset[str]] = frozenset({"queue/text"})

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """The term "nearest"."""
        nearest = self._neighbours(features, batch)
        swapped = features._replace(text=nearest.text.to(features.text.dtype))
        found = replace(batch, caption_mask=batch.caption_mask & nearest.found)
        return {"nearest": super().__call__(swapped, found)["contrast"] + idle(features, batch)}

    @torch.no_grad()
    def _neighbours(self, features: Features, batch: Batch) -> Neighbours:
        text = full(torch.where((batch.valid[:, None] & batch.caption_mask)[..., None], features.text.detach(), 0.0))
        queue, filled = (column(batch, f"queue/{name}", advice=QUEUE) for name in ("text", "filled"))
        labels = column(batch, "queue/label", advice=QUEUE)
        B, K, _ = text.shape
        place, found = masked_nearest(
            text.flatten(0, 1),
            full(queue).to(text.dtype),
            row_group=batch.label.repeat_interleave(K),
            column_group=labels,
            column_valid=filled,
            impl=self.impl,
            block=self.block,
        )
        return Neighbours(queue[place].unflatten(0, (B, K)), found.unflatten(0, (B, K)))
