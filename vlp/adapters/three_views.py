"""Seeded batches of labelled pictures in three views: a crop, a strong one, and AugMix of a crop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vlp.adapters.task import Examples
from vlp.data.augment import Augment, augmented
from vlp.data.augmix import augmix
from vlp.pictures import read_picture
from vlp.types import BadSampleError

MOCO = Augment(scale=(0.08, 1.0), flip=0.5, jitter=(0.4, 0.4, 0.2, 0.1), gray_prob=0.2, blur=(0.1, 2.0), blur_prob=1.0)
_SEEDS = 1 << 62


class Views(NamedTuple):
    """Labels [b], and uint8 pictures [b, 3, H, W] in the same order."""

    label: Tensor
    plain: Tensor
    strong: Tensor
    mixed: Tensor


def three_views(
    examples: Examples, encoder: Any, *, plain: Augment, strong: Augment, size: int, seed: int
) -> Callable[[int], Iterator[Views]]:
    """Epoch -> batches in random order, each picture decoded once; ValueError where there are none."""
    if examples.pictures is None:
        raise ValueError("GOPro runs the image tower, and of the support only features were given: give pictures")
    rng = torch.Generator().manual_seed(seed)
    data = _ThreeViews(examples, encoder.dual.transform, plain, strong)
    device = encoder.device

    def batches(epoch: int) -> Iterator[Views]:
        rows = torch.randperm(len(examples), generator=rng).tolist()
        seeds = torch.randint(_SEEDS, (len(rows),), generator=rng).tolist()
        loader: DataLoader[Any] = DataLoader(
            data,
            sampler=list(zip(rows, seeds, strict=True)),
            batch_size=size,
            num_workers=min(encoder.workers, -(-len(rows) // size)),
            collate_fn=_collate,
            generator=torch.Generator(),  # or it would draw from the default one
        )
        for batch, views in loader:
            yield Views(examples.known[batch].to(device), *(view.to(device, non_blocking=True) for view in views))

    return batches


class _ThreeViews(Dataset[Any]):
    """(row, seed) -> row and pixels; runs in the loader's workers."""

    def __init__(self, examples: Examples, transform: Any, plain: Augment, strong: Augment) -> None:
        self.pictures, self.keys = examples.pictures, examples.keys
        self.transform, self.plain, self.strong = transform, plain, strong

    def __getitem__(self, drawn: tuple[int, int]) -> tuple[int, list[Tensor]]:
        row, seed = drawn
        rngs = np.random.default_rng(seed).spawn(3)
        how = zip((self.plain, self.strong, self.plain), rngs, strict=True)
        try:
            views = augmented(read_picture(self.pictures[row]), list(how), self.transform)
        except BadSampleError as error:
            key = self.keys[row] if self.keys else row
            raise ValueError(f"picture {key} of the support cannot be read ({error}); leave it out") from None
        return row, [*views[:2], augmix(views[2], rngs[2])]


def _collate(items: list[tuple[int, list[Tensor]]]) -> tuple[Tensor, list[Tensor]]:
    rows = torch.tensor([row for row, _ in items])
    return rows, [torch.stack(views) for views in zip(*(views for _, views in items), strict=True)]
