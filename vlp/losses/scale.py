"""Logit scales: the model's or a fixed one; and one of a loss's own, as a head, where evaluation finds it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from vlp.kernels.blocks import full
from vlp.types import Batch, Features

MAX_SCALE = math.log(100.0)


def scale_of(features: Features, temperature: float | None) -> Tensor:
    """The model's scale [1] in at least fp32, or 1 / `temperature` in its place."""
    scale = full(features.scale)
    return scale if temperature is None else scale.new_full((1,), 1 / temperature)


class OwnScale(nn.Module):
    """A head: a learned scale within [1, 100], {name: [1]}; `init` is its logarithm."""

    def __init__(self, name: str, init: float = math.log(1 / 0.07)) -> None:
        super().__init__()
        self.name = name
        self.logit_scale = nn.Parameter(torch.full((1,), init))

    @property
    def value(self) -> float:
        """The scale as it is now."""
        return float(self.logit_scale.detach().exp())

    def forward(self, batch: Batch, towers: Any) -> dict[str, Tensor]:
        if self.training:
            with torch.no_grad():  # as the model's own scale is after a step; a clamp in the graph would stop learning
                self.logit_scale.clamp_(0.0, MAX_SCALE)
        return {self.name: self.logit_scale.exp()}


class FixedScale(nn.Module):
    """A head that makes nothing: it says that a loss has 1 / `temperature` in place of a learned scale."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.value = 1 / temperature

    def forward(self, batch: Batch, towers: Any) -> dict[str, Tensor]:
        return {}
