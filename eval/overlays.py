"""Pictures with classes laid over them, for people to look at."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eval.masks import IGNORED
from eval.view import View
from vlp.pictures import read_picture
from vlp.report.heat import COLOURS, NOBODY

SIDE = 224  # longest side of an overlay
GAP = 4


def overlay(picture: Any, classes: Tensor, *, plain: int | None = None, strength: float = 0.6) -> Any:
    """The RGB picture (PIL) with each pixel towards the colour of its class [h, w]: `legend` names the colours.

    Ignored pixels are grey, and those of class `plain` (background) stay as they are.
    """
    shown = Image.fromarray(classes.to(torch.int32).numpy()).resize(picture.size, Image.Resampling.NEAREST)
    numbers = np.asarray(shown)
    colours = np.asarray(COLOURS, dtype=np.float64)[numbers % len(COLOURS)]
    colours[numbers == IGNORED] = NOBODY
    bare = np.zeros_like(numbers, dtype=bool) if plain is None else numbers == plain
    weight = np.where(bare, 0.0, strength)[..., None]
    mixed = (1 - weight) * np.asarray(picture.convert("RGB"), dtype=np.float64) + weight * colours
    return Image.fromarray(mixed.round().astype(np.uint8))


def legend(classes: Sequence[int], names: Sequence[str]) -> dict[str, str]:
    """Name to colour (#rrggbb) of these classes; after 12 classes colours come again."""
    colours = {number: COLOURS[number % len(COLOURS)] for number in sorted(set(classes) - {IGNORED})}
    return {names[number]: "#{:02x}{:02x}{:02x}".format(*colour) for number, colour in colours.items()}


def side_by_side(picture: Any, maps: Sequence[Tensor], *, plain: int | None = None) -> Any:
    """The picture (PIL) under each of these maps of classes [h, w], beside each other, longest side 224 each."""
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    sheet = Image.new("RGB", ((small.width + GAP) * len(maps) - GAP, small.height), (255, 255, 255))
    for number, classes in enumerate(maps):
        sheet.paste(overlay(small, classes, plain=plain), (number * (small.width + GAP), 0))
    return sheet


class Overlays:
    """Truth and prediction over some pictures, evenly spread over the data set and not chosen by result."""

    def __init__(self, view: View, names: Sequence[str], *, count: int, plain: int | None) -> None:
        self.view, self.names, self.plain = view, names, plain
        last = len(view.encoded.kept) - 1
        self.wanted = set(torch.linspace(0, last, min(count, last + 1)).round().long().tolist())
        self.made: list[dict[str, Any]] = []

    def add(self, row: int, truth: Tensor, predicted: Tensor) -> None:
        """Draws the picture of a row, true classes [h, w] on the left, if it is one of those shown."""
        if row not in self.wanted:
            return
        sample = self.view.opened.records[self.view.encoded.kept[row]]
        pixels = self.view.encoder.dual.transform.read(read_picture(sample))
        whole = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        right = (predicted == truth)[truth != IGNORED]
        self.made.append(
            {
                "row": row,
                "pixel_accuracy": float(right.double().mean()) if len(right) else None,
                "legend": legend(torch.cat([truth, predicted]).unique().tolist(), self.names),
                "png": _base64(side_by_side(whole, [truth, predicted], plain=self.plain)),
            }
        )


def _base64(picture: Any) -> str:
    """The picture as a PNG in base64, as reports read it."""
    data = io.BytesIO()
    picture.save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()
