"""AugMix: chains of small changes mixed with the picture itself (Hendrycks et al. 2020, arXiv 1912.02781)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

CHAINS, LONGEST = 3, 3


def augmix(image: Tensor, rng: np.random.Generator, *, severity: float = 1.0) -> Tensor:
    """uint8 [3, H, W]: m x + (1 - m) sum_i w_i chain_i(x), m from Beta(1, 1), w from Dirichlet(1, 1, 1), section 3.

    A chain is one to three changes drawn among nine, none of which are corruptions that robustness is measured with.
    """
    weights, keep = rng.dirichlet([1.0] * CHAINS), float(rng.beta(1.0, 1.0))
    mixed = keep * image.float()
    for weight in weights:
        changed = image
        for _ in range(int(rng.integers(1, LONGEST + 1))):
            changed = CHANGES[int(rng.integers(len(CHANGES)))](changed, rng, severity)
        mixed += (1 - keep) * float(weight) * changed.float()
    return mixed.round().clamp(0, 255).to(torch.uint8)


def _level(rng: np.random.Generator, severity: float) -> float:
    """How strong a change is, from 0 to 1."""
    return float(rng.uniform(0.1, max(severity, 0.1))) / 10


def _signed(rng: np.random.Generator, amount: float) -> float:
    return amount if rng.random() < 0.5 else -amount


def _moved(
    image: Tensor, *, turn: float = 0.0, shift: tuple[int, int] = (0, 0), shear: tuple[float, float] = (0, 0)
) -> Tensor:
    found: Tensor = F.affine(image, turn, list(shift), 1.0, list(shear), InterpolationMode.BILINEAR)
    return found


def _contrast(image: Tensor, rng: np.random.Generator, severity: float) -> Tensor:
    found: Tensor = F.autocontrast(image)
    return found


def _equalize(image: Tensor, rng: np.random.Generator, severity: float) -> Tensor:
    found: Tensor = F.equalize(image)
    return found


def _posterize(image: Tensor, rng: np.random.Generator, severity: float) -> Tensor:
    found: Tensor = F.posterize(image, 4 - int(4 * _level(rng, severity)))
    return found


def _solarize(image: Tensor, rng: np.random.Generator, severity: float) -> Tensor:
    found: Tensor = F.solarize(image, 256.0 - int(256 * _level(rng, severity)))
    return found


def _rotate(image: Tensor, rng: np.random.Generator, severity: float) -> Tensor:
    return _moved(image, turn=_signed(rng, int(30 * _level(rng, severity))))


def _shear_x(image: Tensor, rng: np.random.Generator, severity: float) -> Tensor:
    return _moved(image, shear=(_signed(rng, _angle(rng, severity)), 0.0))


def _shear_y(image: Tensor, rng: np.random.Generator, severity: float) -> Tensor:
    return _moved(image, shear=(0.0, _signed(rng, _angle(rng, severity))))


def _angle(rng: np.random.Generator, severity: float) -> float:
    """Degrees of a shear by up to 0.3."""
    return float(np.degrees(np.arctan(0.3 * _level(rng, severity))))


def _shift_x(image: Tensor, rng: np.random.Generator, severity: float) -> Tensor:
    return _moved(image, shift=(int(_signed(rng, image.shape[-1] / 3 * _level(rng, severity))), 0))


def _shift_y(image: Tensor, rng: np.random.Generator, severity: float) -> Tensor:
    return _moved(image, shift=(0, int(_signed(rng, image.shape[-2] / 3 * _level(rng, severity)))))


CHANGES: tuple[Callable[[Tensor, np.random.Generator, float], Tensor], ...] = (
    _contrast,
    _equalize,
    _posterize,
    _rotate,
    _solarize,
    _shear_x,
    _shear_y,
    _shift_x,
    _shift_y,
)
