"""Running a ViT on patches that were masked or left out.

The change is made where the tower's blocks begin, by a hook on its first norm, so everything after it (blocks, pooling,
projection) is the tower's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def refuse_other_towers(dual: Any, *, who: str) -> None:
    """ValueError unless the image tower is a plain ViT, whose patches stand at fixed places."""
    visual = dual.visual
    if not (hasattr(dual.image_tower, "embed") and hasattr(visual, "class_embedding")):
        raise ValueError(
            f"{who} masks the patches of an open_clip ViT; this model's image tower is a {type(visual).__name__}: "
            "choose a model.arch with a ViT, or leave the loss out"
        )
    if not isinstance(visual.patch_dropout, nn.Identity):
        raise ValueError(f"{who} masks patches itself; turn the model's patch dropout off")
    if visual.attn_pool is not None:
        raise ValueError(f"{who} needs one output for each patch; an image tower with attentional pooling has none")


def num_patches(dual: Any) -> int:
    return len(dual.visual.positional_embedding) - 1


def run_changed(dual: Any, pixels: Tensor, change: Callable[[Tensor], Tensor]) -> Any:
    """The tower's outputs for normalised pictures whose patches went through `change`: [B, P, width] to [B, P', width].

    They have their positions already, and no norm yet.
    """

    def hook(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (x,) = inputs
        return (torch.cat([x[:, :1], change(x[:, 1:])], dim=1),)

    handle = dual.visual.ln_pre.register_forward_pre_hook(hook)
    try:
        return dual.image_tower.run(pixels, tokens=True)
    finally:
        handle.remove()


def masking(dual: Any, token: Tensor, masked: Tensor) -> Callable[[Tensor], Tensor]:
    """A change: `token` [width] with its position in place of the patches that are `masked` [B, P]."""

    def change(patches: Tensor) -> Tensor:
        blank = (token + dual.visual.positional_embedding[1:]).to(patches.dtype)
        return torch.where(masked[..., None], blank, patches)

    return change


def shuffled(rows: int, dual: Any, device: torch.device) -> Tensor:
    """A random order of the patches for each row, long [rows, P]."""
    return torch.rand(rows, num_patches(dual), device=device).argsort(dim=1)


def hidden_count(dual: Any, share: float) -> int:
    """Number of patches that are hidden: at least one, and one is always left."""
    P = num_patches(dual)
    return min(max(1, round(share * P)), P - 1)
