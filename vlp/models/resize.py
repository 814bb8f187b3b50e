"""Weights for a tower of another size: positions interpolated, embeddings of another vocabulary left at their start."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from vlp.models.dual import Dual
from vlp.models.state import State
from vlp.models.stretch import StretchText

IMAGE_POSITIONS = ("visual.positional_embedding", "visual.trunk.pos_embed", "visual.attnpool.positional_embedding")
TEXT_POSITIONS = "text.positional_embedding"
VOCABULARY = ("text.token_embedding.weight",)


def adapt(dual: Dual, state: State, *, stretch: StretchText | None = None) -> tuple[State, list[str]]:
    """The weights with positions of the size of `dual`, and one line for each that was changed or left out.

    stretch: in place of interpolating all positions of the text tower alike.
    """
    own, changed, notes = dual.state_dict(), dict(state), []
    for name in IMAGE_POSITIONS:
        if name in state and name in own and state[name].shape != own[name].shape:
            changed[name] = resize_grid(state[name], own[name], grid=_grid(dual, own[name]))
            notes.append(f"{name}: interpolated from {tuple(state[name].shape)} to {tuple(own[name].shape)}")
    old, new = state.get(TEXT_POSITIONS), own.get(TEXT_POSITIONS)
    if stretch is not None:
        changed[TEXT_POSITIONS] = stretch.adapt(old, new)
        notes.append(f"{TEXT_POSITIONS}: stretched behind the first {stretch.keep}, to {len(changed[TEXT_POSITIONS])}")
    elif old is not None and new is not None and old.shape != new.shape and old.shape[1] == new.shape[1]:
        changed[TEXT_POSITIONS] = interpolate(old.T[None].float(), size=len(new), mode="linear")[0].T.to(old.dtype)
        notes.append(f"{TEXT_POSITIONS}: interpolated from {len(old)} to {len(new)} positions")
    for name in VOCABULARY:
        if name in state and name in own and state[name].shape != own[name].shape:
            changed[name] = own[name]
            notes.append(
                f"{name}: left at random, the vocabulary has {len(own[name])} entries, the weights {len(state[name])}"
            )
    if "logit_bias" in own and "logit_bias" not in state:
        changed["logit_bias"] = own["logit_bias"]
        notes.append(f"logit_bias: none in the weights, starts at {own['logit_bias'].item():g}")
    elif "logit_bias" in state and "logit_bias" not in own:
        del changed["logit_bias"]
        notes.append("logit_bias: left out, this model has none")
    return changed, notes


def resize_grid(old: Tensor, new: Tensor, *, grid: tuple[int, int]) -> Tensor:
    """Positions `old` [(1,) extra + h*w, C] bicubically for `grid`, as open_clip does; extra tokens stay."""
    extra = new.shape[-2] - grid[0] * grid[1]
    side = math.isqrt(old.shape[-2] - extra)
    if side * side != old.shape[-2] - extra or extra < 0:
        raise ValueError(f"positions of shape {tuple(old.shape)} are no square grid with {extra} extra tokens")
    flat = old.reshape(-1, old.shape[-1])
    plane = flat[extra:].T.reshape(1, -1, side, side).float()
    plane = interpolate(plane, size=grid, mode="bicubic", antialias=True, align_corners=False)
    resized = torch.cat([flat[:extra], plane[0].flatten(1).T.to(old.dtype)])
    return resized.reshape(new.shape)


def _grid(dual: Dual, positions: Tensor) -> tuple[int, int]:
    visual: Any = dual.visual
    if hasattr(visual, "grid_size"):
        return int(visual.grid_size[0]), int(visual.grid_size[1])
    if hasattr(visual, "trunk"):
        grid = visual.trunk.patch_embed.grid_size
        return int(grid[0]), int(grid[1])
    side = math.isqrt(positions.shape[-2] - 1)
    return side, side
