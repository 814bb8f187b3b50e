"""Pictures to the model's size: open_clip's evaluation transform on uint8, and the augmentation of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vlp.data import distort
from vlp.data.boxes import Box, draw_box, stored_box
from vlp.data.decode import Limits, check_size, decode, decode_shrunk, from_pil, read_header
from vlp.registry import Part

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_MODES = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}
# Where torch resizes uint8 as such; elsewhere torchvision goes through floats.
_FAST = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


class Preprocess(Part):
    """The evaluation transform of a model: open_clip's `image_transform` to within 1 of 255, left as uint8.

    Of 100,000 values about one is off by 2 (weights of 16 bits). Pillow from 13 on swaps its two passes for tall or
    unevenly scaled pictures, and so differs from older Pillows and from this by a few; `resizer: pillow` follows it.
    Palette, alpha and 16-bit pictures are made RGB before they are resized, where open_clip does so after.
    """

    size: tuple[int, int] = (224, 224)  # height, width; one number stands for both
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    fill: int = Field(0, ge=0, le=255)  # around the picture with resize_mode "longest"
    exif: bool = False  # turn pictures as their EXIF says; open_clip does not
    resizer: Literal["torch", "pillow"] = "torch"  # pillow: open_clip's pixels bit for bit, at about half the speed

    @field_validator("size", mode="before")
    @classmethod
    def _both_sides(cls, value: Any) -> Any:
        return (value, value) if isinstance(value, int) else value

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _three_channels(cls, value: Any) -> Any:
        return (value,) * 3 if isinstance(value, int | float) else value

    @classmethod
    def from_open_clip(cls, cfg: Mapping[str, Any], size: int | tuple[int, int] | None = None) -> Preprocess:
        """From open_clip's `preprocess_cfg`; `size` (an int, or height and width) goes before `cfg["size"]`."""
        size = size if size is not None else cfg.get("size", 224)
        known = {key: cfg[key] for key in ("mean", "std", "interpolation", "resize_mode") if cfg.get(key) is not None}
        if known.get("interpolation") == "random":  # open_clip: random in training, bicubic in evaluation
            known["interpolation"] = "bicubic"
        return cls.model_validate({"size": size, "fill": cfg.get("fill_color") or 0, **known})

    def to_open_clip(self) -> dict[str, Any]:
        """open_clip's `preprocess_cfg`."""
        return {
            "size": list(self.size),
            "mode": "RGB",
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "resize_mode": self.resize_mode,
            "fill_color": self.fill,
        }

    def __call__(self, picture: Any, limits: Limits | None = None) -> Tensor:
        """uint8 [3, H, W] from bytes, a file's Path, a Pillow image, or uint8 [3, h, w]."""
        return self.fit(self.read(picture, limits))

    def read(self, picture: Any, limits: Limits | None = None) -> Tensor:
        """uint8 [3, h, w] at the picture's own size."""
        if isinstance(picture, Path):
            picture = picture.read_bytes()
        if isinstance(picture, bytes | bytearray | memoryview):
            return decode(bytes(picture), limits, exif=self.exif)
        if isinstance(picture, Image.Image):
            check_size(picture.width, picture.height, limits or Limits())
            return from_pil(picture)
        if isinstance(picture, Tensor) and picture.dtype == torch.uint8 and picture.ndim == 3 and len(picture) == 3:
            check_size(picture.shape[2], picture.shape[1], limits or Limits())
            return picture
        raise TypeError(f"a picture is bytes, a Path, a PIL image or uint8 [3, h, w], not {_kind(picture)}")

    def fit(self, image: Tensor) -> Tensor:
        """uint8 [3, H, W] of uint8 [3, h, w]."""
        height, width = image.shape[-2:]
        if self.resize_mode == "squash":
            return self.resize(image, self.size).contiguous()
        if self.resize_mode == "longest":
            image = self.resize(image, _keep_ratio(height, width, self.size, longest=True))
            return _center(image, self.size, fill=self.fill)
        if self.size[0] == self.size[1]:
            return _center(self.resize(image, _shortest(height, width, self.size[0])), self.size, fill=0)
        target = _keep_ratio(height, width, self.size, longest=False)  # open_clip: bicubic here, whatever is set
        return _center(self.resize(image, target, interpolation="bicubic"), self.size, fill=0)

    def resize(self, image: Tensor, size: tuple[int, int], *, interpolation: str | None = None) -> Tensor:
        """Antialiased resize of uint8."""
        mode = interpolation or self.interpolation
        if self.resizer == "pillow":
            return _pillow_resize(image, size, mode)
        if _FAST and not image.is_cuda:  # what F.resize calls in the end; its own checks are a tenth of the time
            return interpolate(image[None], size, mode=mode, align_corners=False, antialias=True)[0]
        resized: Tensor = F.resize(image, list(size), interpolation=_MODES[mode], antialias=True)
        return resized

    def normalize(self, image: Tensor) -> Tensor:
        """float32 (x / 255 - mean) / std of uint8 [..., 3, H, W], on its device."""
        mean = torch.tensor(self.mean, device=image.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=image.device).view(3, 1, 1)
        return normalized(image, mean, std)


