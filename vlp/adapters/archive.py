"""A fitted classifier as two files: its tensors as safetensors, and what else it knows as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from vlp.adapters.classifier import ABOUT, SCHEMA, WEIGHTS
from vlp.untrusted import read_object, read_tensors


def write(folder: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Makes the folder, and both files in it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    text = json.dumps({"schema": SCHEMA, **facts}, indent=1)
    (folder / ABOUT).write_text(text + "\n", encoding="utf-8")


def read(folder: Path, *, kind: str, tensors: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts that `write` wrote; ValueError naming the folder if it holds no classifier of that kind."""
    try:
        facts = read_object(folder / ABOUT)
        found = read_tensors(folder / WEIGHTS)
    except ValueError as error:
        raise ValueError(f"{folder} holds no classifier ({ABOUT} and {WEIGHTS}): {error}") from None
    if facts.get("schema") != SCHEMA:
        raise ValueError(f"{folder / ABOUT}: schema {facts.get('schema')!r}; this version reads {SCHEMA}")
    if facts.get("kind") != kind or set(tensors) - set(found):
        raise ValueError(f"{folder}: a classifier of kind {facts.get('kind')!r}, and {kind!r} is read here")
    return found, facts
