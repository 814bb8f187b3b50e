"""What an adapter may learn from: pictures drawn by seed, validation, and the rest without labels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlp.adapters.task import Examples
from vlp.probe.draw import Draw, Draws, draw, rows_of
from vlp.tune.stock import Stock, keys_of, subset, tell


class Chosen(NamedTuple):
    """Rows of train to learn from and to choose on, ascending, and rows of validation where it is data of its own."""

    support: list[int]
    held: list[int]
    validation: list[int] | None

    def only(self, stock: Stock, wanted: Callable[[int], bool]) -> Chosen:
        """Of these, the rows of wanted classes."""

        def of(examples: Examples | None, rows: Sequence[int]) -> list[int]:
            return [row for row in rows if examples is not None and wanted(int(examples.known[row]))]

        own = None if self.validation is None else of(stock.validation, self.validation)
        return Chosen(of(stock.train, self.support), of(stock.train, self.held), own)


class Given(NamedTuple):
    """The pictures of a task, None where there are none; and rows of train that the unlabelled are, if they are."""

    support: Examples | None
    validation: Examples | None
    unlabelled: Examples | None
    left_over: list[int] | None = None

    def only(self, takes: Collection[str]) -> Given:
        """Without labelled pictures for an adapter that takes none, and without any for one that learns from nothing.

        Those to choose on go with those to learn from.
        """
        if not takes:
            return Given(None, None, None)
        support = self.support if "support" in takes else None
        validation = self.validation if {"support", "validation"} & {*takes} else None
        return self._replace(support=support, validation=validation)

    def parts(self) -> dict[str, Any]:
        """The pictures by what a task calls them."""
        return {"support": self.support, "validation": self.validation, "unlabelled": self.unlabelled}


def make_draws(stock: Stock, *, shots: Sequence[int], seeds: Sequence[int]) -> Draws:
    """A draw for each seed and number of shots; ValueError where nothing can be drawn from."""
    train = stock.train
    if train is None:
        raise ValueError(f"{stock.dataset}: shots are drawn from `train`, and there is none")
    own = stock.validation
    held = (stock.words(own), keys_of(own)) if own is not None else None
    return draw(stock.words(train), keys_of(train), shots=shots, seeds=seeds, validation=held)


def tell_short(dataset: str, draws: Iterable[Draw]) -> None:
    """Says on stderr, once for each number of shots, how many classes have fewer pictures than that."""
    for said in dict.fromkeys(one.lacks for one in draws if one.lacks):
        tell(f"{dataset}: {said}")


def find_draw(draws: Draws, *, shots: int, seed: int, where: str | Path) -> Draw:
    """That draw of a file; ValueError saying which it has."""
    there = {(one.seed, one.shots): one for one in draws.draws}
    if (seed, shots) not in there:
        raise ValueError(f"{where}: no draw with seed {seed} of {shots} shots; it has seeds and shots {sorted(there)}")
    return there[seed, shots]


def choose_rows(stock: Stock, drawn: Draw | None, *, shots: int | None, takes: Collection[str] = ()) -> Chosen:
    """Rows of a draw; without one all of train, or with 0 shots none.

    takes: of an adapter; one that learns from validation has the data set's own also where there is no support.
    """
    train, own = stock.train, stock.validation
    every = None if own is None else list(range(len(own)))
    if train is None or shots == 0:
        return Chosen([], [], every if "validation" in takes else None)
    if drawn is None:
        if shots is not None:
            raise ValueError(f"{stock.dataset}: {shots} shots, and no draw that says which pictures; see `make_draws`")
        return Chosen(list(range(len(train))), [], every)
    support = sorted(rows_of(drawn.train, stock.words(train), keys_of(train)))
    held = own if own is not None else train
    validation = sorted(rows_of(drawn.validation, stock.words(held), keys_of(held)))
    return Chosen(support, validation, None) if own is None else Chosen(support, [], validation)


def give(stock: Stock, chosen: Chosen, *, wanted: Callable[[int], bool] | None = None) -> Given:
    """The pictures of the chosen rows.

    Unlabelled are the data set's own; else what is left of train, of the wanted classes, or all of it where nothing is.
    """
    validation = None
    if chosen.validation:
        assert stock.validation is not None
        validation = subset(stock.validation, chosen.validation)
    elif chosen.held:
        assert stock.train is not None
        validation = subset(stock.train, chosen.held)
    support = None
    if chosen.support:
        assert stock.train is not None
        support = subset(stock.train, chosen.support)
    if stock.unlabelled is not None and len(stock.unlabelled):
        return Given(support, validation, stock.unlabelled)
    rows = _left_over(stock, chosen, wanted)
    if not rows:
        return Given(support, validation, None)
    assert stock.train is not None
    return Given(support, validation, subset(stock.train, rows).unlabelled(), rows)


def _left_over(stock: Stock, chosen: Chosen, wanted: Callable[[int], bool] | None) -> list[int]:
    train = stock.train
    if train is None:
        return []
    every = [row for row, label in enumerate(train.known.tolist()) if wanted is None or wanted(label)]
    used = {*chosen.support, *chosen.held}
    return [row for row in every if row not in used] or every
