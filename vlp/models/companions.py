"""Moving averages of the weights, beside the model and saved with the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from vlp.registry import Part
from vlp.types import Batch


class Ema(Part):
    """An exponential moving average of all weights, which an evaluation may use (`weights: ema`)."""

    decay: float = Field(0.9999, ge=0.0, lt=1.0)
    ramp: bool = True  # the average follows fast at first: decay is at most (1 + step) / (10 + step)
    every: int = Field(1, ge=1)  # steps between updates; decay counts updates

    def build(self, model: nn.Module) -> EmaState:
        return EmaState(self, model)


class EmaState:
    """The averages; frozen weights, which never change, are not kept twice."""

    def __init__(self, settings: Ema, model: nn.Module) -> None:
        self.settings = settings
        self.averages = {name: tensor.detach().clone() for name, tensor in _moving(model)}
        self.updates = torch.zeros((), dtype=torch.long)

    def before_step(self, batch: Batch, model: nn.Module) -> Batch:
        return batch

    @torch.no_grad()
    def after_step(self, model: nn.Module, *, step: int, batch: Batch) -> None:
        """One update after every `every`-th step; `step` counts finished steps."""
        if step % self.settings.every:
            return
        self.updates += 1
        n = int(self.updates)
        decay = min(self.settings.decay, (1 + n) / (10 + n)) if self.settings.ramp else self.settings.decay
        names, now = zip(*_moving(model))
        average = [self.averages[name] for name in names]
        torch._foreach_lerp_(average, [tensor.detach() for tensor in now], 1 - decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[nn.Module]:
        """`model` with the averages in it; its own weights are back, bit for bit, on the way out."""
        own = {name: tensor.detach().clone() for name, tensor in _moving(model)}
        _put(model, self.averages)
        try:
            yield model
        finally:
            _put(model, own)

    def state_dict(self) -> dict[str, Tensor]:
        return {**{f"average.{name}": tensor for name, tensor in self.averages.items()}, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        found = {name.removeprefix("average."): tensor for name, tensor in state.items() if name != "updates"}
        if odd := sorted(found.keys() ^ self.averages.keys()):
            raise ValueError(
                f"ema: {len(odd)} weights are not in both the checkpoint and the model: {', '.join(odd[:4])}"
            )
        for name, tensor in found.items():
            self.averages[name].copy_(tensor)
        self.updates = state["updates"].clone()


def _moving(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Trained parameters and float buffers, by the names they have without a wrapper (DDP)."""
    inner: Any = getattr(model, "module", model)
    trained = [(name, p) for name, p in inner.named_parameters() if p.requires_grad]
    kept = set(inner.state_dict())
    return trained + [(n, b) for n, b in inner.named_buffers() if n in kept and b.is_floating_point()]


@torch.no_grad()
def _put(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    for name, tensor in _moving(model):
        tensor.copy_(weights[name])
