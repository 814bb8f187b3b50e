"""How a model that sees pictures of one size sees a whole picture, so that every pixel of a mask has a score.

The picture is brought to a canvas on which windows of the model's size lie, evenly spread and overlapping. Scores of
patches are interpolated to the pixels of their window, averaged where windows overlap, and interpolated to the mask.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from eval.masks import Mask, Masks
from eval.view import View
from vlp.embed import Encoder
from vlp.models.dense import DenseTower
from vlp.pictures import read_picture
from vlp.progress import progress
from vlp.types import BadSampleError

Resize = Literal["slide", "squash"]
Size = tuple[int, int]  # height, width


class Layout(NamedTuple):
    """Windows on a canvas by their upper left corners: top, left."""

    canvas: Size
    corners: tuple[Size, ...]


def layout(shape: Size, window: Size, *, resize: Resize, overlap: float = 1 / 3, zoom: float = 1.0) -> Layout:
    """The windows that cover a picture of this shape.

    `slide`: the picture keeps its ratio and just covers `zoom` windows; mmsegmentation's whole-picture inference, which
    MaskCLIP uses with an overlap of a third. `squash`: it is brought to the window's ratio, one window at zoom 1.
    """
    if resize == "squash":
        canvas = (round(window[0] * zoom), round(window[1] * zoom))
    else:
        ratio = zoom * max(window[0] / shape[0], window[1] / shape[1])
        canvas = (max(window[0], round(shape[0] * ratio)), max(window[1], round(shape[1] * ratio)))
    down, across = (_starts(whole, part, overlap) for whole, part in zip(canvas, window))
    return Layout(canvas, tuple((top, left) for top in down for left in across))


def _starts(whole: int, part: int, overlap: float) -> list[int]:
    steps = math.ceil((whole - part) / max(1, round(part * (1 - overlap))))
    return [round(step * (whole - part) / steps) for step in range(steps + 1)] if steps else [0]


def assembled(scores: Tensor, found: Layout, window: Size, shape: Size) -> Tensor:
    """Scores [C, h, w] of the pixels of a mask of this shape, from those [n, C, rows, columns] of its windows."""
    if len(scores) == 1:
        return _bilinear(scores, shape)[0]
    canvas, count = scores.new_zeros(scores.shape[1], *found.canvas), scores.new_zeros(found.canvas)
    for one, (top, left) in zip(scores, found.corners):
        part = (slice(top, top + window[0]), slice(left, left + window[1]))
        canvas[(slice(None), *part)] += _bilinear(one[None], window)[0]
        count[part] += 1
    return _bilinear((canvas / count)[None], shape)[0]


def _bilinear(scores: Tensor, size: Size) -> Tensor:
    return interpolate(scores, size=size, mode="bilinear", align_corners=False)


class Windows:
    """The windows of some records one after the other, uint8 [3, H, W], for `Encoder.image_tokens`.

    wanted: of each record its place, the shape of its mask, and its layout. A picture that has not the ratio of its
    mask is a bad sample: the two do not belong together, or one of them is turned.
    """

    def __init__(self, records: Any, transform: Any, wanted: Sequence[tuple[int, Size, Layout]]) -> None:
        self.records, self.transform, self.wanted = records, transform, wanted
        self.items = [(number, corner) for number, (_, _, found) in enumerate(wanted) for corner in found.corners]
        self._last: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Tensor:
        number, (top, left) = self.items[index]
        if self._last is None or self._last[0] != number:  # the windows of a picture come in a row
            self._last = number, self._resized(*self.wanted[number])
        height, width = self.transform.size
        return self._last[1][:, top : top + height, left : left + width].contiguous()

    def _resized(self, place: int, shape: Size, found: Layout) -> Tensor:
        image = self.transform.read(read_picture(self.records[place]))
        height, width = image.shape[-2:]
        if abs(height * shape[1] / width - shape[0]) > max(1.5, 0.02 * shape[0]):
            raise BadSampleError("mask_shape", f"picture {height} x {width}, mask {shape[0]} x {shape[1]}")
        resized: Tensor = self.transform.resize(image, found.canvas)
        return resized


class Seen(NamedTuple):
    """A picture's row, its mask, and the tokens of its windows."""

    row: int
    mask: Mask
    layout: Layout
    tokens: Tensor  # [windows, P, W], fp16: what the tower gives


def dense_encoder(encoder: Encoder, tower: DenseTower) -> Encoder:
    """An encoder of dense features that runs as `encoder` does."""
    return Encoder(
        tower,
        device=encoder.device,
        batch_size=encoder.batch_size,
        workers=encoder.workers,
        precision=encoder.precision,
        token_gb=encoder.token_gb,
        quiet=True,
    )


def look(
    view: View,
    tower: DenseTower,
    masks: Masks,
    arrange: Callable[[Size], Layout],
    skips: Counter[str],
    *,
    batch: int = 64,
) -> Iterator[Seen]:
    """Every picture with its mask, `batch` pictures held at a time; what cannot be used is counted in `skips`."""
    encoder, kept = dense_encoder(view.encoder, tower), view.encoded.kept
    blocks = [range(start, min(start + batch, len(kept))) for start in range(0, len(kept), batch)]
    told = progress(blocks, total=len(kept), size=len, what="masks", quiet=view.encoder.quiet)
    for block in told:
        found: dict[int, tuple[Mask, Layout]] = {}
        for row in block:
            try:
                mask = masks.read(view, row)
            except BadSampleError as error:
                skips[error.reason] += 1
            else:
                found[row] = mask, arrange(mask.shape)
        if found:
            windows = Windows(
                view.opened.records,
                tower.transform,
                [(kept[row], mask.shape, placed) for row, (mask, placed) in found.items()],
            )
            yield from _parted(encoder, windows, found, skips)


def _parted(
    encoder: Encoder, windows: Windows, found: dict[int, tuple[Mask, Layout]], skips: Counter[str]
) -> Iterator[Seen]:
    """The pictures of which every window could be read."""
    made = encoder.image_tokens(windows, reduce=False)
    at = {index: place for place, index in enumerate(made.kept)}
    reasons = {int(skip.key): skip.reason for skip in made.skips}  # a window has no key but its number
    start = 0
    for row, (mask, placed) in found.items():
        mine = range(start, start + len(placed.corners))
        start = mine.stop
        if lost := [index for index in mine if index not in at]:
            skips[reasons[lost[0]]] += 1
            continue
        yield Seen(row, mask, placed, made.tokens[torch.tensor([at[index] for index in mine])])
