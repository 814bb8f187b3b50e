"""Jumps of the loss and of the gradient's norm, with the samples before them; how often the scale was held back."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

from torch import Tensor

from vlp.losses.scale import MAX_SCALE

PER_DEVIATION = 1.4826  # a standard deviation by the median absolute deviation of a normal distribution
SMALLEST_SPREAD = 0.02  # of the median: a curve that stands still must not make every ripple a spike
HELD_STEPS = 100  # that the scale stands at its limit in a row before it is said


class Step(NamedTuple):
    """What is kept of a step: this rank's samples, and the numbers that all ranks have alike."""

    step: int
    loss: float
    grad_norm: float
    keys: tuple[str, ...]


class Spike(NamedTuple):
    """Numbers above their limit, {name: (value, median, limit)}, and this rank's last steps, the newest one last."""

    step: int
    above: dict[str, tuple[float, float, float]]
    last: tuple[Step, ...]


class Spikes:
    """The last steps of a run, looked at for values above median + factor * deviation of the window before them.

    The deviation is 1.4826 times the median absolute one, which a spike in the window itself does not move.
    """

    def __init__(self, *, window: int, factor: float, keep: int) -> None:
        self.window, self.factor = window, factor
        self.values = {name: deque[float](maxlen=window) for name in ("loss", "grad_norm")}
        self.last = deque[Step](maxlen=keep)
        self._quiet_until = 0

    def add(self, step: Step) -> Spike | None:
        """Take a step in; the spike it is, unless one came among the steps that are kept."""
        self.last.append(step)
        above = {}
        for name, past in self.values.items():
            value = float(getattr(step, name))
            if len(past) == self.window:
                middle = median(past)
                spread = PER_DEVIATION * median(abs(x - middle) for x in past)
                limit = middle + self.factor * max(spread, SMALLEST_SPREAD * abs(middle))
                if value > limit:
                    above[name] = (value, middle, limit)
            if math.isfinite(value):  # what is none has no place in a median
                past.append(value)
        if not above or step.step < self._quiet_until:
            return None
        self._quiet_until = step.step + (self.last.maxlen or 1)
        return Spike(step.step, above, tuple(self.last))


def record_of(spike: Spike, shares: Sequence[tuple[Step, ...]]) -> dict[str, Any]:
    """The line of spikes.jsonl: numbers, and for each of the last steps the samples of all ranks (`shares`)."""
    above = {name: dict(zip(("value", "median", "limit"), values, strict=True)) for name, values in spike.above.items()}
    batches = [
        {
            "step": steps[0].step,
            "loss": steps[0].loss,
            "grad_norm": steps[0].grad_norm,
            "keys": [list(step.keys) for step in steps],
        }
        for steps in zip(*shares, strict=True)
    ]
    return {"step": spike.step, "above": above, "batches": batches}


class ScaleLimit:
    """Counts the updates that would have taken the model's logit scale over its limit; read only when it is asked."""

    def __init__(self) -> None:
        self.count = 0
        self._updates = self._held = 0
        self._new: Tensor | None = None
        self._said = False

    def note(self, scale: Tensor) -> None:
        """Before the clamp: logarithm of the scale [1], which stays on its device."""
        over = (scale.detach() > MAX_SCALE).sum()
        self._new = over if self._new is None else self._new + over
        self._updates += 1

    def read(self) -> str:
        """Count what came since the last call; a sentence, once, when every update of a hundred was clamped."""
        new = 0 if self._new is None else int(self._new)
        updates, self._updates, self._new = self._updates, 0, None
        self.count += new
        if new < updates:
            self._held, self._said = 0, False
            return ""
        self._held += new
        if self._held < HELD_STEPS or self._said:
            return ""
        self._said = True
        return (
            f"the logit scale has been held at its limit of {math.exp(MAX_SCALE):.0f} for the last {self._held} "
            "updates: usual late in long runs; early in a run it runs away, so lower optim.lr, give a longer warmup, "
            "or look for captions that many pictures share (`vlp data stats`)"
        )
