"""Fitted adapters on disk: a folder that says what it is, and of which model."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from vlp.adapters import ADAPTERS, CLASSIFIERS
from vlp.adapters.adapter import Adapter
from vlp.adapters.dense_task import DENSE_ADAPTERS, DenseAdapter
from vlp.adapters.provenance import Provenance, provenance_of, worst
from vlp.adapters.restricted import Restricted
from vlp.adapters.task import Task
from vlp.paths import holding, listed, refuse_url
from vlp.untrusted import read_object

FILE = "adapter.json"
SCHEMA = 1


class Saved(Adapter):
    """A classifier that was fitted before, from the folder that `vlp tune --out` wrote; nothing is learned.

    folder: from the working directory unless absolute. The task's names must be those it was fitted to, or some of
    them. `any_backbone` takes a classifier of stored features that do not say which weights made them.
    """

    folder: str
    any_backbone: bool = False

    def fit(self, encoder: Any, task: Task) -> Any:
        """The classifier, over the task's names; ValueError where it is of another model or of other classes."""
        found = load(Path(self.folder), encoder, any_backbone=self.any_backbone)
        if found.needs == "patches":
            raise ValueError(f"{self.folder}: a {kind_of(found)} scores patches, and here pictures are classified")
        return found if tuple(found.names) == tuple(task.names) else Restricted(found, task.names)

    def transfer(self, encoder: Any, classifier: Any, task: Task) -> Any:
        """What the adapter that was saved makes of other names; ValueError where it keeps too little for that."""
        folder = Path(self.folder)
        adapter: Adapter = ADAPTERS.build(read_about(folder).get("adapter"))
        return adapter.transfer(encoder, load(folder, encoder, any_backbone=self.any_backbone), task)

    def provenance(self) -> tuple[Provenance, ...]:
        """What adapter.json says of the fit."""
        return (read_provenance(Path(self.folder)),)


def save(
    classifier: Any,
    folder: Path,
    *,
    adapter: Adapter | DenseAdapter,
    encoder: Any,
    provenance: Provenance | None = None,
) -> None:
    """Writes the classifier's own files and adapter.json: kind, hash of the weights, classes, settings, selection.

    provenance: what it was fitted to; None: the worst that it may have been.
    """
    kind = kind_of(classifier)
    classifier.save(folder)
    selection = classifier.about.get("selection", {"split": "none"})
    fitted = worst(adapter, selection, classifier.names) if provenance is None else provenance
    about = {
        "schema": SCHEMA,
        "kind": kind,
        "weights_hash": encoder.weights_hash,
        "needs": classifier.needs,
        "classes": list(classifier.names),
        "adapter": (ADAPTERS if isinstance(adapter, Adapter) else DENSE_ADAPTERS).dump(adapter),
        "selection": selection,
        **fitted.facts(),
    }
    text = json.dumps(about, indent=1, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def kind_of(classifier: Any) -> str:
    """The name in CLASSIFIERS of the class whose `save` it has; ValueError for one that cannot be saved."""
    cls = type(classifier)
    kinds = {target: kind for kind, target in CLASSIFIERS.entries.items()}
    for known in cls.__mro__:
        kind = kinds.get(f"{known.__module__}:{known.__qualname__}")
        if kind is not None and cls.save is getattr(known, "save", None):
            return kind
    raise ValueError(f"a {cls.__name__} cannot be saved: it is made again from its settings, which the record holds")


def load(folder: Path, encoder: Any = None, *, any_backbone: bool = False) -> Any:
    """The classifier in the folder; ValueError if there is none, or if it was fitted on another model than `encoder`.

    Classifiers that run towers need the encoder.
    """
    about = read_about(folder)
    if encoder is not None:
        _check_backbone(folder, about["weights_hash"], encoder.weights_hash, any_backbone=any_backbone)
    try:
        cls = CLASSIFIERS.resolve(about["kind"])
    except ValueError as error:
        raise ValueError(f"{folder / FILE}: {error}") from None
    runs_towers = "encoder" in inspect.signature(cls.load).parameters
    if runs_towers and encoder is None:
        raise ValueError(f"{folder}: a {about['kind']} runs the model's towers; give the encoder")
    try:
        return cls.load(folder, encoder=encoder) if runs_towers else cls.load(folder)
    except (LookupError, TypeError, AttributeError, RuntimeError) as error:  # a file without what its kind has
        detail = f"{type(error).__name__}: {error}"
        raise ValueError(f"{folder}: not what `vlp tune --out` writes of a {about['kind']}: {detail}") from error


def read_about(folder: Path) -> dict[str, Any]:
    """What adapter.json says; ValueError naming the folder if it holds no fitted adapter."""
    refuse_url(folder)
    if not (folder / FILE).exists() and (inner := holding(folder, FILE)):
        raise ValueError(f"{folder} holds {listed(inner)}: give one, such as {folder / inner[0]}")
    try:
        about = read_object(folder / FILE)
    except ValueError as error:
        raise ValueError(f"{folder} holds no fitted adapter ({FILE}): {error}; `vlp tune --out` writes one") from None
    if about.get("schema") != SCHEMA:
        raise ValueError(f"{folder / FILE}: schema {about.get('schema')!r}; this version reads {SCHEMA}")
    if not isinstance(about.get("kind"), str) or "weights_hash" not in about:
        raise ValueError(f"{folder / FILE}: has no kind or no weights_hash; `vlp tune --out` writes both")
    return about


def read_provenance(folder: Path) -> Provenance:
    """What the classifier in the folder was fitted to; ValueError naming the file where it does not say."""
    return provenance_of(read_about(folder), where=str(folder / FILE))


def _check_backbone(folder: Path, fitted: str | None, here: str | None, *, any_backbone: bool) -> None:
    if fitted == here:
        return
    if fitted is None or here is None:
        if any_backbone:
            return
        which = "it was fitted on stored features" if fitted is None else "the stored features here"
        raise ValueError(
            f"{folder}: {which} that do not say which weights made them; put weights_hash into classes.npz, or set "
            "any_backbone: true if you know that they are of this model"
        )
    raise ValueError(
        f"{folder}: fitted on a model whose weights have the hash {fitted}, and this one's have {here}; features of "
        "different weights do not compare: use that model, or fit again on this one"
    )
