"""Task arithmetic: sums of what tuning moved (Ilharco et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from vlp.adapters.ingredients import Line, Merges, judged, provenances, read_tuned, remeasured
from vlp.adapters.provenance import Provenance
from vlp.adapters.selection import Chosen, Score, choose
from vlp.adapters.task import Task
from vlp.adapters.tuned import HEAD, TunedClassifier, own_state, with_own_head
from vlp.adapters.weight_space import NOT_CHOSEN
from vlp.adapters.weights import State, moved, task_vector

GRID = tuple(step / 20 for step in range(21))
DEFAULT = 0.3  # where nothing can be held out; what sums of several vectors were best at


class TaskArithmetic(Merges):
    """theta_0 + lambda (sum_i tau_i - sum_j tau_j), tau = theta - theta_0, with zero-shot class weights (2212.04089).

    Vectors of `of` and `files` are added, those of the files `negate` subtracted. lam: None chooses from 0, 0.05, ...,
    1 on validation or by folds, and takes 0.3 where nothing can be held out. With `negate` alone the task at hand is
    the control: lambda is the largest at which its accuracy is still `keep` of that of the backbone.
    """

    method: ClassVar[str] = "task_arithmetic"

    negate: tuple[str, ...] = ()
    lam: float | None = Field(None, ge=0)
    keep: float = Field(0.95, ge=0, le=1)

    def provenance(self) -> tuple[Provenance, ...]:
        """Of the files that are added and of those that are subtracted."""
        return provenances((*self.files, *self.negate))

    def fit(self, encoder: Any, task: Task) -> TunedClassifier:
        """A classifier with the sum; at lambda 0 the zero-shot one, bit for bit."""
        self.given(task, "support")
        chosen: Chosen[float] = Chosen(DEFAULT, NOT_CHOSEN)
        if self.lam is None:
            found = judged(encoder, task, GRID, lambda part: self._path(encoder, part), who=self.method)
            line = found.line
            if found.scores:
                chosen = self._chosen(found.scores, found.split)
        else:
            line, chosen = self._path(encoder, task), chosen._replace(value=self.lam)
        lam, state = chosen.value, line.at(chosen.value)
        return self.classifier(encoder, task, state, selection=chosen.selection, inner=line.inner, lam=lam)

    def _chosen(self, scores: Mapping[float, Score], split: str) -> Chosen[float]:
        if self.of or self.files or not self.negate:
            return choose(GRID, scores.__getitem__, split=split, unchosen=DEFAULT)
        least = self.keep * scores[0.0].accuracy
        lam = max(one for one in GRID if scores[one].accuracy >= least)
        criterion = f"largest with acc1 at least {self.keep} of that at 0"
        about = {"split": split, "candidates": len(GRID), "criterion": criterion, "acc1": scores[lam].accuracy}
        return Chosen(lam, about)

    def _path(self, encoder: Any, task: Task) -> Line[float]:
        """Lambda -> state, with the vectors of `of` fitted to the support of the task."""
        added = []
        if self.of or self.files or not self.negate:
            added = self.ingredients(encoder, task, heads=False)
        taken = [read_tuned(path, encoder, task, head=False) for path in self.negate]
        towers = [{name: x for name, x in one.state.items() if name != HEAD} for one in [*added, *taken]]
        own = own_state(encoder, task, sorted({name for state in towers for name in state}))
        vectors = [task_vector(own, state) for state in towers]
        signs = [1] * len(added) + [-1] * len(taken)
        again = remeasured(encoder, self.given(task, "support"), towers, who=self.method)

        def at(lam: float) -> State:
            state = with_own_head(encoder, task, moved(own, vectors, [sign * lam for sign in signs]))
            return again(state) if lam else state

        return Line(at, [one.selection for one in [*added, *taken]])
