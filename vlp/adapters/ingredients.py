"""Tuned models to merge: fitted here by other adapters, or read from disk; and settings judged on pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from vlp import trained
from vlp.adapters.adapter import Adapter
from vlp.adapters.classifier import ABOUT
from vlp.adapters.fitting import pixels
from vlp.adapters.provenance import Provenance
from vlp.adapters.saved import FILE, read_provenance
from vlp.adapters.selection import Score, folds, score, selection_of
from vlp.adapters.task import Examples, Task
from vlp.adapters.tuned import HEAD, SIDES, TunedClassifier, measured_again, own_state, with_own_head
from vlp.adapters.weight_space import NOT_CHOSEN, WeightSpace
from vlp.adapters.weights import State, check_alike
from vlp.registry import Named

AdapterPart = Annotated[Any, Named("vlp.adapters:ADAPTERS")]
S = TypeVar("S")


class Ingredient(NamedTuple):
    """A tuned model: what it is called in records, all that it changes of the backbone, and what chose its settings."""

    name: str
    state: dict[str, Tensor]
    selection: dict[str, Any]


class Merges(WeightSpace):
    """What every adapter that merges tuned models can be given.

    of: adapters that tune the towers, each fitted on the support with `seeds` seeds. files: folders of saved
    classifiers of them, or of models (checkpoints) of the same architecture.
    """

    of: tuple[AdapterPart, ...] = ()
    seeds: int = Field(1, ge=1)
    files: tuple[str, ...] = ()

    def provenance(self) -> tuple[Provenance, ...]:
        """Of those files that `vlp tune --out` wrote; a model says nothing of its own."""
        return provenances(self.files)

    def ingredients(self, encoder: Any, task: Task, *, heads: bool) -> list[Ingredient]:
        """All of them, those fitted here first; `heads`: their class weights are wanted, and must be of the task."""
        found: list[Ingredient] = []
        for part in self.of:
            for seed in range(task.seed, task.seed + self.seeds):
                name = f"{type(part).__name__.lower()} {len(found)} (seed {seed})"
                found.append(fitted(part, encoder, replace(task, seed=seed), name=name))
        found += [read_tuned(path, encoder, task, head=heads) for path in self.files]
        if not found:
            raise ValueError(
                f"{self.method} has nothing to merge: give `of` (adapters such as finetune), or `files` "
                "(folders of saved classifiers or models)"
            )
        return found


def provenances(files: Sequence[str]) -> tuple[Provenance, ...]:
    """What those of the files were fitted to that `vlp tune --out` wrote; a model says nothing of its own."""
    return tuple(read_provenance(Path(path)) for path in files if (Path(path) / FILE).is_file())


def fitted(part: Adapter, encoder: Any, task: Task, *, name: str) -> Ingredient:
    """What the adapter makes of the task; ValueError if that is no tuned model."""
    made = part.fit(encoder, task)
    if not isinstance(made, TunedClassifier):
        raise ValueError(
            f"{type(part).__name__} gives a {type(made).__name__}, which has no weights of a tower to merge; "
            "use finetune, clip_lora or another that tunes towers"
        )
    return Ingredient(name, made.state, selection_of(made))


def read_tuned(path: str, encoder: Any, task: Task, *, head: bool) -> Ingredient:
    """The classifier or model at `path`: what it changes of the backbone, on its device, HEAD among it.

    A model has the class weights of its own text tower. So has a classifier of other classes if its `head` is not
    wanted; otherwise it is refused.
    """
    if (Path(path) / ABOUT).is_file():
        saved = TunedClassifier.load(Path(path), encoder)
        if head and saved.names != tuple(task.names):
            raise ValueError(f"{path} knows other classes than the task, so that its class weights cannot be merged")
        selection = selection_of(saved)
        if head:
            return Ingredient(path, saved.state, selection)
        state = {name: tensor for name, tensor in saved.state.items() if name != HEAD}
    else:
        state, selection = _changed(path, encoder), NOT_CHOSEN
    state = with_own_head(encoder, task, {**own_state(encoder, task, ()), **state})
    return Ingredient(path, state, selection)


def _changed(path: str, encoder: Any) -> dict[str, Tensor]:
    """Tensors of the towers at `path` that are not the backbone's own."""
    towers = tuple(SIDES.values())
    own = {name: x.detach() for name, x in encoder.dual.state_dict().items() if name.startswith(towers)}
    other = {name: x.detach() for name, x in trained.load(path).state_dict().items() if name.startswith(towers)}
    try:
        check_alike([own, other])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    moved = {name: tensor.to(encoder.device) for name, tensor in other.items()}
    return {name: tensor for name, tensor in moved.items() if not torch.equal(tensor, own[name])}


def completed(encoder: Any, task: Task, states: Sequence[State]) -> list[dict[str, Tensor]]:
    """The states over the same tensors: where one changes what another does not, that has the backbone's own."""
    own = own_state(encoder, task, sorted({name for state in states for name in state}))
    return [{name: state.get(name, tensor) for name, tensor in own.items()} for state in states]


def remeasured(encoder: Any, examples: Examples, states: Sequence[State], *, who: str) -> Callable[[State], State]:
    """State -> the same with BatchNorm statistics of these pictures, where any of `states` has such statistics."""
    if not any(name.endswith("running_mean") for state in states for name in state):
        return lambda state: state
    image = pixels(encoder, examples, who=who)
    return lambda state: measured_again(encoder, state, image)


# -- judging --------------------------------------------------------------------------------------------------------


class Line(NamedTuple, Generic[S]):
    """Candidate -> state, and the selections of the tuned models that all these states are made of."""

    at: Callable[[S], State]
    inner: list[dict[str, Any]]


class Judged(NamedTuple, Generic[S]):
    """The score of every candidate, where it comes from, and the line of states from the whole support."""

    scores: dict[S, Score]
    split: str
    line: Line[S]


def judged(
    encoder: Any,
    task: Task,
    candidates: Sequence[S],
    path: Callable[[Task], Line[S]],
    *,
    who: str,
) -> Judged[S]:
    """Each candidate's score on pictures that its state was not fitted to; no scores where none can be held out.

    path: fits to the support of a task, and gives the state of each candidate. With `validation` it is called once,
    without it once a fold and once on the whole.
    """
    found = folds(task)
    logits: dict[S, list[Tensor]] = {candidate: [] for candidate in candidates}
    line: Line[S] | None = None
    for fold in found.folds:
        line = path(replace(task, support=fold.learn))
        image = pixels(encoder, fold.judge, who=who)
        for candidate in candidates:
            logits[candidate].append(TunedClassifier(encoder, line.at(candidate), names=task.names)(image))
    if line is None or found.split != "validation":
        line = path(task)
    label = [fold.judge.known for fold in found.folds]
    scores = {one: score(torch.cat(parts), torch.cat(label)) for one, parts in logits.items() if parts}
    return Judged(scores, found.split, line)
