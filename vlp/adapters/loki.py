"""Predictions by expected distance in a metric space of labels (Loki, Roberts et al. 2023)."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from jaxtyping import Float, Int
from pydantic import model_validator
from torch import Tensor

from vlp.adapters.adapter import Adapter
from vlp.adapters.descriptions import read_json, said_missing
from vlp.adapters.hierarchy import ParentPath, parent_paths
from vlp.adapters.pseudo_shots import renumbered
from vlp.adapters.selection import NOTHING, choices_of, selection_of
from vlp.adapters.task import Task
from vlp.adapters.zeroshot import ZeroShot
from vlp.embed import Encoder
from vlp.registry import Named
from vlp.text.templates import read_names

AdapterPart = Annotated[Any, Named("vlp.adapters:ADAPTERS")]
Edge = tuple[str, str]


class Loki(Adapter):
    """The label of least expected squared distance, arg-min_y sum_k p_k d(y, k)^2 (Loki, arXiv 2307.12226, eq. 1).

    p is the softmax of the logits of the adapter `of`, which knows the labels `observed` only (names, or a file of
    them; default all): labels that it never saw can be predicted nonetheless. Scores are negative expected squared
    distances, so calibration says nothing of them. `file` (or `tree`, the same inline) is JSON {name: path of its
    parents}, as in `hierarchy`, under one common root, or a list of edges [[name, name], ...]; d counts the edges
    between two names. Without a tree, d^2 is the squared L2 distance of the text features of the task's prompts.
    `adjust: false` is the baseline, the arg-max of `of`, measured by the same distance.
    """

    of: AdapterPart = ZeroShot()
    file: str | None = None
    tree: dict[str, ParentPath] | tuple[Edge, ...] | None = None
    observed: tuple[str, ...] | str | None = None
    adjust: bool = True

    @model_validator(mode="after")
    def _at_most_one_tree(self) -> Loki:
        if self.file is not None and self.tree is not None:
            raise ValueError(
                "give the tree in a `file` or inline as `tree`, not both; neither: distances of text features"
            )
        return self

    def fit(self, encoder: Encoder, task: Task) -> LokiClassifier:
        """A classifier over all names of the task, with `of` fitted on the observed ones."""
        observed = self._observed(task)
        names = [task.names[place] for place in observed]
        squared = self._squared(encoder, task)
        inner = self.of.fit(encoder, task.over(observed))
        return LokiClassifier(
            inner,
            squared,
            observed=torch.tensor(observed),
            names=task.names,
            adjust=self.adjust,
            about=self._about(inner, names, observed, task),
        )

    def transfer(self, encoder: Encoder, classifier: Any, task: Task) -> LokiClassifier:
        """What `of` makes of other names, all of them observed."""
        if self.observed is not None:
            raise NotImplementedError(
                "loki: `observed` names classes of the task that was learned, and none of other ones"
            )
        places = list(range(len(task.names)))
        inner = self.of.transfer(encoder, classifier.inner, task)
        return LokiClassifier(
            inner,
            self._squared(encoder, task),
            observed=torch.tensor(places),
            names=task.names,
            adjust=self.adjust,
            about=self._about(inner, list(task.names), places, task),
        )

    def _observed(self, task: Task) -> list[int]:
        """Places of the observed names among the task's, in the task's order."""
        if self.observed is None:
            return list(range(len(task.names)))
        wanted = read_names(self.observed) if isinstance(self.observed, str) else self.observed
        strange = [name for name in wanted if name not in task.names]
        if strange:
            raise ValueError(said_missing(strange, task.names, of=len(wanted), what="class", where="observed"))
        return [place for place, name in enumerate(task.names) if name in wanted]

    def _squared(self, encoder: Encoder, task: Task) -> Float[Tensor, "C C"]:
        if self.file is None and self.tree is None:
            features = ZeroShot().fit(encoder, task).weight.double()
            return torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist").square()
        tree = read_json(self.file) if self.file else self.tree
        return tree_distance(task.names, tree, where=self.file or "tree").square()

    def _about(self, inner: Any, names: Sequence[str], observed: Sequence[int], task: Task) -> dict[str, Any]:
        about: dict[str, Any] = {
            "adapter": "loki",
            "metric": "text" if self.file is None and self.tree is None else "tree",
            "observed": names,
            "selection": choices_of(NOTHING, [selection_of(inner)]),
        }
        believed = getattr(inner, "about", {}).get("pseudolabels")
        if believed is not None:
            about["pseudolabels"] = renumbered(believed, observed, classes=len(task.names))
        return about


class LokiClassifier:
    """A Classifier over C labels around one over some of them; `squared` holds d^2 of all pairs of labels."""

    def __init__(
        self,
        inner: Any,
        squared: Float[Tensor, "C C"],
        *,
        observed: Int[Tensor, "O"],
        names: Sequence[str],
        adjust: bool = True,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.inner, self.squared, self.observed, self.names = inner, squared.double(), observed, tuple(names)
        self.adjust, self.about = adjust, dict(about or {})

    @property
    def needs(self) -> str:
        return str(self.inner.needs)

    @property
    def head(self) -> str | None:
        """What scores, for records."""
        return getattr(self.inner, "head", None)

    def __call__(self, inputs: Any) -> Float[Tensor, "B C"]:
        """-sum_k p_k d(y, k)^2 in fp64; with `adjust: false` the inner logits, -inf where a label was not observed."""
        logits: Tensor = self.inner(inputs).double()
        if self.adjust:
            return -(logits.softmax(dim=1) @ self.squared[self.observed])
        whole = logits.new_full((len(logits), len(self.names)), -torch.inf)
        whole[:, self.observed] = logits
        return whole


def tree_distance(names: Sequence[str], tree: Any, *, where: str = "tree") -> Float[Tensor, "C C"]:
    """Edges on the shortest path between every two names, fp64; ValueError naming names that no path joins."""
    is_paths = isinstance(tree, Mapping)
    nodes, edges = _of_paths(parent_paths(tree, where=where)) if is_paths else _of_edges(tree, where)
    strange = [name for name in names if name not in nodes]
    if strange:
        raise ValueError(said_missing(strange, nodes, of=len(names), what="place", where=where))
    beside: dict[Any, list[Any]] = {}
    for one, other in edges:
        beside.setdefault(one, []).append(other)
        beside.setdefault(other, []).append(one)
    rows = []
    for name in names:
        hops = _hops(nodes[name], beside)
        apart = [other for other in names if nodes[other] not in hops]
        if apart:
            raise ValueError(
                f'{where}: no path joins "{name}" and "{apart[0]}"; a tree has one between every two names'
            )
        rows.append([hops[nodes[other]] for other in names])
    return torch.tensor(rows, dtype=torch.float64)


def _hops(start: Any, beside: Mapping[Any, Sequence[Any]]) -> dict[Any, int]:
    """Edges from `start` to every node that it reaches, breadth first."""
    found, waiting = {start: 0}, deque([start])
    while waiting:
        node = waiting.popleft()
        for other in beside.get(node, ()):
            if other not in found:
                found[other] = found[node] + 1
                waiting.append(other)
    return found


def _of_paths(tree: Mapping[str, tuple[str, ...]]) -> tuple[dict[str, Any], set[tuple[Any, Any]]]:
    """A node a path, so that equal names under two parents are two; a name means its own entry, else such a parent."""
    whole = {(*path, name)[:depth] for name, path in tree.items() for depth in range(1, len(path) + 2)}
    ends: dict[str, list[Any]] = {}
    for path in sorted(whole):
        ends.setdefault(path[-1], []).append(path)
    nodes: dict[str, Any] = {name: paths[0] for name, paths in ends.items() if len(paths) == 1}
    nodes |= {name: (*path, name) for name, path in tree.items()}
    return nodes, {(path[:-1], path) for path in whole}


def _of_edges(tree: Any, where: str) -> tuple[dict[str, Any], set[tuple[Any, Any]]]:
    """A node a name."""
    if not isinstance(tree, list | tuple):
        found = type(tree).__name__
        raise ValueError(f"{where}: wanted {{name: path of its parents}} or [[name, name], ...], got a {found}")
    for edge in tree:
        if not isinstance(edge, list | tuple) or len(edge) != 2 or not all(isinstance(end, str) for end in edge):
            raise ValueError(f"{where}: {edge!r} is no edge; an edge is a pair of names")
    return {name: name for edge in tree for name in edge}, {(one, other) for one, other in tree}
