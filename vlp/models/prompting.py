"""Learned vectors in both towers: prompts in front of class names, and tokens behind the patches (VPT, 2203.12119)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vlp.models.deep import appended, changed_inputs, deep_prompts
from vlp.models.prefix import insert
from vlp.models.shared_prefix import can_share, run_begun


class Prompted:
    """What `Dual` offers to methods that learn vectors among the tokens of its towers."""

    def encode_prompts(
        self, begin: Tensor, rest: Tensor, end: Tensor, of: Tensor, *, deep: Sequence[Tensor] = (), at: int = 0
    ) -> Tensor:
        """Unit features [n, D] of texts of embeddings: begin[of[i]] [p, width], then rest[i] [s, width] up to end[i].

        Embeddings are those of `embed`, without positions; `rest` is padded by the embedding of the padding. deep[j]
        [m, width] stands in place of positions at..at+m of the beginnings at the input of block j + 1. A causal tower
        computes each beginning once; any other one runs whole prompts, deep vectors by hooks.
        """
        dual: Any = self
        tower = dual.text_tower
        if len(deep) >= len(dual.text_blocks):
            raise ValueError(f"{len(deep) + 1} depths of text prompts for a tower of {len(dual.text_blocks)} blocks")
        if dual.prefix is not None:  # the model's own, as `encode_text` puts it in
            begin = insert(begin, *_no_mask(begin), dual.prefix.now(), at=dual.prefix_at)[0]
            at += dual.prefix.length * (at >= dual.prefix_at)
        positions = begin.shape[1] + int(end.max()) + 1
        if positions > tower.context:
            raise ValueError(f"a prompt of {positions} positions does not fit the context of {tower.context}")
        if can_share(tower):
            return normalize(run_begun(tower, begin, rest, end, of, deep=deep, at=at), dim=-1)
        whole = torch.cat([begin.to(rest.dtype)[of], rest], dim=1)
        end = end + begin.shape[1]
        mask = torch.arange(whole.shape[1], device=whole.device) <= end[:, None]
        with deep_prompts(dual.text_blocks[1:], deep, at=at):
            features: Tensor = dual.encode_embeds(whole, mask, end)
        return features

    @contextmanager
    def prompted_image(self, prompts: Sequence[Tensor]) -> Iterator[None]:
        """While open, the image tower has prompts[0] [p, width] behind its tokens, and prompts[i] there at block i.

        They take part in the norm before the blocks, where there is one, and are gone behind the last block, so that a
        tower which pools over its tokens pools over patches alone. Prompts of no vectors change nothing.
        """
        dual: Any = self
        blocks = dual.image_blocks
        if len(prompts) > len(blocks):
            raise ValueError(f"{len(prompts)} depths of visual prompts for a tower of {len(blocks)} blocks")
        count = len(prompts[0]) if len(prompts) else 0
        if not count:
            yield
            return
        first = appended(_norm_before(dual.visual)(prompts[0]))
        handle = blocks[-1].register_forward_hook(lambda module, inputs, out: out[:, :-count])
        try:
            with (
                changed_inputs(blocks[:1], {0: lambda x: first(_tokens(x))}),
                deep_prompts(blocks[1:], prompts[1:], at=-count),
            ):
                yield
        finally:
            handle.remove()


def _no_mask(begin: Tensor) -> tuple[Tensor, Tensor]:
    """A mask and ends for `insert`, where nobody needs them."""
    return begin.new_ones(begin.shape[:2], dtype=torch.bool), begin.new_zeros(len(begin), dtype=torch.long)


def _tokens(x: Tensor) -> Tensor:
    if x.ndim != 3:
        raise ValueError(f"visual prompts need an image tower of tokens; this one has maps {list(x.shape[1:])}")
    return x


def _norm_before(visual: Any) -> nn.Module:
    """The norm between the patches with their positions and the first block; it treats each token alone."""
    found = getattr(visual.trunk, "norm_pre", None) if hasattr(visual, "trunk") else getattr(visual, "ln_pre", None)
    return found if isinstance(found, nn.Module) else nn.Identity()
