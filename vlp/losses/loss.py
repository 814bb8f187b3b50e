"""What a loss is."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from vlp.losses import LOSSES
from vlp.registry import Part
from vlp.types import Batch, Features


class Loss(Part):
    """A pure function of features and batch, with its settings as fields.

    Every term is W * local sum / global count, W processes: DDP's mean over ranks is then the single-process value and
    gradient. Slots with `valid = False` leave as row and as column. Collectives are called in the same order on every
    rank, and the graph that leads back to them is the same on every rank, also where no slot is valid.
    """

    weight: float = Field(default=1.0, ge=0.0, allow_inf_nan=False, description="in the sum of the run's losses")

    needs: ClassVar[frozenset[str]] = frozenset()  # what the model must make: "bias", "image_tokens", "text_tokens"
    batchless: ClassVar[frozenset[str]] = frozenset()  # names in `features.extra` without a batch dimension
    # Whether it may be asked of the first dimensions of the joint space alone, and beside the features the names in
    # `features.extra`, `batch.extra` and `batch.memory` whose last dimension is then to be cut along.
    cuts: ClassVar[bool] = True
    joint: ClassVar[frozenset[str]] = frozenset()

    @property
    def name(self) -> str:
        """Name in the table of losses; the class's name in lower case for a loss that is in no table."""
        target = f"{type(self).__module__}:{type(self).__qualname__}"
        return next((name for name, entry in LOSSES.entries.items() if entry == target), type(self).__name__.lower())

    def heads(self, dual: Any) -> dict[str, nn.Module]:
        """Modules with parameters that this loss wants built into `dual`, by name."""
        return {}

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """Scalar terms by name, without `weight`."""
        raise NotImplementedError


def column(batch: Batch, name: str, *, advice: str) -> Tensor:
    """`batch.extra[name]`, or of `batch.memory`; ValueError with the advice if nobody made it."""
    for place in (batch.extra, batch.memory):
        if name in place:
            return place[name]
    raise ValueError(f'no column "{name}" in the batch: {advice}')
