"""Seeded batches of labelled pictures: stored features, or pixels that are decoded and augmented again every epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vlp.adapters.task import Examples
from vlp.data.augment import Augment
from vlp.pictures import read_picture
from vlp.types import BadSampleError

_SEEDS = 1 << 62


class Shots(NamedTuple):
    """A batch: rows of the examples, their labels [b], and features [b, D] or uint8 pictures [b, 3, H, W]."""

    rows: Tensor
    label: Tensor
    image: Tensor


def feature_shots(
    examples: Examples, *, size: int, seed: int, device: torch.device
) -> Callable[[int], Iterator[Shots]]:
    """Epoch -> batches in random order; where the examples have augmented views, one of them each time."""
    rng = torch.Generator().manual_seed(seed)
    views = examples.views

    def batches(epoch: int) -> Iterator[Shots]:
        for rows in _order(len(examples), size, rng):
            image = examples.image[rows]
            if views is not None:
                image = views[rows, torch.randint(views.shape[1], rows.shape, generator=rng)]
            yield Shots(rows, examples.known[rows].to(device), image.to(device))

    return batches


def picture_shots(
    examples: Examples, encoder: Any, *, augment: Augment | None, size: int, seed: int, who: str
) -> Callable[[int], Iterator[Shots]]:
    """Epoch -> batches in random order, decoded by the model's transform; None: without augmentation.

    ValueError where there are no pictures, or one cannot be read.
    """
    if examples.pictures is None:
        raise ValueError(f"{who} runs the image tower, and of the support only features were given: give pictures")
    rng = torch.Generator().manual_seed(seed)
    data = _Pixels(examples, encoder.dual.transform, augment)
    device = encoder.device

    def batches(epoch: int) -> Iterator[Shots]:
        order = [
            list(zip(rows.tolist(), torch.randint(_SEEDS, rows.shape, generator=rng).tolist(), strict=True))
            for rows in _order(len(examples), size, rng)
        ]
        loader: DataLoader[Any] = DataLoader(
            data,
            batch_sampler=order,
            num_workers=min(encoder.workers, len(order)),
            collate_fn=_collate,
            generator=torch.Generator(),  # or it would draw from the default one
        )
        for rows, image in loader:
            yield Shots(rows, examples.known[rows].to(device), image.to(device, non_blocking=True))

    return batches


class _Pixels(Dataset[Any]):
    """(row, seed) -> row and pixels; runs in the loader's workers."""

    def __init__(self, examples: Examples, transform: Any, augment: Augment | None) -> None:
        self.pictures, self.keys = examples.pictures, examples.keys
        self.transform, self.augment = transform, augment

    def __getitem__(self, drawn: tuple[int, int]) -> tuple[int, Tensor]:
        row, seed = drawn
        try:
            picture = read_picture(self.pictures[row])
            if self.augment is None:
                return row, self.transform(picture)
            return row, self.augment.apply(picture, self.transform, np.random.default_rng(seed))
        except BadSampleError as error:
            key = self.keys[row] if self.keys else row
            raise ValueError(f"picture {key} of the support cannot be read ({error}); leave it out") from None


def _collate(items: list[tuple[int, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.tensor([row for row, _ in items]), torch.stack([image for _, image in items])


def _order(count: int, size: int, rng: torch.Generator) -> list[Tensor]:
    return list(torch.randperm(count, generator=rng).split(size))
