"""What an evaluation leaves beside its record, for reports, search and people. The files are described in `suite`."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from eval.benchmark import Outcome
from eval.data import Data
from eval.view import View
from vlp.data.decode import decode
from vlp.data.fields import image_bytes
from vlp.data.schema import write_atomic

ITEMS, FEATURES = "items.json", "features.safetensors"
THUMBNAIL = 160  # longest side
_HALF = 2e-3  # features that went through the cache in half precision differ by less


def write(folder: Path, view: View, data: Data, outcomes: Iterable[Outcome]) -> None:
    """Features, items, examples and thumbnails of one data set, beside what other benchmarks left of the same pictures.

    Files about other pictures, whose rows would now mean something else, are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = view.places()
    rows = {
        "keys": [place.key for place in places],
        "shards": [place.shard for place in places],
        "indices": [place.index for place in places],
    }
    blank: dict[str, Any] = {"captions": [], "caption_image": [], "labels": None, "names": None}
    tensors, shown = {"image": view.image.contiguous()}, set[int]()
    earlier = _earlier(folder, rows)
    if earlier is None:
        _clear(folder)
    else:
        blank |= {name: earlier[name] for name in ("labels", "names")}
        if (text := _text_of(folder, view.image)) is not None:
            blank |= {name: earlier[name] for name in ("captions", "caption_image")}
            tensors["text"] = text
    skipped = [{"reason": s.reason, "shard": s.shard, "key": s.key, "detail": s.detail} for s in view.encoded.skips]
    facts = {"schema": 1, "dataset": view.dataset, "data": data.model_dump(mode="json"), "skipped": skipped}
    items = {**facts, **rows, **blank}
    for outcome in outcomes:
        items |= outcome.items
        shown |= outcome.shown
        if outcome.text is not None:
            tensors["text"] = outcome.text.contiguous()
        for name, content in outcome.files.items():
            _write_json(folder / name, content)
    _write_json(folder / ITEMS, items)
    _write_tensors(folder / FEATURES, tensors)
    _write_thumbnails(folder / "thumbnails", view, shown)


def _earlier(folder: Path, rows: dict[str, Any]) -> dict[str, Any] | None:
    """What was written of just these pictures before; None if nothing was."""
    try:
        found: dict[str, Any] = json.loads((folder / ITEMS).read_text(encoding="utf-8"))
        same = all(found[name] == places for name, places in rows.items())
        return found if same and found.keys() >= {"captions", "caption_image", "labels", "names"} else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _text_of(folder: Path, image: torch.Tensor) -> torch.Tensor | None:
    """Text features of an earlier benchmark, if these weights made them."""
    try:
        found = load_file(folder / FEATURES)
    except (OSError, SafetensorError):
        return None
    there = found.get("image")
    same = there is not None and there.shape == image.shape and torch.allclose(there, image, atol=_HALF)
    return found.get("text") if same else None


def _clear(folder: Path) -> None:
    for old in (*folder.glob("*.json"), *folder.glob("thumbnails/*.jpg")):
        old.unlink()


def _write_json(path: Path, content: Any) -> None:
    write_atomic(path, (json.dumps(content, ensure_ascii=False) + "\n").encode())


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    save_file(tensors, temporary)
    os.replace(temporary, path)


def _write_thumbnails(folder: Path, view: View, rows: Iterable[int]) -> None:
    folder.mkdir(exist_ok=True)
    for row in sorted(rows):
        if (folder / f"{row}.jpg").is_file():
            continue
        sample = view.opened.records[view.encoded.kept[row]]
        small = Image.fromarray(decode(image_bytes(sample)).permute(1, 2, 0).numpy())
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=88)
        write_atomic(folder / f"{row}.jpg", buffer.getvalue())
