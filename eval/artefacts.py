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
from safetensors.torch import save_file

from eval.benchmark import Outcome
from eval.data import Data
from eval.view import View
from vlp.data.decode import decode
from vlp.data.schema import write_atomic
from vlp.data.stages import image_bytes

THUMBNAIL = 160  # longest side


def write(folder: Path, view: View, data: Data, outcomes: Iterable[Outcome]) -> None:
    """Features, items, examples and thumbnails of one data set; files of an earlier run are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    places = view.places()
    items: dict[str, Any] = {
        "schema": 1,
        "dataset": view.dataset,
        "data": data.model_dump(mode="json"),
        "keys": [place.key for place in places],
        "shards": [place.shard for place in places],
        "indices": [place.index for place in places],
        "captions": [],
        "caption_image": [],
        "labels": None,
        "names": None,
    }
    tensors, shown = {"image": view.image.contiguous()}, set[int]()
    for outcome in outcomes:
        items |= outcome.items
        shown |= outcome.shown
        if outcome.text is not None:
            tensors["text"] = outcome.text.contiguous()
        for name, content in outcome.files.items():
            _write_json(folder / name, content)
    _write_json(folder / "items.json", items)
    _write_tensors(folder / "features.safetensors", tensors)
    _write_thumbnails(folder / "thumbnails", view, shown)


def _write_json(path: Path, content: Any) -> None:
    write_atomic(path, (json.dumps(content, ensure_ascii=False) + "\n").encode())


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    save_file(tensors, temporary)
    os.replace(temporary, path)


def _write_thumbnails(folder: Path, view: View, rows: Iterable[int]) -> None:
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.jpg"):
        old.unlink()
    for row in sorted(rows):
        sample = view.opened.records[view.encoded.kept[row]]
        small = Image.fromarray(decode(image_bytes(sample)).permute(1, 2, 0).numpy())
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=88)
        write_atomic(folder / f"{row}.jpg", buffer.getvalue())
