"""Pictures with numbers of their patches laid over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

# from black over purple and orange to light yellow, ever lighter, so that it also reads in grey
_STOPS = np.array(
    [(0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)], dtype=np.float64
)
COLOURS = (
    (66, 133, 244), (234, 88, 12), (22, 163, 74), (192, 38, 211), (202, 138, 4), (220, 38, 38),
    (8, 145, 178), (124, 58, 237), (101, 163, 13), (219, 39, 119), (120, 83, 60), (13, 148, 136),
)  # fmt: skip
NOBODY = (150, 150, 150)
_PICTURE = 0.3  # share of the picture that shines through


def heat(picture: Any, values: Sequence[float], grid: tuple[int, int], *, side: int) -> Any:
    """The picture in grey under the values of its patches, the lowest dark and the highest light."""
    numbers = np.asarray(values, dtype=np.float64).reshape(grid)
    span = numbers.max() - numbers.min()
    place = (numbers - numbers.min()) / span if span > 0 else np.zeros(grid)
    return _over(picture, _colours(place), side=side)


def regions(picture: Any, colours: Sequence[tuple[int, int, int]], grid: tuple[int, int], *, side: int) -> Any:
    """The picture in grey, each patch in the colour of its own."""
    return _over(picture, np.asarray(colours, dtype=np.float64).reshape(*grid, 3), side=side)


def enlarged(picture: Any, *, side: int) -> Any:
    """The RGB picture with its longer side at `side`."""
    from PIL import Image

    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def scale_bar(width: int, height: int) -> Any:
    """The colours of `heat` from the lowest to the highest."""
    from PIL import Image

    line = _colours(np.linspace(0, 1, width)[None])
    return Image.fromarray(np.repeat(line, height, axis=0).round().astype(np.uint8))


def _colours(place: Any) -> Any:
    """[..., 3] of numbers in 0..1."""
    at = np.linspace(0, 1, len(_STOPS))
    return np.stack([np.interp(place, at, _STOPS[:, channel]) for channel in range(3)], axis=-1)


def _over(picture: Any, colours: Any, *, side: int) -> Any:
    from PIL import Image

    large = enlarged(picture, side=side)
    grey = np.asarray(large.convert("L"), dtype=np.float64)[..., None]
    # patches keep hard edges: between them nothing was measured
    patches = Image.fromarray(colours.round().astype(np.uint8)).resize(large.size, Image.Resampling.NEAREST)
    mixed = _PICTURE * grey + (1 - _PICTURE) * np.asarray(patches, dtype=np.float64)
    return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))
