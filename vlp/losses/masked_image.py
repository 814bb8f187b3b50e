"""Masked image modelling: pixels of hidden patches from the visible ones."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from vlp.kernels.blocks import full
from vlp.losses.loss import Loss
from vlp.losses.patches import hidden_count, num_patches, refuse_other_towers, run_changed, shuffled
from vlp.losses.per_sample import idle, mean_of
from vlp.types import Batch, Features


class MaskedImage(Loss):
    """The masked autoencoder (arXiv 2111.06377), as UniPT has it beside the contrast.

    A random share of the patches is left out; the image tower encodes the others, and a small decoder, which gets a
    mask token at each hidden place, draws the hidden patches. Mean over hidden patches of all ranks of the mean squared
    error to their pixels, normalised patch by patch. One more pass of the image tower, on (1 - share) of its tokens.

    Deviation: positions of the decoder are learned, and its default is 2 layers of width 128.
    """

    share: float = Field(0.75, gt=0.0, lt=1.0, description="of patches that are hidden")
    width: int = Field(128, ge=32, multiple_of=32, description="of the decoder; a head has 32")
    layers: int = Field(2, ge=1, description="of the decoder")

    cuts: ClassVar[bool] = False

    def heads(self, dual: Any) -> dict[str, nn.Module]:
        refuse_other_towers(dual, who="mae")
        return {"mae": MaskedImageHead(self, dual)}

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """The term "mae"."""
        term = mean_of(features.extra["mae/error"], batch.valid, batch)
        return {"mae": term + idle(features, batch)}


class MaskedImageHead(nn.Module):
    """Mean squared error of the hidden patches of each picture: "mae/error" [B]."""

    def __init__(self, settings: MaskedImage, dual: Any) -> None:
        super().__init__()
        width, (height, across) = settings.width, dual.visual.conv1.kernel_size
        self.hidden = hidden_count(dual, settings.share)
        self.enter = nn.Linear(dual.image_tower.width, width)
        self.mask = nn.Parameter(0.02 * torch.randn(width))
        self.position = nn.Parameter(0.02 * torch.randn(num_patches(dual), width))
        layer = nn.TransformerEncoderLayer(
            width, width // 32, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerEncoder(layer, settings.layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.draw = nn.Linear(width, 3 * height * across)

    def forward(self, batch: Batch, towers: Any) -> dict[str, Tensor]:
        dual = towers.dual
        pixels = dual.pixels(batch.image)
        order = shuffled(len(pixels), dual, pixels.device)
        away, kept = order[:, : self.hidden], order[:, self.hidden :]
        seen = run_changed(dual, pixels, lambda patches: _at(patches, kept)).hidden
        x = self.mask.to(seen.dtype).expand(len(seen), len(self.position), -1)
        x = x.scatter(1, kept[..., None].expand(-1, -1, x.shape[-1]), self.enter(seen).to(x.dtype)) + self.position
        drawn = self.draw(_at(self.decoder(x), away))
        target = _at(patch_pixels(pixels, dual.visual.conv1.kernel_size), away)
        return {"mae/error": ((full(drawn) - normalised(full(target))) ** 2).mean(dim=(1, 2))}


def _at(x: Tensor, places: Tensor) -> Tensor:
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))


def patch_pixels(pixels: Float[Tensor, "B 3 H W"], size: tuple[int, int]) -> Float[Tensor, "B P pixels"]:
    """The numbers of every patch, patches in the order of the tower's."""
    return nn.functional.unfold(pixels, size, stride=size).transpose(1, 2)


def normalised(patches: Float[Tensor, "B P pixels"]) -> Float[Tensor, "B P pixels"]:
    """Every patch with mean 0 and variance 1; a patch of one colour becomes 0."""
    centred = patches - patches.mean(dim=-1, keepdim=True)
    return centred / (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()
