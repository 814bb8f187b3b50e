"""Extra views of the pictures (`data.views`), through the image tower once for all heads that ask."""

from __future__ import annotations

from typing import Any

import torch
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


def view_features(batch: Batch, towers: Any, least: int, *, who: str, every: bool = False) -> Tensor:
    """Unit features [B, `least`, D] of the first views, or [B, V, D] of `every` one.

    Heads of one forward share them: a view that several ask for is encoded once, one that nobody asks for never.
    """
    views = extra_views(batch, least, who=who)
    wanted = views.shape[1] if every else least
    made: list[Tensor] = towers.memo.setdefault("views", [])
    done = sum(part.shape[1] for part in made)
    if done < wanted:
        further = views[:, done:wanted]
        made.append(towers.dual.encode_image(further.flatten(0, 1)).unflatten(0, further.shape[:2]))
    return torch.cat(made, 1)[:, :wanted]
