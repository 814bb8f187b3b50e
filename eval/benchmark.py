"""What every benchmark is: settings, data, and one measurement of a view."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from eval.data import Data, DataField, open_data
from eval.view import View
from vlp.embed import Encoder
from vlp.metrics.chance import contains
from vlp.metrics.interval import Interval
from vlp.registry import Part


@dataclass
class Outcome:
    """What one benchmark found, and what a report wants to show of it."""

    metrics: dict[str, float]
    n: int  # pictures measured
    counts: dict[str, int] = field(default_factory=dict)
    ci95: dict[str, Interval] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    lower_is_better: frozenset[str] = frozenset()
    head: str | None = None  # what scored: "global" (pooled features), "tokens", or a mixture; None: there is no choice
    templates_hash: str | None = None
    classes_hash: str | None = None
    skips: dict[str, int] = field(default_factory=dict)
    selection: dict[str, str | int] = field(default_factory=lambda: {"split": "none"})  # see Record
    items: dict[str, Any] = field(default_factory=dict)  # columns for items.json
    files: dict[str, Any] = field(default_factory=dict)  # JSON files by name
    text: Tensor | None = None  # features of items["captions"]
    shown: set[int] = field(default_factory=set)  # picture rows that a report shows

    def contains_chance(self) -> dict[str, bool]:
        """Per metric with both an interval and a chance: whether it is not shown to be better than chance."""
        return {
            name: contains(self.chance[name], interval, lower_is_better=name in self.lower_is_better)
            for name, interval in self.ci95.items()
            if name in self.chance
        }


class BenchmarkPart(Part):
    """A benchmark on one data set. `dataset` is its name in records and the name of its folder.

    prefix: of a model with prefixes, the kind of source whose prefix the texts get; default "caption", also for class
    names (2206.01125). "label" is a diagnostic; results of both can stand in one suite.
    """

    task: ClassVar[str]

    dataset: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    data: DataField
    language: str = "en"
    prefix: Literal["caption", "label"] | None = None

    def prefixed(self, encoder: Encoder) -> AbstractContextManager[None]:
        """While open, texts get the prefix asked for; ValueError for a model that has none."""
        if self.prefix is None:
            return nullcontext()
        if getattr(encoder.dual, "prefix_kind", None) is None:
            raise ValueError(
                f"{self.dataset}: prefix: {self.prefix}, but this model has no prefixes; leave the line out, or train "
                "with model.prefix=1"
            )
        within: AbstractContextManager[None] = encoder.dual.prefixed(self.prefix)
        return within

    def others(self) -> tuple[Data, ...]:
        """Data that it needs beside its own, such as a training split; they come through `View.beside`."""
        return ()

    def apart(self) -> tuple[object, ...]:
        """What tells its records and files from those of another benchmark of its kind on the same data set."""
        return self.prefix, getattr(self, "head", None)

    @property
    def named_adapter(self) -> dict[str, str | None]:
        """For the record, where an adapter scores: its name, and the hash of its settings unless they are defaults."""
        return {}

    def warnings(self, view: View) -> tuple[str, ...]:
        """What the record says against its own numbers, beyond what holds for the model."""
        return ()

    def measure(self, view: View) -> Outcome:
        """The benchmark's numbers for one model on one data set."""
        raise NotImplementedError

    def run(self, model: Any) -> dict[str, float]:
        """Metric name to value, for a dual encoder or an Encoder, with nothing written."""
        encoder = model if isinstance(model, Encoder) else Encoder(model, quiet=True)
        with self.prefixed(encoder):
            return self.measure(View(encoder, open_data(self.data), dataset=self.dataset)).metrics
