"""What an adapter is given: the classes, and later the labelled samples it may learn from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A classification task: C class names and the sentences they are put into (`{}` or `{c}` marks the place)."""

    names: Sequence[str]
    templates: Sequence[str] = ("{}",)

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            raise ValueError(f"a classification task needs at least 2 class names, got {list(self.names)}")
        if not self.templates:
            raise ValueError('a classification task needs at least one template, such as "a photo of a {}."')

    @property
    def names_hash(self) -> str:
        return short_hash(self.names)

    @property
    def templates_hash(self) -> str:
        return short_hash(self.templates)


def short_hash(words: Sequence[str]) -> str:
    """16 hex digits that change when any word or their order changes."""
    return hashlib.sha256(json.dumps(list(words), ensure_ascii=False).encode()).hexdigest()[:16]