def normalized(image: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """float32 (x / 255 - mean) / std of uint8 [..., 3, H, W]; mean and std are [3, 1, 1].

    On a CPU picture by picture: one stays in the cache for all four passes, a batch does not (five times as fast).
    """
    result = torch.empty(image.shape, dtype=torch.float32, device=image.device)
    one = (-1, *image.shape[-3:])
    parts = zip(image.reshape(one), result.view(one)) if image.device.type == "cpu" else [(image, result)]
    for source, target in parts:
        target.copy_(source).div_(255).sub_(mean).div_(std)
    return result


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
        return image.contiguous()


def augmented(
    picture: Any,
    views: Sequence[tuple[Augment, np.random.Generator]],
    preprocess: Preprocess,
    *,
    limits: Limits | None = None,
    crop: Sequence[float] | None = None,
) -> list[Tensor]:
    """One uint8 [3, H, W] for each augmentation and its generator, of a picture that is decoded once.

    The crops are drawn before a JPEG is decoded, so that the smallest scale which is safe for all of them is known.
    `crop`: x0, y0, x1, y1 in parts of width and height, instead of the first one's random crop.
    """
    limits = limits or Limits()
    header = read_header(picture, limits) if isinstance(picture, bytes) and not preprocess.exif else None
    image = preprocess.read(picture, limits) if header is None or header.format != "JPEG" else None
    height, width = (header.height, header.width) if image is None and header else image.shape[-2:]  # type: ignore[union-attr]
    boxes = [augment.box(height, width, rng) for augment, rng in views]
    if crop is not None:
        boxes[0] = stored_box(crop, height, width)
    factor = min(augment.factor(box, preprocess.size) for (augment, _), box in zip(views, boxes))
    if image is None and factor > 1:
        small = decode_shrunk(picture, factor)
        crops = [_cut_small(small, box, factor, preprocess) for box in boxes if box is not None]
    else:
        whole = decode(picture, limits, header=header) if image is None else image
        crops = [preprocess.fit(whole) if box is None else _cut(whole, box, preprocess) for box in boxes]
    return [augment.distort(image, rng) for (augment, rng), image in zip(views, crops)]


def _cut(image: Tensor, box: Box, preprocess: Preprocess) -> Tensor:
    part = image[:, box.top : box.top + box.height, box.left : box.left + box.width]
    return preprocess.resize(part, preprocess.size)


def _cut_small(small: Image.Image, box: Box, factor: int, preprocess: Preprocess) -> Tensor:
    """The crop of a picture decoded at 1/factor; its edges are not rounded to pixels: that would cost 7 to 10 dB."""
    top, left = box.top / factor, box.left / factor
    edges = (left, top, left + box.width / factor, top + box.height / factor)
    return _pillow_resize(small, preprocess.size, preprocess.interpolation, edges)


def _pillow_resize(image: Any, size: tuple[int, int], interpolation: str, box: Any = None) -> Tensor:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image.permute(1, 2, 0).numpy())
    return from_pil(picture.resize(size[::-1], Image.Resampling[interpolation.upper()], box=box)).contiguous()


def _shortest(height: int, width: int, side: int) -> tuple[int, int]:
    """As in torchvision's Resize(side), the longer side is rounded down."""
    if height <= width:
        return side, int(side * width / height)
    return int(side * height / width), side


def _keep_ratio(height: int, width: int, size: tuple[int, int], *, longest: bool) -> tuple[int, int]:
    """open_clip's ResizeKeepRatio: sides are rounded to nearest."""
    ratios = height / size[0], width / size[1]
    ratio = max(ratios) if longest else min(ratios)
    return max(1, round(height / ratio)), max(1, round(width / ratio))


def _center(image: Tensor, size: tuple[int, int], *, fill: int) -> Tensor:
    """The central part of exactly `size`, padded where the picture is smaller: open_clip's CenterCropOrPad."""
    height, width = image.shape[-2:]
    down, across = max(0, size[0] - height), max(0, size[1] - width)
    if down or across:
        image = F.pad(image, [across // 2, down // 2, (across + 1) // 2, (down + 1) // 2], fill=fill)
        height, width = image.shape[-2:]
    top, left = round((height - size[0]) / 2), round((width - size[1]) / 2)
    return image[:, top : top + size[0], left : left + size[1]].contiguous()


def _kind(picture: Any) -> str:
    if isinstance(picture, Tensor):
        return f"{picture.dtype} {list(picture.shape)}"
    return type(picture).__name__
