"""Small tars for the tests of vlp.data: written by `tarfile`, damaged by hand."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlp.data import index as shard_index
from vlp.data.schema import DatasetManifest, shard_entry, write_manifest


def picture(number: int, side: int = 24) -> bytes:
    """A PNG whose pixels depend on `number`."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], *, format: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar of (name, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            add(tar, name, content)
    return path


def samples(start: int, stop: int) -> list[tuple[str, bytes]]:
    """Members of samples start..stop: a picture and a json with caption and group."""
    members = []
    for i in range(start, stop):
        text = json.dumps({"caption": f"picture number {i}", "book": f"book {i % 7}"})
        members += [(f"{i:06d}.png", picture(i)), (f"{i:06d}.json", text.encode())]
    return members


def npy(array: Any) -> bytes:
    """An array as a `.npy` member."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(**arrays: Any) -> bytes:
    """Arrays as a `.npz` member."""
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def write_shards(folder: Path, sizes: Iterable[int]) -> list[Path]:
    """Shards of the given sizes, keys going on from one to the next."""
    paths, start = [], 0
    for number, size in enumerate(sizes):
        paths.append(write_tar(folder / f"shard-{number:03d}.tar", samples(start, start + size)))
        start += size
    return paths


def describe(folder: Path) -> None:
    """`dataset.json` of what lies in a folder now, without side indexes."""
    paths = sorted(folder.glob("*.tar"))
    entries = tuple(shard_entry(path, samples=len(shard_index.build(path))) for path in paths)
    write_manifest(folder, DatasetManifest(name="set", shards=entries, made_by={"tool": "test"}))


class Letters:
    """A tokenizer of bytes: start, letters, end."""

    context, vocab_size, pad, fingerprint = 32, 258, 0, "letters"

    def encode(self, texts: Iterable[str]) -> list[list[int]]:
        return [[256, *text.encode()[: self.context - 2], 257] for text in texts]

    def lengths(self, texts: Iterable[str]) -> list[int]:
        return [len(text.encode()) + 2 for text in texts]
