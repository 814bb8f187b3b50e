"""The augmentation of training: crops drawn by lot and what is done to them, drawn before a picture is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field
from torch import Tensor

from vlp.data import distort
from vlp.data.boxes import Box, draw_box, stored_box
from vlp.data.decode import Limits, decode, decode_shrunk, read_header
from vlp.data.transforms import Preprocess, pillow_resize
from vlp.registry import Part


class Augment(Part):
    """Random resized crop, then mirror, small moves, colours, blur, all drawn from the generator that is handed in.

    The defaults are open_clip's: a crop of 90 to 100 % of the area and nothing else. `crop: false` takes the evaluation
    transform instead, so that with nothing else on the picture is what evaluation sees. JPEGs much larger than the
    target are decoded at a fraction of their size (`shrink`): 50 dB or better, up to 2.6 times as fast.
    """

    crop: bool = True
    scale: tuple[float, float] = (0.9, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = Field(0.0, ge=0, le=1)  # captions that say left and right go wrong
    rotate: float = Field(0.0, ge=0, le=180)  # degrees either way
    translate: float = Field(0.0, ge=0, le=1)  # part of the side either way
    zoom: tuple[float, float] = (1.0, 1.0)
    jitter: tuple[float, float, float, float] | None = None  # brightness, contrast, saturation, hue
    jitter_prob: float = Field(0.8, ge=0, le=1)
    gray_prob: float = Field(0.0, ge=0, le=1)
    blur: tuple[float, float] | None = None  # standard deviation in pixels, from and to
    blur_prob: float = Field(0.5, ge=0, le=1)
    solarize_prob: float = Field(0.0, ge=0, le=1)
    shrink: float = Field(
        1.5, ge=0
    )  # decode JPEGs at 1/2, 1/4, 1/8 where the crop stays this many times the target; 0: never

    def apply(
        self, picture: Any, preprocess: Preprocess, rng: np.random.Generator, *, limits: Limits | None = None
    ) -> Tensor:
        """uint8 [3, H, W]; the same picture and generator state give the same result."""
        return augmented(picture, [(self, rng)], preprocess, limits=limits)[0]

    def box(self, height: int, width: int, rng: np.random.Generator) -> Box | None:
        """The crop of a picture of this size; None: the evaluation transform."""
        return draw_box(height, width, scale=self.scale, ratio=self.ratio, rng=rng) if self.crop else None

    def factor(self, box: Box | None, size: tuple[int, int]) -> int:
        """The largest fraction 1/f at which a JPEG may be decoded for this crop."""
        if box is None or not self.shrink:
            return 1
        room = min(box.height / size[0], box.width / size[1]) / self.shrink
        return max((f for f in (2, 4, 8) if f <= room), default=1)

    def distort(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """uint8 [3, H, W] of a crop of that size: everything but the crop."""
        if self.flip and rng.random() < self.flip:
            image = image.flip(-1)
        if self.rotate or self.translate or self.zoom != (1.0, 1.0):
            image = distort.move(image, degrees=self.rotate, shift=self.translate, zoom=self.zoom, rng=rng)
        if self.jitter is not None and rng.random() < self.jitter_prob:
            image = distort.jitter(image, self.jitter, rng)
        if self.gray_prob and rng.random() < self.gray_prob:
            image = distort.gray(image)
        if self.blur is not None and rng.random() < self.blur_prob:
            image = distort.blur(image, float(rng.uniform(*self.blur)))
        if self.solarize_prob and rng.random() < self.solarize_prob:
            image = distort.solarize(image)
        return image


class Views:
    """The views of one picture, drawn before it is decoded; calling it decodes once and cuts them out.

    `views`: an augmentation and its generator for each. `crop`: x0, y0, x1, y1 in parts of width and height, instead of
    the first one's random crop. The crops are drawn here where the header says the size (JPEG), so that the smallest
    scale which is safe for all of them is known, and else once the picture is decoded. BadSampleError for a picture
    whose header breaks a limit.
    """

    def __init__(
        self,
        picture: Any,
        views: Sequence[tuple[Augment, np.random.Generator]],
        preprocess: Preprocess,
        *,
        limits: Limits | None = None,
        crop: Sequence[float] | None = None,
    ) -> None:
        self.picture, self.views, self.preprocess = picture, views, preprocess
        self.limits, self.crop = limits or Limits(), crop
        coded = isinstance(picture, bytes) and not preprocess.exif
        self.header = read_header(picture, self.limits) if coded else None
        jpeg = self.header if self.header and self.header.format == "JPEG" else None
        self.boxes = self._draw(jpeg.height, jpeg.width) if jpeg else None

    def __call__(self) -> list[Tensor]:
        """One uint8 [3, H, W] for each view."""
        if self.boxes is None:
            crops = self._crops(self.preprocess.read(self.picture, self.limits, header=self.header))
        elif (factor := self._factor(self.boxes)) > 1:
            small = decode_shrunk(self.picture, factor)
            crops = [_cut_small(small, box, factor, self.preprocess) for box in self.boxes if box is not None]
        else:
            crops = self._crops(decode(self.picture, self.limits, header=self.header))
        return [augment.distort(image, rng) for (augment, rng), image in zip(self.views, crops)]

    def _draw(self, height: int, width: int) -> list[Box | None]:
        boxes = [augment.box(height, width, rng) for augment, rng in self.views]
        if self.crop is not None:
            boxes[0] = stored_box(self.crop, height, width)
        return boxes

    def _factor(self, boxes: Sequence[Box | None]) -> int:
        size = self.preprocess.size
        return min((augment.factor(box, size) for (augment, _), box in zip(self.views, boxes)), default=1)

    def _crops(self, whole: Tensor) -> list[Tensor]:
        boxes = self._draw(*whole.shape[-2:]) if self.boxes is None else self.boxes
        return [self.preprocess.fit(whole) if box is None else _cut(whole, box, self.preprocess) for box in boxes]


def augmented(
    picture: Any,
    views: Sequence[tuple[Augment, np.random.Generator]],
    preprocess: Preprocess,
    *,
    limits: Limits | None = None,
    crop: Sequence[float] | None = None,
) -> list[Tensor]:
    """One uint8 [3, H, W] for each augmentation and its generator, of a picture that is decoded once: see `Views`."""
    return Views(picture, views, preprocess, limits=limits, crop=crop)()


def _cut(image: Tensor, box: Box, preprocess: Preprocess) -> Tensor:
    part = image[:, box.top : box.top + box.height, box.left : box.left + box.width]
    return preprocess.resize(part, preprocess.size)


def _cut_small(small: Image.Image, box: Box, factor: int, preprocess: Preprocess) -> Tensor:
    """The crop of a picture decoded at 1/factor; its edges are not rounded to pixels: that would cost 7 to 10 dB."""
    top, left = box.top / factor, box.left / factor
    edges = (left, top, left + box.width / factor, top + box.height / factor)
    return pillow_resize(small, preprocess.size, preprocess.interpolation, edges)
