"""Late interaction of stored tokens, a bounded part of each side on the device at once."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vlp.kernels.late import PadMax, late_similarity

Direction = Literal["rows", "columns"]  # rows: mean over patches of the best token; columns: mean over tokens
_NUMBERS = 1 << 23  # of each side at once: 32 MB in fp32


def token_scores(
    image: Float[Tensor, "a P D"],
    text: Float[Tensor, "m T D"],
    mask: Bool[Tensor, "m T"],
    *,
    want: Direction,
    pad_max: PadMax = "exclude",
    device: torch.device | str = "cpu",
) -> Float[Tensor, "a m"]:
    """Similarity of every image with every text in one direction, fp32 on the CPU.

    Texts are cut behind the longest of those at hand but for one place: with `pad_max="zero"` a text sees the padding
    that it has in `text`.
    """
    strips = []
    for words, real in zip(_split(text), mask.split(_rows(text))):
        width = int(real.sum(dim=1).max()) + 1
        words, real = words[:, :width].to(device), real[:, :width].to(device)
        found = [
            getattr(
                late_similarity(part.to(device), words, x_mask=None, y_mask=real, want=want, pad_max=pad_max), want
            ).cpu()
            for part in _split(image)
        ]
        strips.append(torch.cat(found))
    return torch.cat(strips, dim=1) if strips else torch.empty(len(image), 0)


def scores_of_text(
    image: Float[Tensor, "a P D"], words: Float[Tensor, "T D"], *, device: torch.device | str = "cpu"
) -> Tensor:
    """[a]: the "columns" of one text, all of whose tokens are real; plain products are fastest for one query."""
    words = words.float().to(device)
    found = [(part.float().to(device) @ words.T).amax(dim=1).mean(dim=1).cpu() for part in _split(image)]
    return torch.cat(found)


def scores_of_image(
    patches: Float[Tensor, "P D"],
    text: Float[Tensor, "m T D"],
    mask: Bool[Tensor, "m T"],
    *,
    pad_max: PadMax = "exclude",
    device: torch.device | str = "cpu",
) -> Tensor:
    """[m]: the "rows" of one image; padding in `text` is zeros, which is what `pad_max="zero"` wants to see."""
    patches = patches.float().to(device)
    found = []
    for words, real in zip(_split(text), mask.split(_rows(text))):
        products = words.float().to(device) @ patches.T
        if pad_max == "exclude":
            products = products.masked_fill(~real[..., None].to(device), -torch.inf)
        found.append(products.amax(dim=1).mean(dim=1).cpu())
    return torch.cat(found)


def _split(tokens: Tensor) -> list[Tensor]:
    return list(tokens.split(_rows(tokens)))


def _rows(tokens: Tensor) -> int:
    return max(1, _NUMBERS // max(1, tokens.shape[1] * tokens.shape[2]))
