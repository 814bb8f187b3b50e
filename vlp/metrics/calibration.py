"""Expected calibration error."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Bins(NamedTuple):
    """Per bin (low, high]: samples, their mean top probability, the share of them that is right (nan without any)."""

    samples: Int[Tensor, "bins"]
    confidence: Float[Tensor, "bins"]
    accuracy: Float[Tensor, "bins"]


@dataclass
class Calibration:
    """ECE with equal-width bins of the top probability (Guo et al. 2017, eq. 3); the state is three sums a bin."""

    bins: int = 15
    _sums: Tensor = field(init=False)  # [3, bins]: samples, confidence, right ones

    def __post_init__(self) -> None:
        self._sums = torch.zeros(3, self.bins, dtype=torch.float64)

    def update(self, logits: Float[Tensor, "B C"], label: Int[Tensor, "B"]) -> None:
        """Adds samples; logits already carry the model's temperature."""
        confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
        right = (predicted == label).double()
        place = (confidence * self.bins).ceil().long().clamp(1, self.bins) - 1  # bins are (low, high]
        rows = torch.stack([torch.ones_like(confidence), confidence, right]).cpu()
        self._sums.index_add_(1, place.cpu(), rows)

    def merge(self, other: Calibration) -> None:
        """Adds the other state's sums."""
        if self.bins != other.bins:
            raise ValueError(f"cannot merge calibrations of {self.bins} and {other.bins} bins")
        self._sums += other._sums

    def table(self) -> Bins:
        """What a reliability diagram draws (Niculescu-Mizil and Caruana 2005)."""
        samples, confidence, right = self._sums
        return Bins(samples.long(), confidence / samples, right / samples)

    def compute(self) -> dict[str, float]:
        """`ece` in 0..1 and the mean top probability `confidence`; empty without samples."""
        count, confidence, right = self._sums
        if not count.sum():
            return {}
        return {
            "ece": float((right - confidence).abs().sum() / count.sum()),
            "confidence": float(confidence.sum() / count.sum()),
        }
