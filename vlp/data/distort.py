"""What augmentation does to a picture of the model's size, all uint8 [3, H, W]: colours, blur, small moves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vlp.data.decode import from_pil


def jitter(image: Tensor, strength: tuple[float, float, float, float], rng: np.random.Generator) -> Tensor:
    """Brightness, contrast, saturation and hue in random order, factors as torchvision's ColorJitter draws them."""
    changes = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for number in rng.permutation(4):
        amount = strength[number]
        if amount:
            low = -amount if number == 3 else max(0.0, 1 - amount)
            image = changes[number](image, float(rng.uniform(low, amount if number == 3 else 1 + amount)))
    return image


def move(image: Tensor, *, degrees: float, shift: float, zoom: tuple[float, float], rng: np.random.Generator) -> Tensor:
    """Turned, shifted and scaled as torchvision's RandomAffine draws it, bilinear, black where nothing is left."""
    height, width = image.shape[-2:]
    angle = float(rng.uniform(-degrees, degrees))
    across, down = (round(float(rng.uniform(-shift * side, shift * side))) for side in (width, height))
    scale = float(rng.uniform(*zoom))
    return _with_pillow(
        image,
        lambda picture: F.affine(picture, angle, [across, down], scale, [0.0, 0.0], InterpolationMode.BILINEAR),
    )


def blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur by Pillow (three box blurs), as SimCLR's followers have it; sigma in pixels."""
    return _with_pillow(image, lambda picture: picture.filter(ImageFilter.GaussianBlur(sigma)))


def gray(image: Tensor) -> Tensor:
    """Luma in all three channels."""
    found: Tensor = F.rgb_to_grayscale(image, num_output_channels=3)
    return found


def solarize(image: Tensor) -> Tensor:
    """Values from 128 on turned round."""
    found: Tensor = F.solarize(image, threshold=128)
    return found


def _with_pillow(image: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    return from_pil(change(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())))
