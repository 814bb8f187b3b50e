"""Small shards for tests: coloured squares whose captions say colour and place."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from data_tools.write import Record, ShardWriter

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (40, 40, 220), "yellow": (230, 220, 40)}
PLACES = {"top left": (0, 0), "top right": (0, 1), "bottom left": (1, 0), "bottom right": (1, 1)}


def picture(index: int, *, size: int = 32) -> tuple[bytes, str]:
    """JPEG bytes and caption number `index`."""
    rng = np.random.default_rng(index)
    colour, place = list(COLOURS)[index % 4], list(PLACES)[index // 4 % 4]
    row, column = PLACES[place]
    pixels = rng.integers(90, 120, (size, size, 3), dtype=np.uint8)
    half = size // 2
    pixels[row * half : (row + 1) * half, column * half : (column + 1) * half] = COLOURS[colour]
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=90)
    extra = " on grey" if index % 3 else ""
    return data.getvalue(), f"a {colour} square at the {place}{extra}, number {index}"


def make_shards(
    folder: Path, *, samples: int = 48, shards: int = 3, size: int = 32, broken: Mapping[int, Mapping[str, bytes]] = {}
) -> str:
    """Write `samples` pairs into `shards` tars and return their glob; `broken` replaces members by sample number."""
    folder.mkdir(parents=True, exist_ok=True)
    bounds = np.linspace(0, samples, shards + 1).astype(int)
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        with ShardWriter(folder / f"{number:05d}.tar") as writer:
            for index in range(int(start), int(stop)):
                jpg, caption = picture(index, size=size)
                members = {"jpg": jpg, "json": json.dumps({"caption": caption}).encode()}
                writer.write(Record(f"{index:06d}", {**members, **broken.get(index, {})}))
    return str(folder / "*.tar")
