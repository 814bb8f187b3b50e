"""What an adapter is given to learn from, and what is measured: the protocols over one set of classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxtyping import Bool
from pydantic import Field
from torch import Tensor

from vlp.adapters.adapter import Adapter
from vlp.metrics.interval import Interval
from vlp.probe.draw import Draw, by_class
from vlp.registry import Part
from vlp.tune.believed import believed
from vlp.tune.fitting import fit, traits
from vlp.tune.scoring import Score, logits_of, score
from vlp.tune.stock import Stock, keys_of, subset
from vlp.tune.support import Chosen, Given, choose_rows, give


@dataclass(frozen=True)
class Trial:
    """One fit: shots None is all of train, 0 nothing; `targets` are other data sets to measure."""

    adapter: Adapter
    stock: Stock
    shots: int | None = None
    seed: int = 1
    drawn: Draw | None = None
    targets: Sequence[Stock] = ()


class Hits(dict[str, tuple[list[str], Bool[Tensor, "n"]]]):
    """By metric: keys of the pictures, and whether each was right."""


@dataclass
class Outcome:
    """What a trial found. counts: pictures by what they were for, and classes. pseudolabels: how right they were."""

    classifier: Any
    n: int
    metrics: dict[str, float]
    ci95: Mapping[str, Interval]
    chance: dict[str, float]
    hits: Hits
    counts: dict[str, int]
    skips: dict[str, int] = field(default_factory=dict)
    pseudolabels: dict[str, Any] | None = None


class Protocol(Part):
    """`measure(trial) -> Outcome`."""

    needs_targets: ClassVar[bool] = False  # other data sets to measure on

    def measure(self, trial: Trial) -> Outcome:
        """Fits, then opens the test labels, then scores."""
        raise NotImplementedError

    def check(self, trial: Trial) -> None:
        """ValueError where the protocol cannot be had."""
        if self.needs_targets and not trial.targets:
            raise ValueError(
                f"{type(self).__name__} measures other data sets than it learns from: name some with --test"
            )
        if trial.targets and not self.needs_targets:
            raise ValueError(
                f"{type(self).__name__} measures no other data sets; --protocol cross_dataset or domain_shift does"
            )
        for target in trial.targets:
            check_one_model(trial.stock, target)
            trial.stock.refuse_measured(target)
        names = [target.dataset for target in trial.targets]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(
                f'several data sets to measure are called "{twice[0]}"; the record needs names that differ'
            )


class FewShot(Protocol):
    """Labelled pictures, `shots` of each class drawn by seed, or all of train; all test pictures (2109.01134)."""

    def measure(self, trial: Trial) -> Outcome:
        """acc1, acc5, mean_per_class_recall, ece and confidence."""
        self.check(trial)
        given = self.given(trial).only(traits(trial.adapter).takes)
        stock = trial.stock
        classifier = fit(trial.adapter, stock, stock.task(seed=trial.seed, **given.parts()))
        found, skips = scored(stock, classifier)
        return Outcome(
            classifier,
            len(found.rows),
            found.metrics,
            found.ci95,
            found.chance,
            Hits(acc1=hits_of(stock, found)),
            {"images": len(found.rows), "classes": len(stock.names), **counts_of(given, len(stock.names), trial)},
            skips,
            believed(stock, given, classifier),
        )

    def given(self, trial: Trial) -> Given:
        """The pictures to learn from."""
        return give(trial.stock, rows_for(trial))


class Unsupervised(FewShot):
    """Pictures without labels and class names: all of train unless the data set has unlabelled ones of its own."""

    def given(self, trial: Trial) -> Given:
        """Unlabelled pictures alone."""
        if trial.shots:
            raise ValueError(f"unsupervised knows no labels, so there are no {trial.shots} shots; leave --shots out")
        known, name = traits(trial.adapter), type(trial.adapter).__name__
        if "support" in known.wants:
            raise ValueError(
                f"{name} needs labelled pictures, and unsupervised gives none: use --protocol few_shot with --shots N, "
                "or semi_supervised, which gives the rest without labels too"
            )
        if "validation" in known.takes:
            raise ValueError(
                f"{name} learns from labelled validation pictures, and unsupervised gives none: use --protocol "
                "transductive --shots 0"
            )
        return give(trial.stock, Chosen([], [], None))


class SemiSupervised(FewShot):
    """A few labelled pictures, and the rest of train (or the data set's own pool) without labels (2306.01669)."""

    def given(self, trial: Trial) -> Given:
        """Both; ValueError without shots."""
        found = super().given(trial)
        takes = traits(trial.adapter).takes
        if ("support" in takes and not trial.shots) or (learns(trial.adapter) and not _rest(trial, found)):
            raise ValueError(
                "semi_supervised learns from shots and from what is left: give --shots, fewer than train has"
            )
        return found


class Transductive(FewShot):
    """The measured pictures, all at once and without labels, with `shots` labelled ones; 0 shots is zero-shot."""

    def check(self, trial: Trial) -> None:
        """ValueError for an adapter that does not look at them."""
        super().check(trial)
        if learns(trial.adapter) and not traits(trial.adapter).transductive:
            name = type(trial.adapter).__name__
            raise ValueError(f"{name} does not look at the measured pictures; use --protocol few_shot")


class Imbalanced(FewShot):
    """Few-shot with a long tail: class i of C, in an order drawn by seed, keeps shots * ratio^(-i / (C - 1)) pictures.

    The classes of 1901.05555, section 5.1; at least one picture a class. What is left out has no label then.
    """

    ratio: float = Field(10.0, ge=1)  # pictures of the most frequent class by those of the rarest

    def given(self, trial: Trial) -> Given:
        """Support with a tail; validation as in few_shot."""
        stock = trial.stock
        chosen = rows_for(trial)
        if stock.train is None or not chosen.support:
            if "support" not in traits(trial.adapter).takes:
                return give(stock, chosen)
            raise ValueError("imbalanced learns from labelled pictures: give `train`, and shots other than 0")
        support = subset(stock.train, chosen.support)
        keys = keys_of(support) if support.keys else list(map(str, chosen.support))
        own = by_class(stock.words(support), keys, seed=trial.seed)
        order = by_class(["class"] * len(own), list(own), seed=trial.seed)["class"]
        last = max(len(order) - 1, 1)
        kept = set[str]()
        for place, name in enumerate(order):
            count = max(1, round(len(own[name]) * self.ratio ** (-place / last)))
            kept.update(own[name][:count])
        rows = [row for row, key in zip(chosen.support, keys, strict=True) if key in kept]
        return give(stock, chosen._replace(support=rows))


def _rest(trial: Trial, given: Given) -> bool:
    """Whether there are unlabelled pictures that are neither learned from with their labels nor chosen on."""
    if given.left_over is None:
        return given.unlabelled is not None
    chosen = rows_for(trial)
    return not {*given.left_over} & {*chosen.support, *chosen.held}


def rows_for(trial: Trial) -> Chosen:
    """Rows of train and validation that the trial's adapter may have."""
    return choose_rows(trial.stock, trial.drawn, shots=trial.shots, takes=traits(trial.adapter).takes)


def check_one_model(stock: Stock, target: Stock) -> None:
    """ValueError where the features of two data sets are not those of one model.

    Two folders of features that both do not say which weights made them are taken to be of one.
    """
    own, other = stock.encoder.weights_hash, target.encoder.weights_hash
    if own != other:
        if own is not None and other is not None:
            how = f"features of weights with the hash {own}, and those of {other}"
            remedy = "features of different weights do not compare: encode both with one model"
        else:
            which, there = (stock.dataset, other) if own is None else (target.dataset, own)
            how = f"{which} does not say which weights made its features, and the other are of {there}"
            remedy = "put weights_hash into classes.npz if they are of these"
        raise ValueError(f"{stock.dataset} is learned and {target.dataset} measured: {how}; {remedy}")
    widths = [part.test.pictures.image.shape[1] for part in (stock, target)]
    if widths[0] != widths[1]:
        raise ValueError(
            f"{stock.dataset} is learned and {target.dataset} measured, but their features have {widths[0]} and "
            f"{widths[1]} numbers: encode both with one model"
        )


def learns(adapter: Adapter) -> bool:
    """False for a method that learns from no pictures, which stands beside the others in any protocol."""
    return traits(adapter).setting != "zero-shot"


def scored(stock: Stock, classifier: Any) -> tuple[Score, dict[str, int]]:
    """The score over all test pictures, and what was left out; predictions are made before labels are read."""
    logits = logits_of(classifier, stock.encoder, stock.test.pictures)
    label = stock.test.label("scoring")
    skips = dict(stock.skips)
    if missing := int((label < 0).sum()):
        skips["no_usable_label"] = missing
    return score(logits, label), skips


def hits_of(stock: Stock, found: Score) -> tuple[list[str], Bool[Tensor, "n"]]:
    """Keys of the scored pictures, and whether each was right."""
    keys = keys_of(stock.test.pictures)
    return [keys[row] for row in found.rows.tolist()], found.hits


def counts_of(given: Given, classes: int, trial: Trial) -> dict[str, int]:
    """Pictures by what they were for, and classes that no labelled one was of, or that fewer could be drawn of."""
    counts = {name: len(part) for name, part in given.parts().items() if part is not None}
    if given.support is not None:
        without = classes - len(given.support.known.unique())
        counts |= {"classes_without_support": without} if without else {}
        learned = set(trial.stock.words(given.support))
        drawn = trial.drawn.only(learned).short if trial.drawn else 0
        counts |= {"classes_short": drawn} if drawn else {}
    return counts
