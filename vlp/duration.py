"""One type for every "how long" and "how often": "2epochs", "10Msamples", "5%", "300steps" or 300."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, PlainSerializer

Unit = Literal["steps", "epochs", "samples", "percent"]
_PATTERN = re.compile(r"^\s*([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)\s*([kMG]?)\s*(steps?|epochs?|samples?|%|)\s*$")
_PREFIX = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_UNITS: dict[str, Unit] = {"": "steps", "step": "steps", "epoch": "epochs", "sample": "samples", "%": "percent"}


class Span(NamedTuple):
    """A length in one unit; `Clock.steps` turns it into optimizer steps."""

    value: float
    unit: Unit

    def __str__(self) -> str:
        exact = Decimal(repr(self.value))  # all its digits and no exponent, so that `parse` reads the same span
        number = f"{exact:f}" if self.value != int(self.value) else str(int(self.value))
        return f"{number}{'%' if self.unit == 'percent' else self.unit}"


_MOST = 1e18  # steps or samples; also what no float counts one by one


def parse(value: Any) -> Span:
    """The span written as `value`; ValueError showing the accepted forms if it is none."""
    if isinstance(value, Span):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= _MOST:
            raise ValueError(f"{value!r:.40} is no duration: it has no end")
        if value < 0:
            raise ValueError(f"{value} is no duration: it is less than 0")
        return Span(float(value), "steps")
    match = _PATTERN.match(str(value))
    if match is None:
        raise ValueError(f'"{value}" is no duration; write 300, "300steps", "2epochs", "10Msamples" or "5%"')
    number, prefix, unit = match.groups()
    value = Decimal(number.replace("_", "")) * _PREFIX[prefix]  # in floats 16.4 million is 16399999.999999998
    return Span(float(value), _UNITS[unit.rstrip("s")])


Duration = Annotated[Span, BeforeValidator(parse), PlainSerializer(str)]


class Clock(NamedTuple):
    """What one step, one epoch and the whole run are, so that every span becomes steps once, in one place."""

    batch_size: int  # pairs in one global batch
    epoch_samples: int  # places in one pass over the sources
    total: int = 0  # steps of the whole run; 0 while it is not known yet

    def steps(self, span: Span) -> int:
        """The span in optimizer steps, rounded up; percent is of the whole run."""
        if span.unit == "steps":
            return math.ceil(span.value)
        if span.unit == "percent":
            if not self.total:
                raise ValueError(f"{span} is a share of the run, so it cannot say how long the run is")
            return math.ceil(span.value * self.total / 100)
        samples = span.value * (self.epoch_samples if span.unit == "epochs" else 1)
        return math.ceil(samples / self.batch_size - 1e-9)

    def epoch(self, step: int) -> float:
        """Passes over the sources after `step` steps."""
        return step * self.batch_size / self.epoch_samples
