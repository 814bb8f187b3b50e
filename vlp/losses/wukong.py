"""Late interaction on a few learned image tokens in place of all patches."""

from __future__ import annotations

from typing import Any, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from vlp.losses.filip import FILIP
from vlp.types import Batch, Features


class Wukong(FILIP):
    """FILIP between `tokens` learned mixtures of an image's patches and all words (Wukong, arXiv 2202.06767).

    The reducer is a head, "wukong", with a projection of its own, so that it also trains beside a locked image tower
    (LiT): `model.lock_image: true` with `pretrained`. Everything else is as in `filip`; what that keeps are mixtures.
    """

    tokens: int = Field(12, ge=1, description="mixtures an image (authors: 12 for ViT-B/32, 24 for ViT-L/14)")
    conv_groups: int = Field(8, ge=1, description="groups of the reducer's convolutions; divides the tower's width")
    dropout: float = Field(0.0, ge=0.0, lt=1.0)

    needs: ClassVar[frozenset[str]] = frozenset({"image_hidden", "text_tokens"})
    batchless: ClassVar[frozenset[str]] = frozenset({"wukong/scale", "wukong/room"})
    joint: ClassVar[frozenset[str]] = frozenset({"wukong/tokens"})

    def heads(self, dual: Any) -> dict[str, nn.Module]:
        """The reducer, and the heads of `filip`."""
        width = int(dual.image_tower.width)
        if width % self.conv_groups:
            raise ValueError(
                f"conv_groups={self.conv_groups} does not divide the image tower's width {width}; choose a divisor"
            )
        reducer = TokenReducer(
            width, int(dual.dim), tokens=self.tokens, conv_groups=self.conv_groups, dropout=self.dropout
        )
        return {"wukong": reducer, **super().heads(dual)}

    def image_tokens(self, features: Features) -> Tensor | None:
        """The mixtures [B, R, D] that the reducer made."""
        return features.extra.get("wukong/tokens")


class TokenReducer(nn.Module):
    """A head: R mixtures of the P patches as they are before their projection (Wukong; TokenLearner 1.1).

    weights = softmax over patches of conv(grouped conv(LayerNorm(x))); mixtures = weights @ grouped conv(x); then
    dropout and a projection to the joint space. The released file's softmax names no axis; here it runs over the
    patches. The convolutions are 1 x 1, so patches need no map; as there, they have no bias.
    """

    def __init__(self, width: int, dim: int, *, tokens: int, conv_groups: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.selection = nn.Sequential(
            nn.Conv1d(width, width, 1, groups=conv_groups, bias=False), nn.Conv1d(width, tokens, 1, bias=False)
        )
        self.values = nn.Conv1d(width, width, 1, groups=conv_groups, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.proj = nn.Linear(width, dim, bias=False)

    def forward(self, batch: Batch, towers: Any) -> dict[str, Tensor]:
        return {"wukong/tokens": self.tokens(towers.image_hidden)}

    def tokens(self, hidden: Float[Tensor, "B P C"]) -> Float[Tensor, "B R D"]:
        """Unit tokens of patches as the tower gives them before its projection; evaluation calls this too."""
        return normalize(self.proj(self.dropout(self.mixtures(hidden))), dim=-1)

    def mixtures(self, hidden: Float[Tensor, "B P C"]) -> Float[Tensor, "B R C"]:
        """Weighted means of the patches, each with weights of its own that add up to 1."""
        weights = self.selection(self.norm(hidden).transpose(1, 2)).softmax(-1)
        return weights @ self.values(hidden.transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]
