"""Positions of a text tower stretched for longer texts, with those that short texts use kept as they are."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from vlp.registry import Part


class StretchText(Part):
    """Knowledge-preserving stretching of Long-CLIP (arXiv 2403.15378): 77 positions to 248 with the first 20 kept.

    New position n >= keep lies at the old position keep + (n - keep) / r, r = (new - keep) / (old - keep), between two
    rows linearly; what lies behind the last old row goes on along the last two. A causal tower gives texts of up to
    `keep` tokens the features it gave them before.
    """

    keep: int = Field(20, ge=1, description="first positions that stay as they are; most texts it was trained on fit")

    def adapt(self, old: Tensor | None, new: Tensor | None) -> Tensor:
        """Positions `old` of the weights as many as `new` of the model; ValueError where one has no table of them."""
        if old is None or new is None:
            raise ValueError(
                f"model.stretch_text: {'the weights have' if old is None else 'this text tower has'} no learned text "
                "positions that could be stretched; drop it"
            )
        return self(old, len(new))

    def __call__(self, old: Tensor, positions: int) -> Tensor:
        """[positions, width] of [fewer positions, width]; ValueError where there is nothing to stretch."""
        if positions <= len(old):
            raise ValueError(
                f"model.stretch_text: the weights have {len(old)} text positions and the model {positions}; "
                "set model.context to more, or drop stretch_text"
            )
        if self.keep > len(old) - 2:
            raise ValueError(
                f"model.stretch_text.keep: {self.keep} of {len(old)} positions leaves fewer than two to stretch; "
                f"give at most {len(old) - 2}"
            )
        ratio = (len(old) - self.keep) / (positions - self.keep)
        at = self.keep + torch.arange(positions - self.keep, dtype=torch.float64, device=old.device) * ratio
        left = at.floor().long().clamp(max=len(old) - 2)
        rows = torch.lerp(old[left].double(), old[left + 1].double(), (at - left)[:, None])
        return torch.cat([old[: self.keep], rows.to(old.dtype)])
