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


def adapt(
    dual: Dual, state: State, *, stretch: StretchText | None = None, size: tuple[int, int] | None = None
) -> tuple[State, list[str]]:
    """The weights with positions of the size of `dual`, and one line for each that was changed or left out.

    stretch: in place of interpolating all positions of the text tower alike. size: of the pictures, height and width,
    that the weights are for, where it is known; without it their places are taken for those of a square, or for those
    of `dual` where it has as many.
    """
    own, changed, notes = dual.state_dict(), dict(state), []
    for name in (name for name in IMAGE_POSITIONS if name in state and name in own):
        same = state[name].shape == own[name].shape and _alike(size, dual.transform.size)
        if same or state[name].shape[-1] != own[name].shape[-1]:  # of another width the weights are refused as a whole
            continue
        grid = _grid(dual, own[name])
        extra = own[name].shape[-2] - math.prod(grid)
        before = _grid_before(state[name].shape[-2] - extra, grid, dual, size)
        if before != grid or state[name].shape != own[name].shape:
            changed[name] = resize_grid(state[name], own[name], before=before, grid=grid)
            notes.append(f"{name}: interpolated from {before[0]} x {before[1]} to {grid[0]} x {grid[1]} places")
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


def resize_grid(old: Tensor, new: Tensor, *, before: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Positions `old` [(1,) extra + h*w, C] of the grid `before` bicubically for `grid`, as open_clip does; extra
    tokens stay.
    """
    extra = new.shape[-2] - math.prod(grid)
    flat = old.reshape(-1, old.shape[-1])
    plane = flat[extra:].T.reshape(1, -1, *before).float()
    plane = interpolate(plane, size=grid, mode="bicubic", antialias=True, align_corners=False)
    resized = torch.cat([flat[:extra], plane[0].flatten(1).T.to(old.dtype)])
    return resized.reshape(new.shape)


def _grid_before(places: int, grid: tuple[int, int], dual: Dual, size: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns of so many places of the weights; ValueError where nobody can tell."""
    if size is not None:
        rows, columns = (round(side * g / own) for side, g, own in zip(size, grid, dual.transform.size, strict=True))
        if rows * columns == places:
            return rows, columns
    if places == math.prod(grid):
        return grid
    side = math.isqrt(max(places, 0))
    if side * side != places:
        raise ValueError(
            f"model.pretrained: {places} positions of the image tower are no square grid; start from a folder with the "
            "configuration of the weights, which says of which picture size they are"
        )
    return side, side


def _alike(size: tuple[int, int] | None, own: tuple[int, int]) -> bool:
    """Whether as many places lie in the same rows and columns, as far as is known: pictures of one shape."""
    return size is None or size[0] * own[1] == size[1] * own[0]


def _grid(dual: Dual, positions: Tensor) -> tuple[int, int]:
    visual: Any = dual.visual
    if hasattr(visual, "grid_size"):
        return int(visual.grid_size[0]), int(visual.grid_size[1])
    if hasattr(visual, "trunk"):
        grid = visual.trunk.patch_embed.grid_size
        return int(grid[0]), int(grid[1])
    side = math.isqrt(positions.shape[-2] - 1)
    return side, side
