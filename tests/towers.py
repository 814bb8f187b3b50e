"""Two towers small enough to reason about, with everything that GradCache and DDP must get right."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, normalize

from vlp.types import Batch, Features


class TinyTowers(nn.Module):
    """Bag of words and a linear image tower, in fp64; text tokens are cut to the longest caption of what is asked.

    `own`: with a scale of its own, a feature without batch dimension that only some losses use.
    """

    def __init__(
        self, *, size: int = 8, vocab: int = 100, width: int = 6, rate: float = 0.0, own: bool = False
    ) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(1)
        self.image = nn.Linear(3 * size * size, width, dtype=torch.float64)
        self.words = nn.Embedding(vocab, width, dtype=torch.float64)
        self.logit_scale = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
        self.logit_bias = nn.Parameter(torch.tensor([-3.0], dtype=torch.float64))
        self.token_scale = nn.Parameter(torch.tensor([0.5], dtype=torch.float64)) if own else None
        self.rate, self.own = rate, own
        with torch.no_grad():
            for parameter in (self.image.weight, self.image.bias, self.words.weight):
                parameter.copy_(torch.randn(parameter.shape, generator=rng, dtype=torch.float64))

    def forward(self, batch: Batch) -> Features:
        pixels = batch.image.flatten(1).double() / 255
        image = normalize(self._drop(self.image(pixels)), dim=-1)
        longest = max(1, int(batch.token_mask.sum(-1).max()))
        mask = batch.token_mask[:, :, :longest]
        tokens = self._drop(self.words(batch.text[:, :, :longest])) * mask[..., None]
        return Features(
            image=image,
            text=normalize(tokens.sum(2), dim=-1) * batch.caption_mask[..., None],
            scale=self.logit_scale.exp(),
            bias=self.logit_bias * 1,
            text_tokens=tokens,
            extra={"lengths": mask.sum((1, 2))} | ({"token_scale": self.token_scale * 2} if self.own else {}),
        )

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.rate) if self.rate else x


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the gradients by name; every parameter must have one."""
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
