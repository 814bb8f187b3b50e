"""Class names with parents: subclasses that vote for their class (CHiLS), or parents in the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import field_validator, model_validator
from torch import Tensor

from vlp.adapters.adapter import Adapter, Level
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.descriptions import check_phrase, fill_phrase, read_json, said_missing
from vlp.adapters.task import Task, short_hash
from vlp.adapters.zeroshot import ZeroShot
from vlp.embed import Encoder

ParentPath = str | tuple[str, ...]
PHRASES = {"subclasses": "{name}", "parents": "{name}, a type of {parent}"}


class Hierarchy(Adapter):
    """Zero-shot with a tree of names, JSON {name: path of its parents from the top} in `file`, or inline as `parents`.

    `how: subclasses` (CHiLS, Novack et al., arXiv 2302.02551): the task's classes are what stands above; every name
    below them gets prompts, p(s) is the softmax over all of these, and the class of the best p(s) * p(c) wins, p(c) the
    zero-shot probability of the class itself (`reweight: false` leaves it out). `with_class` lets the class's own name
    be one of its subclasses, as in the paper's sets from a language model. score(c) = max_s log p(s) + log p(c).
    `how: parents`: the task's classes are what stands below, and their prompts say the parent too.
    `phrase` says how a name enters the templates: {name}, {parent} (nearest) and {parents} (all, nearest first).
    A path is "Fruit/Apple" or ["Fruit", "Apple"]. A class of which the tree knows nothing is refused, or stands for
    itself with `missing: itself`.
    """

    level: ClassVar[Level] = "text"

    file: str | None = None
    parents: dict[str, ParentPath] | None = None
    how: Literal["subclasses", "parents"] = "subclasses"
    phrase: str | None = None
    reweight: bool = True
    with_class: bool = False
    missing: Literal["error", "itself"] = "error"

    @model_validator(mode="after")
    def _one_place(self) -> Hierarchy:
        if (self.file is None) == (self.parents is None):
            raise ValueError("give either `file`, a JSON {name: path of its parents}, or the same inline as `parents`")
        return self

    @field_validator("phrase")
    @classmethod
    def _slots(cls, phrase: str | None) -> str | None:
        return phrase and check_phrase(phrase, needs=("name",), may=("parent", "parents"))

    def fit(self, encoder: Encoder, task: Task) -> LinearClassifier | SubclassClassifier:
        """A classifier over the task's names."""
        tree = parent_paths(read_json(self.file) if self.file else self.parents or {}, where=self.file or "parents")
        return (
            self._by_subclasses(encoder, task, tree) if self.how == "subclasses" else self._named(encoder, task, tree)
        )

    def _by_subclasses(self, encoder: Encoder, task: Task, tree: Mapping[str, Sequence[str]]) -> SubclassClassifier:
        below = {name: subclasses(name, tree) for name in task.names}
        self._refuse(task, [name for name in task.names if not below[name]], tree)
        for name, own in below.items():
            if name not in own and (self.with_class or not own):
                own.append(name)
        pairs = [(place, name) for place, upper in enumerate(task.names) for name in below[upper]]
        phrases = [self._phrase(name, task.names[place], tree) for place, name in pairs]
        return SubclassClassifier(
            ZeroShot().fit(encoder, replace(task, names=phrases, text=None)),
            ZeroShot().fit(encoder, task) if self.reweight else None,
            owner=torch.tensor([place for place, _ in pairs]),
            names=task.names,
            about={
                "adapter": "hierarchy",
                "how": self.how,
                "subclasses": len(pairs),
                "prompts_hash": short_hash(phrases),
            },
        )

    def _named(self, encoder: Encoder, task: Task, tree: Mapping[str, Sequence[str]]) -> LinearClassifier:
        self._refuse(task, [name for name in task.names if not tree.get(name)], tree)
        phrases = [self._phrase(name, tree[name][-1], tree) if tree.get(name) else name for name in task.names]
        made = ZeroShot().fit(encoder, replace(task, names=phrases, text=None))
        about = {"adapter": "hierarchy", "how": self.how, "prompts_hash": short_hash(phrases)}
        return LinearClassifier(made.weight, names=task.names, scale=made.scale, about=about)

    def _refuse(self, task: Task, without: list[str], tree: Mapping[str, Sequence[str]]) -> None:
        if without and self.missing == "error":
            known = {*tree, *(upper for path in tree.values() for upper in path)}
            what = "subclass" if self.how == "subclasses" else "parent"
            said = said_missing(without, known, of=len(task.names), what=what, where=self.file or "parents")
            raise ValueError(f"{said}; add them, or set missing: itself")

    def _phrase(self, name: str, parent: str, tree: Mapping[str, Sequence[str]]) -> str:
        """The name as it enters the templates; a class that is its own subclass has no parent to speak of."""
        if name == parent:
            return name
        values = {"name": name, "parent": parent, "parents": ", ".join(reversed(tree.get(name, (parent,))))}
        return fill_phrase(self.phrase or PHRASES[self.how], values)


class SubclassClassifier:
    """A Classifier whose score of a class is that of its best subclass, with or without the class's own probability."""

    needs = "features"

    def __init__(
        self,
        below: LinearClassifier,
        above: LinearClassifier | None,
        *,
        owner: Int[Tensor, "S"],
        names: Sequence[str],
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.below, self.above, self.owner, self.names = below, above, owner, tuple(names)
        self.about = dict(about or {})

    def __call__(self, inputs: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Max over subclasses s of c of log p(s), plus log p(c): logarithms, so that no probability is rounded to 0."""
        logs = self.below(inputs).log_softmax(dim=1)
        empty = logs.new_full((len(logs), len(self.names)), -torch.inf)
        best = empty.scatter_reduce(1, self.owner.expand_as(logs), logs, "amax")
        return best if self.above is None else best + self.above(inputs).log_softmax(dim=1)


def parent_paths(tree: Any, *, where: str) -> dict[str, tuple[str, ...]]:
    """Each name's parents from the top down; ValueError naming the entry that is no path."""
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where}: wanted a JSON object {{name: path of its parents}}, got a {type(tree).__name__}")
    found = {}
    for name, path in tree.items():
        steps = path.split("/") if isinstance(path, str) and path else path or ()
        if not isinstance(steps, list | tuple) or not all(isinstance(step, str) and step.strip() for step in steps):
            raise ValueError(
                f'{where}: "{name}": {path!r} is no path of parents such as "Fruit/Apple" or ["Fruit", "Apple"]'
            )
        found[name] = tuple(step.strip() for step in steps)
    return found


def subclasses(upper: str, tree: Mapping[str, Sequence[str]]) -> list[str]:
    """Names below `upper` that nothing stands below; a name at the bottom is its own; empty for one not in the tree."""
    inner = {step for path in tree.values() for step in path}
    below = [name for name, path in tree.items() if upper in path and name not in inner]
    return below or ([upper] if upper in tree and upper not in inner else [])
