"""What a fitted classifier learned from, so that whoever measures it later can say so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from vlp.adapters import ADAPTERS
from vlp.adapters.adapter import inside
from vlp.registry import Part

UNKNOWN = "unknown"
KEYS = ("transductive", "leaky", "labelled", "shots")


class Provenance(NamedTuple):
    """What adapter.json keeps of a fit, as the record of that fit says it.

    transductive: it saw the pictures that it was measured on, without labels. leaky: it was chosen by their labels.
    labelled: pictures of each class with their label: a number, "all", "none" or "unknown"; shots: the number.
    classes: those that it knows.
    """

    transductive: bool
    leaky: bool
    labelled: str = UNKNOWN
    shots: int | None = None
    classes: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """The keys of adapter.json; classes stand there already."""
        return {name: getattr(self, name) for name in KEYS}


def worst(adapter: Part, selection: Mapping[str, Any], classes: Iterable[str]) -> Provenance:
    """The worst that a fit by this adapter may have been, where nobody wrote down what it was.

    Whether unlabelled pictures were those that were measured is not known of one that learns from such, so they were.
    """
    parts = list(inside(adapter))
    return Provenance(
        transductive=any(part.transductive or "unlabelled" in part.wants for part in parts),
        leaky=any(part.leaky for part in parts) or selection.get("split") == "test",
        classes=tuple(classes),
    )


def provenance_of(about: Mapping[str, Any], *, where: str) -> Provenance:
    """What adapter.json says, or of a file before these keys the worst it may have been; ValueError for neither."""
    classes, selection = about.get("classes"), about.get("selection", {})
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"{where}: has no classes; `vlp tune --out` writes them")
    if not any(name in about for name in KEYS):
        try:
            adapter = ADAPTERS.build(about.get("adapter"))
        except ValueError as error:
            raise ValueError(f"{where}: adapter: {error}") from None
        return worst(adapter, selection if isinstance(selection, dict) else {}, classes)
    wanted = {"transductive": (bool,), "leaky": (bool,), "labelled": (str,), "shots": (int, type(None))}
    for name, kinds in wanted.items():
        if name not in about or type(about[name]) not in kinds:
            raise ValueError(f"{where}: {name} is {about.get(name)!r}, which `vlp tune --out` does not write")
    return Provenance(**{name: about[name] for name in KEYS}, classes=tuple(classes))
