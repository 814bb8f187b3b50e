"""Extra views of the pictures (`data.views`), through the image tower once for all heads that ask."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vlp.losses.loss import column
from vlp.types import Batch


def extra_views(batch: Batch, least: int, *, who: str) -> Tensor:
    """The views, uint8 [B, V, 3, H, W]; ValueError if there are fewer than `least`."""
    wanted = f"{who} needs {least} extra view(s) of every picture; give data.views a list of {least} augmentation(s)"
    views = column(batch, "views", advice=wanted)
    if views.shape[1] < least:
        raise ValueError(f"{wanted}; the batch has {views.shape[1]}")
    return views


def view_features(batch: Batch, towers: Any, least: int, *, who: str) -> Tensor:
    """Unit features [B, V, D] of the views, the same for every head of one forward."""
    views = extra_views(batch, least, who=who)
    if "views" not in towers.memo:
        towers.memo["views"] = towers.dual.encode_image(views.flatten(0, 1)).unflatten(0, views.shape[:2])
    found: Tensor = towers.memo["views"]
    return found
