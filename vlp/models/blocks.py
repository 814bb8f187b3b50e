"""Running a stack of residual attention blocks, and its last block for the pooled token alone.

Blocks are called as modules, so hooks (deep prompts) and FSDP see every call.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_blocks(blocks: Iterable[Any], x: Tensor, mask: Tensor | None, *, checkpointing: bool) -> Tensor:
    """X [n, T, width] after all blocks; `mask` is an additive attention mask or None."""
    recompute = checkpointing and torch.is_grad_enabled()
    for block in blocks:
        # arguments by name: open_clip's own loop passes them by position, which fails for its custom blocks
        x = checkpoint(block, x, attn_mask=mask, use_reentrant=False) if recompute else block(x, attn_mask=mask)
    return x


def can_pool_early(block: Any) -> bool:
    """Whether `pooled_block` may stand in for a call of `block`: a plain block that nobody has hooked or wrapped."""
    attention = getattr(block, "attn", None)
    if type(block).__name__ != "ResidualAttentionBlock" or type(attention) is not nn.MultiheadAttention:
        return False
    return attention.batch_first and not (block._forward_hooks or block._forward_pre_hooks)


def pooled_block(block: Any, x: Tensor, at: Tensor, *, causal: bool) -> Tensor:
    """What `block` makes of the one token `at` [n] of each row of x [n, T, width]: [n, width], exact.

    The keys and values are those of all tokens (up to `at` when causal); queries, output and MLP only of one token.
    """
    row = torch.arange(len(x), device=x.device)
    h = block.ln_1(x)
    hidden = torch.arange(x.shape[1], device=x.device) > at[:, None] if causal else None
    out, _ = block.attn(h[row, at][:, None], h, h, need_weights=False, key_padding_mask=hidden)
    y = x[row, at] + block.ls_1(out[:, 0])
    result: Tensor = y + block.ls_2(block.mlp(block.ln_2(y)))
    return result
