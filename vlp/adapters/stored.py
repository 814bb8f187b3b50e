"""The backbone of features that were computed elsewhere: a temperature, and no tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

HINT = "give a checkpoint in place of stored features"


class Stored:
    """Stands where an Encoder does; whatever asks it for a tower is told that there is none."""

    def __init__(self, *, scale: float = 100.0, weights_hash: str | None = None) -> None:
        self.scale, self.weights_hash = scale, weights_hash

    def texts(self, texts: Sequence[str]) -> NoReturn:
        """Never: ValueError."""
        raise ValueError(f"stored features have no text tower to encode {len(texts)} texts with; {HINT}")

    def images(self, pictures: Sequence[object]) -> NoReturn:
        """Never: ValueError."""
        raise ValueError(f"stored features have no image tower to encode {len(pictures)} pictures with; {HINT}")

    @property
    def dual(self) -> NoReturn:
        raise ValueError(f"stored features have no towers, which this adapter runs; {HINT}")
