"""Probes of frozen features that choose one setting: a linear map its strength, neighbours their number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator
from torch import Tensor

from eval.benchmark import Outcome
from eval.hits import hits_file
from eval.labelled import Known, Labelled, Predict, Probe, Selection
from eval.view import View
from vlp.adapters.task import short_hash
from vlp.data.schema import DataError
from vlp.metrics.accuracy import Accuracy
from vlp.probe.draw import held_out
from vlp.probe.logistic import Choice, choose, fit
from vlp.probe.neighbours import neighbours, votes


class Held(Probe):
    """A probe whose setting is chosen on `validation`, or on a part of train held out by class and seed."""

    validation_fraction: float = Field(0.2, gt=0, lt=1)  # of each class of train
    split_seed: int = 0
    refit: bool = True  # on all pictures, once the choice is made

    def halves(self, view: View, known: Known) -> tuple[Labelled, Labelled, Selection]:
        """What to fit, what to choose on, and what the record says of it."""
        train, validation = known.train, known.validation
        if validation is not None:
            if not validation.keys:
                raise DataError(f"{view.dataset}: no picture of validation is of a class of train")
            return train, validation, {"split": "validation", "images": len(validation.keys)}
        held = held_out(known.words(train), train.keys, fraction=self.validation_fraction, seed=self.split_seed)
        if not held:
            raise DataError(f"{view.dataset}: no class of train has two pictures to hold one out; give `validation`")
        kept, chosen = ([row for row, key in enumerate(train.keys) if (key in held) is side] for side in (False, True))
        how: Selection = {"fraction": str(self.validation_fraction), "seed": self.split_seed, "images": len(held)}
        return train.only(kept), train.only(chosen), {"split": "train", **how}

    def outcome(
        self,
        view: View,
        known: Known,
        predict: Predict,
        *,
        prefix: str,
        selection: Selection,
        tried: list[dict[str, Any]],
        counts: dict[str, int] | None = None,
    ) -> Outcome:
        """Accuracies under the prefix, with intervals over the measured pictures."""
        test = self.measured(view, known)
        accuracy = test.accuracy(predict, classes=len(known.classes), step=self.batch)
        hits = {name: hit.tolist() for name, hit in accuracy.hits().items()}

        def prefixed(values: dict[str, Any]) -> dict[str, Any]:
            return {f"{prefix}_{key}": value for key, value in values.items()}

        selection = {**selection, **known.hashes}
        facts = {"images": len(test.label), "classes": len(known.classes), "train_images": len(known.train.keys)}
        return Outcome(
            metrics=prefixed(accuracy.compute()),
            n=len(test.label),
            counts={**facts, **(counts or {})},
            ci95=prefixed(accuracy.intervals(n_boot=self.n_boot)),
            chance=prefixed(accuracy.chance()),
            head="global",
            classes_hash=short_hash(known.names) if known.names else None,
            skips=test.skips,
            selection=selection,
            files={
                f"{self.task}.json": {"schema": 1, "selection": selection, "tried": tried},
                **hits_file(self.task, test.keys, ["class"] * len(test.keys), prefixed(hits)),
            },
        )


class Linear(Probe):
    """The settings of a logistic regression. `C`: this strength, and nothing is chosen."""

    C: float | None = Field(None, gt=0)
    intercept: bool = True
    max_iter: int = Field(1000, ge=1)

    @model_validator(mode="after")
    def _something_to_choose(self) -> Linear:
        if self.C is not None and self.validation is not None:
            raise ValueError("C is given, so nothing is chosen: leave out `validation`, or `C`")
        return self

    def fitted(self, train: Labelled, validation: Labelled | None = None, *, again: Choice | None = None) -> Choice:
        """The probe of train: with the best C on validation; with the C that was chosen, `again`; or with our own."""
        how: dict[str, Any] = {"intercept": self.intercept, "max_iter": self.max_iter}
        if validation is not None:
            return choose(train[:2], validation[:2], **how)
        C = again.C if again else self.C
        assert C is not None
        probe = fit(*train[:2], C=C, start=again.fitted if again else None, **how)
        earlier = again.unconverged if again else 0
        return Choice(C, again.tried if again else {}, probe, earlier + (not probe.converged))


class LinearProbe(Held, Linear):
    """Logistic regression on the features (2103.00020, appendix A.3): `vlp.probe.logistic`.

    Our deviation: features are those of the joint space with unit norm, as in CLIP_benchmark, not those before the
    projection; of equal accuracies on the validation pictures the higher likelihood decides.
    """

    task: ClassVar[str] = "linear_probe"

    def measure(self, view: View) -> Outcome:
        """lp_acc1, lp_acc5 and lp_mean_per_class_recall."""
        known = self.known(view)
        selection: Selection
        if self.C is not None:
            found, selection = self.fitted(known.train), {"split": "none", "C": f"{self.C:.6g}"}
        else:
            train, validation, selection = self.halves(view, known)
            found = self.fitted(train, validation)
            selection |= {"C": f"{found.C:.6g}", "candidates": len(found.tried), "criterion": "acc1, then likelihood"}
            if self.refit:
                found = self.fitted(train.joined(validation), again=found)
        return self.outcome(
            view,
            known,
            found.fitted,
            prefix="lp",
            selection=selection,
            tried=[{"C": C, **score._asdict()} for C, score in found.tried.items()],
            counts={"fits_not_converged": found.unconverged},
        )


class KNN(Held):
    """Votes of the k nearest training pictures, weighted by exp(cosine / temperature) (1805.01978, section 3.4).

    k is chosen, with more than one: of equal accuracies the smallest, of those that train has pictures for.
    """

    task: ClassVar[str] = "knn"

    k: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 5, 10, 20, 50, 100, 200), min_length=1)
    temperature: float = Field(0.07, gt=0)

    def measure(self, view: View) -> Outcome:
        """knn_acc1, knn_acc5 and knn_mean_per_class_recall."""
        known = self.known(view)
        bank, k, tried = known.train, self.k[0], dict[int, float]()
        selection: Selection = {"split": "none", "k": k}
        if len(self.k) > 1:
            bank, validation, selection = self.halves(view, known)
            tried = self._tried(bank, validation, len(known.classes))
            k = max(tried, key=lambda one: (tried[one], -one))
            selection |= {"k": k, "candidates": len(tried), "criterion": "acc1"}
            bank = bank.joined(validation) if self.refit else bank

        def predict(features: Tensor) -> Tensor:
            return self._votes(features, bank, (k,), len(known.classes))[k]

        rows = [{"k": one, "accuracy": accuracy} for one, accuracy in tried.items()]
        return self.outcome(view, known, predict, prefix="knn", selection=selection, tried=rows)

    def _votes(self, features: Tensor, bank: Labelled, ks: Sequence[int], classes: int) -> dict[int, Tensor]:
        found = neighbours(features, bank.features, k=max(ks))
        return {k: votes(found, bank.label, classes=classes, k=k, temperature=self.temperature) for k in ks}

    def _tried(self, bank: Labelled, validation: Labelled, classes: int) -> dict[int, float]:
        """Accuracy on the validation pictures of each k that the bank has pictures for."""
        ks = [k for k in self.k if k <= len(bank.keys)] or [len(bank.keys)]
        found = {k: Accuracy(classes, k=(1,)) for k in ks}
        for features, label in zip(validation.features.split(self.batch), validation.label.split(self.batch)):
            for k, logits in self._votes(features, bank, ks, classes).items():
                found[k].update(logits.cpu(), label)
        return {k: accuracy.compute()["acc1"] for k, accuracy in found.items()}
