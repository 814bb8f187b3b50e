"""Cross entropy over a vocabulary, for the few positions that need it and never for all of them at once."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from vlp.kernels.blocks import row_blocks
from vlp.kernels.recompute import in_parts

_LOGITS = 1 << 24  # numbers of one block of logits; each block's gradient by the table is as large as the table


def token_table(text: nn.Module) -> nn.Embedding:
    """The embedding of token ids in a text tower: its largest one."""
    tables = [module for module in text.modules() if isinstance(module, nn.Embedding)]
    return max(tables, key=lambda table: table.num_embeddings)


def hidden_width(tower: Any) -> int:
    """Width of a text tower's hidden states; in some it is not that of its token embeddings."""
    config = getattr(tower, "config", None)
    found = getattr(config, "hidden_size", None) or getattr(config, "d_model", None) or tower.width
    return int(found)


class Vocabulary(nn.Module):
    """Negative log-likelihood of tokens given vectors: a transform, then the token embeddings or a table of its own.

    A tied table stays a parameter of the text tower; it is handed in at each call.
    """

    def __init__(self, transform: nn.Module, table: nn.Embedding, *, tied: bool) -> None:
        super().__init__()
        self.transform = transform
        self.bias = nn.Parameter(torch.zeros(table.num_embeddings))
        self.weight = None if tied else nn.Parameter(0.02 * torch.randn_like(table.weight))

    def forward(self, x: Float[Tensor, "M width"], target: Int[Tensor, "M"], table: nn.Embedding) -> Tensor:
        """[M], in at least fp32; one block of logits exists at a time.

        Under autocast logits are products in its precision, as a language head's are; the log-sum-exp over them is not.
        """
        weight = table.weight if self.weight is None else self.weight
        vectors = self.transform(x)
        rows = max(1, _LOGITS // len(weight))
        parts = row_blocks(len(x), len(weight), block=rows, device=x.device)
        return in_parts(partial(_nll, weight, self.bias), parts, vectors, target)


def _nll(weight: Tensor, bias: Tensor, x: Tensor, target: Tensor) -> Tensor:
    logits = linear(x, weight, bias)
    return cross_entropy(logits if logits.dtype is torch.float64 else logits.float(), target, reduction="none")
