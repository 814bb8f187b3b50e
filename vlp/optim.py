"""AdamW with parameter groups, and schedules that are pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from vlp.duration import Clock, Duration, Span
from vlp.registry import Part, Table

Rate = Callable[[int], float]  # step -> factor on the base rate, in [0, 1]

SCHEDULES = Table(
    "schedule",
    {name.lower(): f"vlp.optim:{name}" for name in ("Constant", "Cosine", "Linear", "WSD", "Infinite")},
)


class Schedule(Part):
    """A learning-rate factor over steps: linear warm-up from 0, then what the subclass says."""

    warmup: Duration = Span(0, "steps")

    def bind(self, clock: Clock) -> Rate:
        """The pure function step -> factor for a run of `clock.total` steps (step 0 is the first update)."""
        warmup, after = clock.steps(self.warmup), self.after(clock)
        self._refuse_overlap(clock)
        return lambda step: (step + 1) / warmup if step < warmup else after(step - warmup, clock.total - warmup)

    def phases(self) -> dict[str, Span]:
        """The parts of the run that follow one another, by the name of their field."""
        return {"warmup": self.warmup}

    def _refuse_overlap(self, clock: Clock) -> None:
        """ValueError for phases longer than the run: one would begin before the rate is where it begins from."""
        steps = {name: clock.steps(span) for name, span in self.phases().items()}
        rounded_up = len(steps) - 1  # steps by which shares that add up to the whole may be more than it
        if sum(steps.values()) > clock.total + rounded_up:
            said = " and ".join(f"{name} of {count}" for name, count in steps.items() if count)
            raise ValueError(
                f"schedule: {said} steps do not fit a run of {clock.total}; shorten them, or write shares of it (5%)"
            )

    def after(self, clock: Clock) -> Callable[[int, int], float]:
        """The function (steps since warm-up, steps from warm-up to the end) -> factor."""
        raise TypeError(f"{type(self).__name__} does not say what follows the warm-up")


class Constant(Schedule):
    """Warm-up, then the base rate."""

    def after(self, clock: Clock) -> Callable[[int, int], float]:
        return lambda step, total: 1.0


class Cosine(Schedule):
    """Warm-up, then half a cosine down to `final`; the CLIP recipe."""

    final: float = Field(0.0, ge=0, le=1)

    def after(self, clock: Clock) -> Callable[[int, int], float]:
        return lambda step, total: _cosine(step / max(1, total), 1.0, self.final)


class Linear(Schedule):
    """Warm-up, then a straight line down to `final`; the ALIGN recipe."""

    final: float = Field(0.0, ge=0, le=1)

    def after(self, clock: Clock) -> Callable[[int, int], float]:
        return lambda step, total: 1.0 + (self.final - 1.0) * min(1.0, step / max(1, total))


class WSD(Schedule):
    """Warm-up, stable at the base rate, then decay over the last `decay` of the run down to `final`."""

    decay: Duration = Span(20, "percent")
    shape: Literal["linear", "sqrt", "cosine"] = "linear"
    final: float = Field(0.0, ge=0, le=1)

    def phases(self) -> dict[str, Span]:
        return {**super().phases(), "decay": self.decay}

    def after(self, clock: Clock) -> Callable[[int, int], float]:
        decay = clock.steps(self.decay)

        def factor(step: int, total: int) -> float:
            done = (step - (total - decay)) / max(1, decay)
            return 1.0 if done <= 0 else _decay(min(1.0, done), 1.0, self.final, self.shape)

        return factor


class Infinite(Schedule):
    """Warm-up, cosine cooldown to `constant`, constant for as long as data come, then a short exponential anneal.

    A run that goes on with new data starts from the constant phase of the old one (`warmup=0, cooldown=0`), without
    warming up again. The anneal takes the last `anneal` of this run; 0 leaves the run open for the next one.
    """

    cooldown: Duration = Span(20, "percent")
    constant: float = Field(0.3, gt=0, le=1)
    anneal: Duration = Span(0, "steps")
    final: float = Field(0.01, gt=0, le=1)

    @model_validator(mode="after")
    def _falls(self) -> Infinite:
        if self.anneal.value and self.final > self.constant:
            raise ValueError(f"anneal goes down from constant, {self.constant}, to final, which is more: {self.final}")
        return self

    def phases(self) -> dict[str, Span]:
        return {**super().phases(), "cooldown": self.cooldown, "anneal": self.anneal}

    def after(self, clock: Clock) -> Callable[[int, int], float]:
        cooldown, anneal = clock.steps(self.cooldown), clock.steps(self.anneal)

        def factor(step: int, total: int) -> float:
            done = (step - (total - anneal)) / max(1, anneal)
            if anneal and done > 0:
                return float(self.constant * (self.final / self.constant) ** min(1.0, done))
            return _cosine(step / cooldown, 1.0, self.constant) if step < cooldown else self.constant

        return factor


def _cosine(done: float, start: float, end: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _decay(done: float, start: float, end: float, shape: str) -> float:
    if shape == "cosine":
        return _cosine(done, start, end)
    left = 1 - done if shape == "linear" else 1 - math.sqrt(done)
    return end + (start - end) * left


class Optim(Part):
    """AdamW and how parameters are grouped: per tower, decayed or not, by depth.

    Parameters with fewer than two dimensions (biases, norms, scales) and prefixes get no weight decay. `layer_decay` d
    gives the projection of a tower the whole rate, its last block d, the one before d^2, and so on to the embeddings.
    """

    lr: float = Field(5e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = Field(0.2, ge=0)
    image_lr: float = Field(1.0, ge=0, description="factor on lr for the image tower")
    text_lr: float = Field(1.0, ge=0, description="factor on lr for the text tower")
    layer_decay: float = Field(1.0, gt=0, le=1)
    fused: Literal["auto", "yes", "no"] = "auto"

    def build(self, dual: nn.Module, *, depths: Mapping[str, int]) -> torch.optim.AdamW:
        """AdamW over the parameters of `dual` that take gradients; each group carries its `lr_scale`.

        depths: parameter name -> groups between it and the end of its tower (`vlp.models.freeze.depths`).
        """
        groups = list(self.groups(dual, depths=depths))
        if not groups:
            raise ValueError("nothing to train: every parameter of the model is locked (model.lock_image, lock_text)")
        options: dict[str, Any] = {} if self.fused == "no" else {"fused": True}
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, **options)

    def groups(self, dual: nn.Module, *, depths: Mapping[str, int]) -> Iterator[dict[str, Any]]:
        """Parameter groups by (rate factor, decay), in a fixed order; each has `params`, `names` and `lr_scale`."""
        found: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in dual.named_parameters():
            if parameter.requires_grad:
                decay = 0.0 if parameter.ndim < 2 or name.startswith("prefix.") else self.weight_decay
                found.setdefault((self._scale(name, depths), decay), []).append((name, parameter))
        for (scale, decay), members in sorted(found.items()):
            yield {
                "params": [parameter for _, parameter in members],
                "names": [name for name, _ in members],
                "lr": self.lr * scale,
                "lr_scale": scale,
                "weight_decay": decay,
            }

    def _scale(self, name: str, depths: Mapping[str, int]) -> float:
        tower = name.partition(".")[0]
        factor = {"visual": self.image_lr, "text": self.text_lr}.get(tower, 1.0)
        return float(factor * self.layer_decay ** depths.get(name, 0))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group `rate` times its own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
