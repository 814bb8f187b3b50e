"""Make an index of any source: one encode pass, then keys, captions and thumbnails of what could be read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save

from vlp.api import VLP
from vlp.data import open_records
from vlp.data.captions import Captions
from vlp.data.fields import Fields
from vlp.data.sources import as_source
from vlp.paths import holds_pictures, is_picture
from vlp.pictures import read_picture
from vlp.progress import progress
from vlp.report.thumbnail import thumbnail
from vlp.search.index import About, Index, SearchError
from vlp.types import BadSampleError, Sample

SIDE = 160
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


def build_index(
    model: VLP,
    source: Any,
    out: str | Path,
    *,
    batch_size: int = 64,
    workers: int = 0,
    dtype: Literal["fp32", "fp16"] = "fp32",
    captions: Captions | None = None,
    quiet: bool = False,
) -> Index:
    """The index in folder `out` of a source: shards (glob, folder), a folder of pictures, a CSV, or any source part.

    Pictures that cannot be read are left out and counted. An index that is there is replaced when the new one is whole.
    """
    out = Path(out)
    _refuse_other(out)
    samples = as_source(as_spec(source) if isinstance(source, str | Path) else source)
    records = open_records(samples)
    encoder = model.encoder_for(batch_size=batch_size, workers=workers, quiet=quiet)
    found = encoder.images(records)  # type: ignore[arg-type]
    if not found.kept:
        raise SearchError(f"{source}: none of its {len(records)} pictures could be read: {found.reasons()}")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    about = About(
        model=_portable(model.path, out),
        weights=model.weights,
        adapter=_portable(model.adapter, out) if model.adapter is not None else None,
        weights_hash=model.weights_hash,
        transform=repr(model.dual.transform),
        data=str(source),
        data_fingerprint=records.fingerprint,
        count=len(found.kept),
        width=found.features.shape[1],
        skips=found.reasons(),
    )
    features = found.features.to(torch.float16 if dtype == "fp16" else torch.float32).contiguous()
    (part / "features.safetensors").write_bytes(save({"image": features}))
    rows = progress(found.kept, total=len(found.kept), size=lambda _: 1, what="thumbnails", quiet=quiet)
    _write_items(part, (records[row] for row in rows), captions or samples.caption_stage() or Captions())
    (part / "index.json").write_text(about.model_dump_json(by_alias=True, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    os.replace(part, out)
    return Index.open(out, model=model)


def as_spec(source: str | Path) -> str | dict[str, Any]:
    """The source that a path means: shards, or a table, or a folder of pictures when there is no tar in it."""
    path = Path(source)
    if path.is_file() and is_picture(path):
        raise SearchError(f"{path} is a picture; vlp embed takes a folder, shards or a table")
    if path.suffix.lower() in _TABLES:
        return {"name": "csv", "path": str(path)}
    if path.is_dir() and not any(path.glob("*.tar")) and holds_pictures(path):
        return {"name": "folder", "path": str(path)}
    return str(source)


def _portable(model: str, out: Path) -> str:
    """A path on this disk as seen from the index, so that both may move together; a name stays a name."""
    return os.path.relpath(Path(model).resolve(), out.resolve()) if model and Path(model).exists() else model


def _refuse_other(out: Path) -> None:
    """Only an index, an empty folder or nothing may be replaced."""
    if out.exists() and not (out / "index.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise SearchError(f"{out} is there and is not an index; choose another --out, or remove it yourself")


def _write_items(folder: Path, samples: Iterable[Sample], captions: Captions) -> None:
    offset = 0
    with (folder / "items.jsonl").open("w", encoding="utf-8") as lines, (folder / "thumbs.bin").open("wb") as thumbs:
        for sample in samples:
            small = thumbnail(read_picture(sample), SIDE) or b""
            thumbs.write(small)
            item = {
                "key": sample.key,
                "shard": sample.shard,
                "index": sample.index,
                "caption": next(iter(_texts(sample, captions)), ""),
                "thumbnail": [offset, len(small)],
            }
            lines.write(json.dumps(item) + "\n")  # ASCII: keys may be bytes that are no text
            offset += len(small)
        if not offset:
            thumbs.write(b"\0")  # an empty file cannot be mapped


def _texts(sample: Sample, captions: Captions) -> Sequence[str]:
    """Its captions; a picture without one is found all the same."""
    try:
        return captions.texts(Fields(sample))
    except BadSampleError:
        return ()
