"""Model soups: the mean of models tuned from one (Wortsman et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from vlp.adapters.finetune import Finetune
from vlp.adapters.fitting import pixels
from vlp.adapters.ingredients import AdapterPart, Merges, completed, remeasured
from vlp.adapters.selection import Fold, folds, score
from vlp.adapters.task import Examples, Task
from vlp.adapters.tuned import TunedClassifier, with_own_head
from vlp.adapters.weight_space import NOT_CHOSEN
from vlp.adapters.weights import State, mean

Accuracy = Callable[[State], float]


class Soup(Merges):
    """The mean of tuned models, head included: of all of them, or greedily (model soups, 2203.05482, recipe 1).

    Greedy: in the order of their accuracy on held-out pictures each ingredient joins if the mean with it is no worse
    there (`accept: ge`, the paper) or better (`gt`, its code), so that the soup is never below the best ingredient.
    Without `validation` one fold of the support is held out (a half of two shots, a third of three, else a quarter),
    and the ingredients do not see it; files may have.
    BatchNorm statistics of a mean are measured again on the support.
    """

    method: ClassVar[str] = "soup"

    of: tuple[AdapterPart, ...] = (Finetune(),)
    seeds: int = Field(4, ge=1)
    how: Literal["greedy", "uniform"] = "greedy"
    accept: Literal["ge", "gt"] = "ge"

    def fit(self, encoder: Any, task: Task) -> TunedClassifier:
        """A classifier with the mean of what was taken; `about` names it."""
        learn, held, selection = self.given(task, "support"), None, NOT_CHOSEN
        if self.how == "greedy":
            (learn, held), split = self._hold_out(task)
        inner = replace(task, support=learn)
        named = self.ingredients(encoder, inner, heads=True)
        states = completed(encoder, inner, [ingredient.state for ingredient in named])
        again = remeasured(encoder, learn, states, who=self.method)

        def mixed(places: Sequence[int]) -> State:
            if len(places) == 1:
                return states[places[0]]  # as it is
            return again(with_own_head(encoder, inner, mean([states[place] for place in places])))

        taken = list(range(len(states)))
        if held is not None:
            taken, seen = greedy(
                len(states), mixed, _accuracy(encoder, held, task, who=self.method), accept=self.accept
            )
            selection = {"split": split, "candidates": len(seen), "criterion": "acc1", "acc1": max(seen)}
        said = {"ingredients": [one.name for one in named], "taken": [named[place].name for place in taken]}
        inside = [one.selection for one in named]
        return self.classifier(encoder, task, mixed(taken), selection=selection, inner=inside, **said)

    def _hold_out(self, task: Task) -> tuple[Fold, str]:
        found = folds(task)
        if not found.folds:
            raise ValueError(
                "soup: a greedy soup needs held-out pictures, and a support of one shot has none to spare; give "
                "validation, or set how: uniform"
            )
        return found.folds[0], found.split


def greedy(
    count: int,
    mixed: Callable[[Sequence[int]], State],
    accuracy: Accuracy,
    *,
    accept: Literal["ge", "gt"] = "ge",
) -> tuple[list[int], list[float]]:
    """Numbers of the ingredients in the greedy soup of `count`, best first, and every accuracy that was looked at."""
    alone = [accuracy(mixed([place])) for place in range(count)]
    first, *others = sorted(range(count), key=lambda place: -alone[place])
    taken, best, seen = [first], alone[first], list(alone)
    for place in others:
        reached = accuracy(mixed([*taken, place]))
        seen.append(reached)
        if reached > best or (accept == "ge" and reached == best):
            taken, best = [*taken, place], reached
    return taken, seen


def _accuracy(encoder: Any, held: Examples, task: Task, *, who: str) -> Accuracy:
    image = pixels(encoder, held, who=who)
    return lambda state: score(TunedClassifier(encoder, state, names=task.names)(image), held.known).accuracy
