"""WiSE-FT: between the backbone and a model tuned from it (Wortsman et al. 2021)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from vlp.adapters.finetune import Finetune
from vlp.adapters.ingredients import AdapterPart, Ingredient, Line, completed, fitted, judged, provenances, read_tuned
from vlp.adapters.provenance import Provenance
from vlp.adapters.selection import Chosen, choose
from vlp.adapters.task import Task
from vlp.adapters.tuned import TunedClassifier, own_state, with_own_head
from vlp.adapters.weight_space import NOT_CHOSEN, WeightSpace
from vlp.adapters.weights import lerp, slerp

GRID = tuple(step / 20 for step in range(21))
DEFAULT = 0.5  # the paper's, for when nothing of the target can be held out


class WiseFT(WeightSpace):
    """(1 - alpha) theta_0 + alpha theta_1 over all floating tensors and the head (WiSE-FT, 2109.01903, section 3).

    theta_1 is what the adapter `of` makes, or the saved classifier or model at `file`. alpha: None chooses from 0,
    0.05, ..., 1 on validation or by folds, and takes 0.5 where nothing can be held out. `how: slerp` goes along an arc.
    Ours: a text tower that was tuned, too, encodes the prompts at alpha, where a head would be interpolated.
    """

    method: ClassVar[str] = "wise_ft"

    of: AdapterPart = Finetune()
    file: str | None = None
    alpha: float | None = Field(None, ge=0, le=1)
    how: Literal["lerp", "slerp"] = "lerp"

    def provenance(self) -> tuple[Provenance, ...]:
        """Of the file, where `vlp tune --out` wrote it."""
        return provenances([] if self.file is None else [self.file])

    def fit(self, encoder: Any, task: Task) -> TunedClassifier:
        """A classifier with the weights at alpha; at 0 the zero-shot one, at 1 that of `of`, bit for bit."""
        self.given(task, "support")
        chosen: Chosen[float] = Chosen(DEFAULT, NOT_CHOSEN)
        if self.alpha is None:
            found = judged(encoder, task, GRID, lambda part: self._path(encoder, part), who=self.method)
            line = found.line
            if found.scores:
                chosen = choose(GRID, found.scores.__getitem__, split=found.split, unchosen=DEFAULT)
        else:
            line, chosen = self._path(encoder, task), chosen._replace(value=self.alpha)
        alpha, state = chosen.value, line.at(chosen.value)
        return self.classifier(encoder, task, state, selection=chosen.selection, inner=line.inner, alpha=alpha)

    def _path(self, encoder: Any, task: Task) -> Line[float]:
        """Alpha -> state, with the tuned end fitted to the support of the task."""
        tuned = self._tuned(encoder, task)
        first, second = completed(encoder, task, [own_state(encoder, task, ()), tuned.state])
        between = {"lerp": lerp, "slerp": slerp}[self.how]
        return Line(lambda alpha: with_own_head(encoder, task, between(first, second, alpha)), [tuned.selection])

    def _tuned(self, encoder: Any, task: Task) -> Ingredient:
        """The tuned end."""
        if self.file is None:
            return fitted(self.of, encoder, task, name=type(self.of).__name__.lower())
        return read_tuned(self.file, encoder, task, head=True)
