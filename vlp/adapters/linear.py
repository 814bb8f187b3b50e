"""The linear probe: logistic regression on frozen features."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from vlp.adapters.adapter import Adapter, Given
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.seen import Seen, check_every_class, seen
from vlp.adapters.selection import Chosen, Folds, Score, choose, folds, pooled
from vlp.adapters.task import Task
from vlp.probe import logistic

UNCHOSEN = 1.0  # C where there is nothing to choose it on; accuracy at one shot hardly depends on it


class LinearProbe(Adapter):
    """Multinomial logistic regression with an L2 penalty (Radford et al. 2021, section 3.2, appendix A.3).

    The minimum of |W|^2 / 2 + C * sum of cross-entropies in fp64, no words used. C (None: chosen) by CLIP's search
    over 12 decades on validation, else by cross-validation in the support; with neither, 1. `max_iter` bounds the
    steps of L-BFGS; how many fits it cut stands in the selection.
    """

    wants: ClassVar[tuple[Given, ...]] = ("support",)

    C: float | None = Field(None, gt=0)
    intercept: bool = True
    max_iter: int = Field(1000, ge=1)

    def fit(self, encoder: Any, task: Task) -> LinearClassifier:
        """A classifier with the fitted weights, whose logits are those of the regression."""
        support = self.given(task, "support")
        check_every_class(support, task.names, who="linear")
        C, selection = self._choose(folds(task))
        found = self._fitted(support.image, support.known, C)
        selection["converged"] = found.converged
        return LinearClassifier(
            found.weight.to(support.image.dtype),
            names=task.names,
            scale=1.0,
            bias=found.bias.to(support.image.dtype),
            about={"adapter": "linear", "settings": self.model_dump(mode="json"), "selection": selection},
        )

    def _fitted(self, features: Any, label: Any, C: float, start: logistic.Logistic | None = None) -> logistic.Logistic:
        return logistic.fit(features, label, C=C, intercept=self.intercept, start=start, max_iter=self.max_iter)

    def _choose(self, found: Folds) -> tuple[float, dict[str, Any]]:
        """C, and what a record says of it."""
        parts = seen(found)
        if self.C is not None or not parts:
            C = UNCHOSEN if self.C is None else self.C
            return C, {"split": "none", "C": C}
        chosen, cut = self._search(parts, found.split)
        return chosen.value, {**chosen.selection, "C": chosen.value, "unconverged": cut}

    def _search(self, parts: list[Seen], split: str) -> tuple[Chosen[float], int]:
        """The best C, and the number of fits that max_iter cut; every fit starts from the one before it."""
        last: list[logistic.Logistic | None] = [None] * len(parts)
        cut = 0

        def judge(C: float) -> logistic.Score:
            nonlocal cut
            scores = []
            for place, part in enumerate(parts):
                probe = self._fitted(part.learn.image, part.learn.known, C, last[place])
                last[place], cut = probe, cut + (not probe.converged)
                own = logistic.judge(probe, part.judge.image, part.judge.known)
                scores.append((Score(*own), len(part.judge)))
            return logistic.Score(*pooled(scores))

        tried = logistic.search(judge)
        return choose(sorted(tried), lambda C: Score(*tried[C]), split=split, unchosen=UNCHOSEN), cut
