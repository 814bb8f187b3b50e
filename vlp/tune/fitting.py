"""Fitting behind the guard: an adapter is given what it may see, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

from vlp.adapters import ADAPTERS
from vlp.adapters.adapter import Adapter, Given, Level, inside
from vlp.adapters.provenance import Provenance
from vlp.adapters.stored import Stored
from vlp.adapters.task import Task
from vlp.tune.stock import Stock, subset

Setting = Literal["zero-shot", "few-shot", "unsupervised", "transductive"]
LEVELS: tuple[Level, ...] = ("features", "text", "towers")
_RUNS = {"text": "the text tower", "towers": "both towers"}


@dataclass(frozen=True)
class Traits:
    """What an adapter, with the adapters inside of it, is and asks for."""

    level: Level
    wants: tuple[Given, ...]
    takes: tuple[Given, ...]  # all that it wants, and what else it learns from where it is there
    views: int
    transductive: bool
    leaky: bool
    by_seed: bool

    @property
    def setting(self) -> Setting:
        """What it learns from, in one word."""
        if self.transductive:
            return "transductive"
        return "few-shot" if "support" in self.wants else "unsupervised" if "unlabelled" in self.wants else "zero-shot"


def traits(adapter: Adapter) -> Traits:
    """Of the adapter and those in its fields together."""
    parts = list(inside(adapter))
    return Traits(
        level=max((one.level for one in parts), key=LEVELS.index),
        wants=tuple(dict.fromkeys(what for one in parts for what in one.wants)),
        takes=tuple(dict.fromkeys(what for one in parts for what in (*one.wants, *one.takes))),
        views=max(one.views for one in parts),
        transductive=any(one.transductive for one in parts),
        leaky=any(one.leaky for one in parts),
        by_seed=any(one.by_seed for one in parts),
    )


def provenance(adapter: Adapter) -> list[Provenance]:
    """What classifiers were fitted to that the adapter, or one inside of it, starts from."""
    return [found for one in inside(adapter) for found in one.provenance()]


def check_level(name: str, level: Level, encoder: Any) -> None:
    """ValueError if the method runs towers, and there are only stored features."""
    if level != "features" and isinstance(encoder, Stored):
        raise ValueError(
            f"{name} runs {_RUNS[level]}, and stored features have none; give a model and pictures: vlp tune {name} "
            "CHECKPOINT configs/tune/FILE.yaml"
        )


def fit(adapter: Adapter, stock: Stock, task: Task) -> Any:
    """The fitted classifier; labels of the test pictures can be read afterwards."""

    def make(whole: Task) -> Any:
        if traits(adapter).leaky:
            test = stock.test.leaked()
            rows = [row for row, label in enumerate(test.known.tolist()) if label < len(whole.names)]
            whole = replace(whole, test=subset(test, rows))  # of a task over the first classes, pictures of these
        return adapter.fit(stock.encoder, whole)

    return _guarded(adapter, stock, task, make)


def transfer(adapter: Adapter, stock: Stock, classifier: Any, task: Task) -> Any:
    """What was fitted, over the names of `task`, whose pictures are the test pictures of `stock`."""
    return _guarded(adapter, stock, task, lambda whole: adapter.transfer(stock.encoder, classifier, whole))


def _guarded(adapter: Adapter, stock: Stock, task: Task, make: Callable[[Task], Any]) -> Any:
    known = traits(adapter)
    check_level(_name(adapter), known.level, stock.encoder)
    with ExitStack() as stack:
        stack.enter_context(stock.test.fitting(leaky=known.leaky))
        task = replace(task, query=stock.test.pictures if known.transductive else None)
        if task.support is not None and "support" in known.wants:
            task = replace(task, support=stock.with_views(task.support, known.views))
        if task.unlabelled is not None and "unlabelled" in known.wants:
            task = replace(task, unlabelled=stock.with_views(task.unlabelled, known.views))
        return make(task)


def _name(adapter: Adapter) -> str:
    """Its name in the table, or its class's if it stands in none."""
    kind = type(adapter)
    target = f"{kind.__module__}:{kind.__qualname__}"
    return next((name for name, entry in ADAPTERS.entries.items() if entry == target), kind.__name__)
