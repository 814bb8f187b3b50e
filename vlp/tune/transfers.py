"""Protocols that measure other classes, or other pictures, than those that were learned."""

from __future__ import annotations

from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlp.adapters.restricted import Restricted
from vlp.metrics.anomaly import AnomalyDetection
from vlp.metrics.interval import of_means
from vlp.tune.believed import believed
from vlp.tune.fitting import fit, provenance, traits, transfer
from vlp.tune.protocols import FewShot, Hits, Outcome, Protocol, Trial, counts_of, hits_of, rows_for, scored
from vlp.tune.scoring import Score, logits_of, score
from vlp.tune.stock import Stock
from vlp.tune.support import Given, give


def harmonic_mean(first: float, second: float) -> float:
    """2ab / (a + b), and 0 where both are 0."""
    return 2 * first * second / (first + second) if first + second else 0.0


def base_classes(count: int) -> int:
    """The first half of the sorted labels, the larger one: ceil(n / 2)."""
    return -(-count // 2)


def base_given(trial: Trial) -> Given:
    """What few_shot gives, of the base classes alone; ValueError for a saved adapter that knows the others."""
    names, base = trial.stock.names, base_classes(len(trial.stock.names))
    for one in provenance(trial.adapter):
        if known := [name for name in names[base:] if name in one.classes]:
            raise ValueError(
                f"{trial.stock.dataset}: what was saved is fitted to {len(known)} of the {len(names) - base} classes "
                f'that have to be new here, "{known[0]}" for one; fit it under this protocol, with --out'
            )
    chosen = rows_for(trial).only(trial.stock, lambda label: label < base)
    return give(trial.stock, chosen, wanted=lambda label: label < base).only(traits(trial.adapter).takes)


class BaseToNew(Protocol):
    """Learn the first ceil(n / 2) labels; measure these pictures among base names, the others among new (2203.05557).

    `acc1` counts every picture, each among the names of its own half; `h` is the harmonic mean of `acc1_base` and
    `acc1_new`. The adapter says with `transfer` what it makes of names that it did not learn.
    """

    def measure(self, trial: Trial) -> Outcome:
        """acc1, acc1_base, acc1_new, h."""
        self.check(trial)
        stock, base = trial.stock, base_classes(len(trial.stock.names))
        if traits(trial.adapter).transductive:
            raise ValueError(
                f"{type(trial.adapter).__name__} looks at the measured pictures, which base_to_new would have to part "
                "by their labels first; use --protocol transductive"
            )
        if len(stock.names) - base < 2:
            raise ValueError(f"{stock.dataset}: {len(stock.names)} classes leave fewer than 2 new ones; it takes 4")
        given = base_given(trial)
        old = fit(trial.adapter, stock, stock.task(seed=trial.seed, classes=slice(base), **given.parts()))
        new = transfer(trial.adapter, stock, old, stock.task(seed=trial.seed, classes=slice(base, None)))
        logits = [logits_of(one, stock.encoder, stock.test.pictures) for one in (old, new)]
        label = stock.test.label("scoring")
        halves = {
            "base": score(logits[0], torch.where(label < base, label, -1)),
            "new": score(logits[1], torch.where(label >= base, label - base, -1)),
        }
        return self._outcome(trial, old, halves, given, base, missing=int((label < 0).sum()))

    def _outcome(
        self, trial: Trial, old: Any, halves: dict[str, Score], given: Given, base: int, *, missing: int
    ) -> Outcome:
        stock = trial.stock
        hits = Hits({f"acc1_{name}": hits_of(stock, found) for name, found in halves.items()})
        hits["acc1"] = ([key for own in hits.values() for key in own[0]], torch.cat([own[1] for own in hits.values()]))
        metrics, ci95 = means(hits)
        metrics["h"] = harmonic_mean(metrics["acc1_base"], metrics["acc1_new"])
        chance = {f"acc1_{name}": found.chance["acc1"] for name, found in halves.items()}
        chance["h"] = harmonic_mean(chance["acc1_base"], chance["acc1_new"])
        sizes = {name: len(found.rows) for name, found in halves.items()}
        n = sum(sizes.values())
        chance["acc1"] = sum(chance[f"acc1_{name}"] * size for name, size in sizes.items()) / n
        counts = {"images": n, "classes": len(stock.names), "base_classes": base, **counts_of(given, base, trial)}
        counts |= {f"{name}_images": size for name, size in sizes.items()}
        skips = dict(stock.skips) | ({"no_usable_label": missing} if missing else {})
        return Outcome(old, n, metrics, ci95, chance, hits, counts, skips, believed(stock, given, old))


class OpenSet(Protocol):
    """Learn the first ceil(n / 2) labels; pictures of all classes are measured (open-set recognition, 2110.06207).

    `acc1` is of pictures of known classes, `open_auroc` how well the highest probability tells them from the others.
    """

    def measure(self, trial: Trial) -> Outcome:
        """acc1 and the other numbers of few_shot over known classes, and open_auroc."""
        self.check(trial)
        stock, base = trial.stock, base_classes(len(trial.stock.names))
        given = base_given(trial)
        task = stock.task(seed=trial.seed, classes=slice(base), **given.parts())
        classifier = fit(trial.adapter, stock, task)
        logits = logits_of(classifier, stock.encoder, stock.test.pictures)
        label = stock.test.label("scoring")
        for there, which in ((label >= base, "not "), ((label >= 0) & (label < base), "")):
            if not bool(there.any()):
                raise ValueError(
                    f"{stock.dataset}: no test picture of classes that were {which}learned, and open_set measures how "
                    "well the two are told apart; use --protocol few_shot, or add some"
                )
        found = score(logits, torch.where(label < base, label, -1))
        known = AnomalyDetection()
        usable = label >= 0
        known.update(-logits.double().softmax(dim=1).amax(dim=1)[usable], label[usable] >= base)
        counts = {"images": int(usable.sum()), "known_images": len(found.rows), "classes": len(stock.names)}
        missing = int((~usable).sum())
        return Outcome(
            classifier,
            int(usable.sum()),
            {**found.metrics, "open_auroc": known.compute()["image_auroc"]},
            {**found.ci95, "open_auroc": known.intervals()["image_auroc"]},
            {**found.chance, "open_auroc": known.chance()["image_auroc"]},
            Hits(acc1=hits_of(stock, found)),
            {**counts, "known_classes": base, **counts_of(given, base, trial)},
            dict(stock.skips) | ({"no_usable_label": missing} if missing else {}),
            believed(stock, given, classifier),
        )


class CrossDataset(FewShot):
    """Learn one data set, measure others, whose classes are other ones (2203.05557); the adapter's `transfer` says how.

    `acc1` is of the data set that was learned, `acc1_NAME` of another, `acc1_targets` their mean.
    """

    needs_targets: ClassVar[bool] = True

    def measure(self, trial: Trial) -> Outcome:
        """The numbers of few_shot, acc1_NAME and acc1_targets."""
        found = super().measure(trial)
        scores = {}
        for target in trial.targets:
            made = self.over(trial, found.classifier, target)
            own, skips = scored(target, made)
            name = f"acc1_{target.dataset}"
            scores[name] = own.metrics["acc1"]
            found.hits[name] = hits_of(target, own)
            found.ci95 = {**found.ci95, name: own.ci95["acc1"]}
            found.chance[name] = own.chance["acc1"]
            found.counts[f"images_{target.dataset}"] = len(own.rows)
            found.skips |= {f"{target.dataset}_{reason}": count for reason, count in skips.items()}
        found.metrics |= {**scores, "acc1_targets": fmean(scores.values())}
        found.chance["acc1_targets"] = fmean(found.chance[name] for name in scores)
        return found

    def over(self, trial: Trial, classifier: Any, target: Stock) -> Any:
        """The classifier for the classes of another data set."""
        return transfer(trial.adapter, target, classifier, target.task(seed=trial.seed))


class DomainShift(CrossDataset):
    """Learn one data set, measure other pictures of the same classes, or of some of them (2109.01134, section 4.2)."""

    def over(self, trial: Trial, classifier: Any, target: Stock) -> Any:
        """The same classifier, over the names that the other pictures have."""
        if traits(trial.adapter).transductive:
            return transfer(trial.adapter, target, classifier, target.task(seed=trial.seed))
        with target.test.fitting():
            return classifier if target.names == tuple(classifier.names) else Restricted(classifier, target.names)


def means(hits: Hits) -> tuple[dict[str, float], dict[str, Any]]:
    """Share of hits of each metric, and its interval over pictures."""
    values: dict[str, Tensor] = {name: own[1].double() for name, own in hits.items()}
    return (
        {name: float(own.mean()) for name, own in values.items()},
        {name: of_means(own[:, None])[0] for name, own in values.items()},
    )
