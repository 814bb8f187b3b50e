"""A learned context that stays near the hand-written one (KgCoOp, Yao et al. 2023)."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from vlp.adapters.adapter import class_weights
from vlp.adapters.coop import CoOp, Term
from vlp.adapters.task import Task


class KgCoOp(CoOp):
    """CoOp from "a photo of a", plus pull * (1 - mean_c cos(w_c, w_c^clip)) (2303.13283, section 3).

    w^clip are the zero-shot weights of the task's own templates. The paper writes the pull as a squared distance of
    unit vectors, which is twice that of its code; ours is the code's.
    """

    words: str | None = "a photo of a"
    batch: int = Field(128, ge=1)
    pull: float = Field(8.0, ge=0)

    def usual_epochs(self, shots: int) -> int:
        """100."""
        return 100

    def term(self, encoder: Any, task: Task) -> Term:
        """The mean distance to the zero-shot weights."""
        anchor = class_weights(encoder, task).to(encoder.device)
        return lambda weight: self.pull * (1 - (weight * anchor.to(weight.dtype)).sum(dim=1).mean())
