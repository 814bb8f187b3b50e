"""Which labelled pictures a method may see: few-shot draws and held-out parts, by class and seed.

A class's pictures stand in the order of a hash of seed and key. So a draw follows from seed and keys alone: not from
the order of shards, from the other classes, or from a library's random numbers. Draws of one seed are nested: that of
4 shots begins with that of 2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

HELD = 4  # validation pictures of a class, at most (Zhou et al. 2022, CoOp: min(shots, 4))

Keys = dict[str, tuple[str, ...]]  # class -> keys of its pictures


class Draw(BaseModel):
    """Keys of the pictures to learn from and to choose on, by class, in the order they were drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    shots: int = Field(ge=1)
    train: Keys
    validation: Keys = {}

    @property
    def short(self) -> int:
        """Number of classes that have fewer pictures than shots."""
        return sum(len(keys) < self.shots for keys in self.train.values())

    def only(self, names: Collection[str]) -> Draw:
        """Of these classes alone."""
        parts = {part: {n: k for n, k in getattr(self, part).items() if n in names} for part in ("train", "validation")}
        return self.model_copy(update=parts)

    @property
    def lacks(self) -> str:
        """In words how many classes have fewer pictures than shots; empty where all have as many."""
        if not self.short:
            return ""
        fewest = min(map(len, self.train.values()))
        said = f"{self.short} of {len(self.train)} classes have fewer than {self.shots} pictures (fewest: {fewest})"
        return said if any(self.validation.values()) else f"{said}; none is left to choose on"


class Draws(BaseModel):
    """The content of a file of draws, so that every method learns from the same pictures."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_: Literal[1] = Field(default=1, alias="schema")
    draws: tuple[Draw, ...]


def by_class(label: Sequence[str], keys: Sequence[str], *, seed: int) -> Keys:
    """All keys of each class in the order of the seed; classes in order of their names."""
    found: dict[str, list[str]] = {name: [] for name in sorted(set(label))}
    for name, key in zip(label, keys, strict=True):
        found[name].append(key)
    return {name: tuple(sorted(own, key=lambda key: _place(seed, key))) for name, own in found.items()}


def draw(
    label: Sequence[str],
    keys: Sequence[str],
    *,
    shots: Sequence[int],
    seeds: Sequence[int],
    validation: tuple[Sequence[str], Sequence[str]] | None = None,
) -> Draws:
    """A draw for each seed and number of shots; keys must be unique.

    Validation pictures, min(shots, 4) a class, come from `validation` (labels, keys); else from the pictures that
    follow the shots, so that a class with no more pictures than shots has none.
    """
    found = []
    for seed in seeds:
        train = by_class(label, keys, seed=seed)
        own = by_class(*validation, seed=seed) if validation is not None else None
        for count in shots:
            held = own if own is not None else {name: row[count:] for name, row in train.items()}
            found.append(
                Draw(
                    seed=seed,
                    shots=count,
                    train={name: row[:count] for name, row in train.items()},
                    validation={name: row[: min(count, HELD)] for name, row in held.items()},
                )
            )
    return Draws(draws=tuple(found))


def held_out(label: Sequence[str], keys: Sequence[str], *, fraction: float, seed: int) -> set[str]:
    """Keys of about `fraction` of each class; at least one, but never the last picture of a class."""
    held: set[str] = set()
    for own in by_class(label, keys, seed=seed).values():
        held.update(own[: min(max(1, round(fraction * len(own))), len(own) - 1)])
    return held


def read_draws(path: Path) -> Draws:
    """The draws in a file; ValueError naming it and what is wrong there."""
    try:
        return Draws.model_validate_json(path.read_bytes())
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:3])
        raise ValueError(f"{path}: not a file of draws (schema 1): {faults}") from None


def rows_of(chosen: Mapping[str, Sequence[str]], label: Sequence[str], keys: Sequence[str]) -> list[int]:
    """Positions of the chosen keys; ValueError naming class and key that are not there, or have another class."""
    places = {key: row for row, key in enumerate(keys)}
    found = []
    for name, own in chosen.items():
        for key in own:
            said = f'class "{name}": picture "{key}" of the draw is'
            if key not in places:
                raise ValueError(f"{said} not in the data; draw again from these")
            if label[places[key]] != name:
                raise ValueError(f'{said} of class "{label[places[key]]}" here; draw again from these data')
            found.append(places[key])
    return found


def _place(seed: int, key: str) -> tuple[bytes, str]:
    return hashlib.sha256(f"{seed}\0{key}".encode()).digest(), key
