"""A user's own pictures as a suite: a folder with a folder for each class, or with captions beside the pictures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from eval.data import is_plain_folder
from eval.layout import CLASSES, is_layout
from eval.suite import Suite
from vlp.data.captions import CAPTION_COLUMNS
from vlp.data.sources import open_records

_MODEL_FILES = (
    "open_clip_config.json",
    "config.json",
    "config.yaml",
    "checkpoints",
    "model_index.json",
    "ensemble.json",
)
_WEIGHTS = ("model", "step-*", "*.safetensors", "*.bin", "*.pt")


def is_pictures(path: Path) -> bool:
    """Whether a folder holds pictures to measure on, in it or in folders in it, and is no model."""
    if not path.is_dir() or any((path / name).exists() for name in _MODEL_FILES):
        return False
    if is_layout(path, "test"):
        return True
    return is_plain_folder(path)


def is_model(path: Path) -> bool:
    """Whether a folder may be a model: it has a file that one has, be it broken; loading it says more."""
    return any(any(path.glob(pattern)) for pattern in (*_MODEL_FILES, *_WEIGHTS))


def suite_of_folder(path: Path) -> Suite:
    """Zero-shot classification where pictures lie in class folders, retrieval and health where they have captions.

    DataError says what is missing where neither can be told.
    """
    dataset = re.sub(r"[^A-Za-z0-9._-]+", "_", path.resolve().name).lstrip("._-") or "pictures"
    if is_layout(path, "test"):
        data: dict[str, Any] = {"path": str(path.resolve())}
        parts = [{"name": "zeroshot"}] if (path / CLASSES).is_file() else _of_captions(("txt", "caption"))
    else:
        data = {"name": "folder", "path": str(path.resolve())}
        records: Any = open_records(data)
        in_classes = records.layout == "classes"
        parts = [{"name": "zeroshot"}] if in_classes else _of_captions(_caption_fields(records))
    benchmarks = [{**part, "dataset": dataset, "data": data} for part in parts]
    return Suite.model_validate({"name": dataset, "benchmarks": benchmarks, "folder": str(path)})


def _of_captions(fields: tuple[str, ...]) -> list[dict[str, Any]]:
    return [{"name": name, "captions": {"fields": list(fields)}} for name in ("retrieval", "health")]


def _caption_fields(records: Any) -> tuple[str, ...]:
    if records.layout == "texts":
        return ("txt", "caption", "captions", "text")
    return CAPTION_COLUMNS
