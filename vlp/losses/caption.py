"""CoCa's captioning term: the next word, from the words before and the picture."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import pad

from vlp.losses.loss import Loss
from vlp.losses.per_sample import idle, mean_of
from vlp.losses.vocabulary import Vocabulary, hidden_width, token_table
from vlp.types import Batch, Features


class Caption(Loss):
    """The captioning loss of CoCa (arXiv 2205.01917, eq. 4): -log p(y_t | y_<t, picture), mean over all ranks' tokens.

    A multimodal decoder stands on the causal text tower: layers of causal self-attention, cross-attention to the image
    tower's tokens, and an MLP. Every token behind the first one is predicted, the end token too; padding never. CoCa
    gives it weight 2 beside 1 for the contrast.

    Deviations: the decoder attends to the patches themselves, without a pooler of 256 queries, and has 2 layers unless
    `layers` says more; the paper's has as many as the unimodal one.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"image_hidden", "text_hidden"})
    cuts: ClassVar[bool] = False

    layers: int = Field(2, ge=1, description="of the multimodal decoder")
    tied: bool = Field(True, description="predict by the token embeddings; false: by a table of its own")

    def heads(self, dual: Any) -> dict[str, nn.Module]:
        if not getattr(dual.text_tower, "causal", False):
            raise ValueError(
                "caption predicts the next word from the text tower's states, and this text tower looks ahead: "
                "choose a causal one (open_clip's text transformers without no_causal_mask), or leave the loss out"
            )
        return {"caption": CaptionHead(self, dual)}

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """The term "caption"."""
        term = mean_of(features.extra["caption/nll"], features.extra["caption/count"], batch)
        return {"caption": term + idle(features, batch)}


class CaptionHead(nn.Module):
    """Sum of -log p over the tokens of a sample's captions and their number: "caption/nll", "caption/count" [B]."""

    def __init__(self, settings: Caption, dual: Any) -> None:
        super().__init__()
        width, table = hidden_width(dual.text_tower), token_table(dual.text)
        self.image = nn.Sequential(nn.LayerNorm(dual.image_tower.width), nn.Linear(dual.image_tower.width, width))
        self.layers = nn.ModuleList(DecoderLayer(width) for _ in range(settings.layers))
        transform = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, table.embedding_dim))
        self.vocabulary = Vocabulary(transform, table, tied=settings.tied)

    def forward(self, batch: Batch, towers: Any) -> dict[str, Tensor]:
        x, image = towers.text_hidden, self.image(towers.image_hidden)
        B, _, T, _ = x.shape
        seen = (batch.token_mask & (batch.valid[:, None] & batch.caption_mask)[..., None])[..., :T]
        ahead = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
        for layer in self.layers:
            x = layer(x, image, ahead)
        following = pad(seen[..., 1:], (0, 1))  # whether the token after this one is real
        target = pad(batch.text[..., 1:T], (0, 1))[following]
        nll = self.vocabulary(x[following], target, token_table(towers.dual.text))
        sums = nll.new_zeros(B).index_add(0, following.nonzero()[:, 0], nll)
        return {"caption/nll": sums, "caption/count": following.sum((1, 2))}


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention to the picture, MLP; each behind a norm and added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        heads = num_heads(width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.itself = nn.MultiheadAttention(width, heads, batch_first=True)
        self.picture = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, image: Tensor, ahead: Tensor) -> Tensor:
        """X [B, K, T, width]; image [B, P, width]; ahead bool [T, T]. All captions of a picture ask it at once."""
        B, K, T, width = x.shape
        h = self.norms[0](x).flatten(0, 1)
        x = x + self.itself(h, h, h, attn_mask=ahead, need_weights=False)[0].unflatten(0, (B, K))
        h = self.norms[1](x).flatten(1, 2)
        x = x + self.picture(h, image, image, need_weights=False)[0].reshape(B, K, T, width)
        result: Tensor = x + self.mlp(self.norms[2](x))
        return result


def num_heads(width: int) -> int:
    """Heads of about 64: the largest number up to width / 64 that divides the width."""
    return next(heads for heads in range(max(1, width // 64), 0, -1) if width % heads == 0)
