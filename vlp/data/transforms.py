"""Pictures to the model's size: open_clip's evaluation transform on uint8."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vlp.data.decode import Header, Limits, check_size, decode, from_pil
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

    def read(self, picture: Any, limits: Limits | None = None, *, header: Header | None = None) -> Tensor:
        """uint8 [3, h, w] at the picture's own size; `header`: see `decode`."""
        if isinstance(picture, Path):
            picture = picture.read_bytes()
        if isinstance(picture, bytes | bytearray | memoryview):
            return decode(bytes(picture), limits, exif=self.exif, header=header)
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
            return pillow_resize(image, size, mode)
        if _FAST and not image.is_cuda:  # what F.resize calls in the end; its own checks are a tenth of the time
            return interpolate(_one_batch(image), size, mode=mode, align_corners=False, antialias=True)[0]
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


def _one_batch(image: Tensor) -> Tensor:
    """[1, 3, h, w], as channels_last where the picture lies so: `image[None]` has a first stride by which torch cannot
    tell, and resizes it into the other order at the price of one more pass.
    """
    rows, columns = image.stride()[1:]
    if image.stride(0) == 1 and columns == 3:
        return image.as_strided((1, *image.shape), (image.shape[1] * rows, 1, rows, columns))
    return image[None]


def pillow_resize(image: Any, size: tuple[int, int], interpolation: str, box: Any = None) -> Tensor:
    """uint8 [3, H, W] of a Pillow image or uint8 [3, h, w], or of its part within `box` (left, top, right, bottom)."""
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
