"""What the small losses need to be looked at: a batch with a teacher and caption negatives, and features of heads."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tests.losses.compare import awkward
from tests.towers import TinyTowers
from vlp.types import Batch, Features

WIDTH, TEACHER, M = 6, 4, 2  # of the student, of the teacher; caption negatives a picture


def situation(make_batch: Callable[..., Batch], make_features: Callable[..., Features]) -> tuple[Features, Batch]:
    """Features and batch of `awkward`, with columns of a teacher, caption negatives, and what heads make of them."""
    features, batch = awkward(make_batch, make_features)
    return with_heads(features, batch), with_columns(batch)


def with_columns(batch: Batch, *, vocab: int = 100, seed: int = 3) -> Batch:
    """The batch with teacher features (not of unit norm) and M caption negatives, some of them absent."""
    rng = torch.Generator().manual_seed(seed)
    B, K, T = batch.text.shape
    there = torch.rand(B, M, generator=rng) < 0.7
    length = torch.randint(1, T + 1, (B, M), generator=rng)
    mask = (torch.arange(T) < length[..., None]) & there[..., None]
    return batch.plus(
        {
            "teacher/image": torch.randn(B, TEACHER, generator=rng, dtype=torch.float64),
            "teacher/text": torch.randn(B, K, TEACHER, generator=rng, dtype=torch.float64),
            "negative_text": torch.randint(1, vocab, (B, M, T), generator=rng) * mask,
            "negative_mask": mask,
        },
        {"teacher/scale": torch.tensor([7.0], dtype=torch.float64)},
    )


def with_heads(features: Features, batch: Batch, *, seed: int = 5) -> Features:
    """The features with made-up columns of the heads, as leaves."""
    rng = torch.Generator().manual_seed(seed)
    (B, K), dtype = batch.caption_mask.shape, features.image.dtype

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)

    extra = {
        "negclip/text": normalize(drawn(B, M, WIDTH), dim=-1),
        "feature_distill/image": drawn(B, TEACHER),
        "feature_distill/text": drawn(B, K, TEACHER),
        "cmpm/image": 2 * drawn(B, WIDTH),
    }
    return features._replace(extra={name: x.requires_grad_() for name, x in extra.items()})


class HeadedTowers(TinyTowers):
    """TinyTowers that make the columns of the heads, too."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(2)
        self.teach = nn.Linear(WIDTH, TEACHER, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.teach.weight.copy_(torch.randn(TEACHER, WIDTH, generator=rng, dtype=torch.float64))

    def forward(self, batch: Batch) -> Features:
        features = super().forward(batch)
        ids, mask = batch.extra["negative_text"], batch.extra["negative_mask"]
        words = (self.words(ids) * mask[..., None]).sum(2)
        extra = {
            "negclip/text": normalize(words, dim=-1),
            "feature_distill/image": self.teach(features.image),
            "feature_distill/text": self.teach(features.text),
            "cmpm/image": self.image(batch.image.flatten(1).double() / 255),
        }
        return features._replace(extra={**features.extra, **extra})


def real_of(batch: Batch, k: int) -> list[int]:
    """Slots with a readable sample and a k-th caption."""
    return [i for i in range(len(batch)) if batch.valid[i] and batch.caption_mask[i, k]]


def unit(x: Tensor) -> Tensor:
    return x / x.norm()
