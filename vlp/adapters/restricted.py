"""A classifier over some of the names that it knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from vlp.registry import nearest


class Restricted:
    """The logits of a classifier for these of its names, in this order; ValueError for a name that it does not know."""

    def __init__(self, inner: Any, names: Sequence[str]) -> None:
        places = {name: place for place, name in enumerate(inner.names)}
        if len(places) < len(inner.names):
            raise ValueError("the fitted classes have names that repeat, so that they cannot be told apart by name")
        if unknown := [name for name in names if name not in places]:
            more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
            hint = nearest(unknown[0], inner.names)
            hint = hint if hint.startswith("; did") else f"; it knows {len(places)} others"
            raise ValueError(f'the classifier was not fitted to class "{unknown[0]}"{more}{hint}')
        self.inner, self.names = inner, tuple(names)
        self.places = [places[name] for name in names]
        self.about = {**inner.about, "of": len(inner.names)}

    @property
    def needs(self) -> str:
        """What of a picture the classifier needs."""
        return str(self.inner.needs)

    @property
    def head(self) -> str | None:
        """What scores, for records."""
        return getattr(self.inner, "head", None)

    def __call__(self, inputs: Any) -> Float[Tensor, "B C"]:
        """Its logits, of these names."""
        logits: Tensor = self.inner(inputs)[:, self.places]
        return logits
