"""Tokens of both sides: which of them are kept, and those of all ranks together.

B pairs here, N = W * B pairs on all ranks, K captions an image, P patches, T text tokens, D width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from vlp import dist
from vlp.kernels.blocks import full, no_autocast, row_blocks, surely_all
from vlp.losses.contrast import group_ids
from vlp.types import Batch

_PRODUCTS = 1 << 20  # similarities looked at together; selection keeps none of them


class Tokens(NamedTuple):
    """Tokens of some pairs; zero where there is no picture, caption or word."""

    image: Tensor  # [B, P, D]
    text: Tensor  # [B, K, T, D]
    words: Tensor  # bool [B, K, T]; real tokens of captions of valid slots
    valid: Tensor  # bool [B]


class TokenPool(NamedTuple):
    """Tokens of all ranks, differentiable; and which of them are ours."""

    image: Tensor  # [N, P, D]
    text: Tensor  # [N, K, T, D]; T is the largest of all ranks
    words: Tensor  # bool [N, K, T]
    real: Tensor  # bool [N, K]; the slot is valid and has a k-th caption
    group: Tensor  # long [N]; equal numbers are positives
    own: slice  # pairs of this rank

    @property
    def num_captions(self) -> Tensor:
        """Number of real captions on all ranks, at least 1, as a float scalar."""
        return self.real.sum().clamp(min=1).to(self.image.dtype)

    def apart(self) -> TokenPool:
        """The same with every pair its own only positive, whatever the labels."""
        return self._replace(group=torch.arange(len(self.group), device=self.group.device))


def own_tokens(image: Float[Tensor, "B P D"], text: Float[Tensor, "B K T D"], batch: Batch) -> Tokens:
    """This rank's tokens in fp32 or fp64; whatever stands where nothing is real, be it NaN, is replaced by zeros."""
    words = batch.token_mask[:, :, : text.shape[2]] & (batch.valid[:, None] & batch.caption_mask)[..., None]
    if not surely_all(batch.valid):
        image = torch.where(batch.valid[:, None, None], image, 0.0)
    return Tokens(full(image), full(torch.where(words[..., None], text, 0.0)), words, batch.valid)


def pool_tokens(tokens: Tokens, batch: Batch, *, half: bool = False) -> TokenPool:
    """Tokens, masks and labels of all ranks; the same collectives whatever the data are.

    half: tokens travel as bfloat16, and so do their gradients (it has the range of fp32, so small ones stay). One
    process rounds alike, so that the number of processes does not change the value.
    """
    image, text = tokens.image, tokens.text
    if half:
        image, text = image.bfloat16(), text.bfloat16()
    if dist.world() > 1:
        image, text = dist.gather(image), dist.gather_padded(text, dims=(2,))
    room = text.shape[2] - tokens.words.shape[2]
    words = dist.gather_const(pad(tokens.words, (0, room)))
    real = batch.valid[:, None] & batch.caption_mask
    marks = dist.gather_const(torch.cat([batch.label[:, None], real], 1))
    start = dist.rank() * len(batch.label)
    return TokenPool(
        image=full(image).to(tokens.image.dtype),
        text=full(text).to(tokens.text.dtype),
        words=words,
        real=marks[:, 1:].bool(),
        group=group_ids(marks[:, 0]),
        own=slice(start, start + len(batch.label)),
    )


def select(tokens: Tokens, *, image_keep: float = 1.0, text_keep: float = 1.0, group: int | None = None) -> Tokens:
    """The tokens nearest to the other side: ceil(image_keep * P) of each image, ceil(text_keep * length) of each text.

    Within `group` consecutive slots (None: each pair for itself) a patch counts by its largest similarity to any word
    of any caption, a word by that to any patch. Slots that are not valid take no part. The choice has no gradient, what
    is kept has. At 1.0 a side is returned as it is.
    """
    if image_keep == 1 and text_keep == 1:
        return tokens
    size = group or 1
    if len(tokens.valid) % size:
        raise ValueError(
            f"group={size} does not divide the {len(tokens.valid)} slots of a rank's batch, so tokens would be chosen "
            "differently on another number of processes; choose a divisor of data.batch_size / processes"
        )
    patches, words = nearness(tokens, group=size)
    image, text, kept = tokens.image, tokens.text, tokens.words
    if image_keep < 1:
        image = _taken(image, _best(patches, places_kept(image_keep, image.shape[1])))
    if text_keep < 1:
        T = text.shape[2]
        best = _best(words, places_kept(text_keep, T))
        shares = torch.tensor([places_kept(text_keep, length) for length in range(T + 1)], device=text.device)
        kept = torch.arange(best.shape[2], device=text.device) < shares[kept.sum(2)][..., None]
        text = torch.where(kept[..., None], _taken(text, best), 0.0)
    return Tokens(image, text, kept, tokens.valid)


@torch.no_grad()
def nearness(tokens: Tokens, *, group: int) -> tuple[Float[Tensor, "B P"], Float[Tensor, "B K T"]]:
    """Largest similarity of each patch to a word of its group and of each word to a patch, -inf where none is real."""
    B, P, D = tokens.image.shape
    num = B // group
    x, y = tokens.image.reshape(num, group * P, D), tokens.text.reshape(num, -1, D)
    absent_x = ~tokens.valid[:, None].expand(B, P).reshape(num, -1)
    absent_y = ~tokens.words.reshape(num, -1)
    patches, words = torch.full_like(x[..., 0], -torch.inf), torch.full_like(y[..., 0], -torch.inf)
    together = max(1, _PRODUCTS // max(1, x.shape[1] * y.shape[1]))
    for part in row_blocks(num, 1, block=together, device=x.device):
        for rows in row_blocks(x.shape[1], len(x[part]) * y.shape[1], block=None, device=x.device):
            with no_autocast(x):
                near = torch.bmm(x[part, rows], y[part].transpose(1, 2))
            near.masked_fill_(absent_x[part, rows, None] | absent_y[part, None], -torch.inf)
            patches[part, rows] = near.amax(2)
            words[part] = torch.maximum(words[part], near.amax(1))
    return patches.reshape(B, P), words.reshape(tokens.words.shape)


def places_kept(share: float, total: int) -> int:
    """That share of so many places, rounded up."""
    return math.ceil(share * total - 1e-9)  # 0.1 * 30 is a little more than 3


def _best(scores: Tensor, keep: int) -> Int[Tensor, "*pair kept"]:
    """Places of the largest scores; of equal ones the first, on every machine."""
    return scores.argsort(dim=-1, descending=True, stable=True)[..., :keep]


def _taken(tokens: Tensor, places: Tensor) -> Float[Tensor, "*pair kept D"]:
    return tokens.gather(-2, places[..., None].expand(*places.shape, tokens.shape[-1]))
