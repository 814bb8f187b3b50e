"""Dense features: a vector for every patch, as MaskCLIP takes it from a model trained on whole pictures.

MaskCLIP (arXiv 2112.01071): the last attention mixes places, which makes what it gives a place little of
that place. Without its queries and keys a place keeps its own value, which goes through the output projection and on.
A token that attends to itself alone has the weight 1, so this is the attention of each token by itself, whatever the
heads, biases and norms of the block are.

Letters: B pictures, P patches row by row, T tokens with those that are no patch, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from vlp.models.image import ImageTower, ResNet, Timm
from vlp.registry import nearest

How = Literal["maskclip", "tokens", "hidden"]

# Type of a residual block of attention and MLP -> its norm before the attention, and the scale behind it.
_BLOCKS = {
    "ResidualAttentionBlock": ("ln_1", "ls_1"),
    "CustomResidualAttentionBlock": ("ln_1", "ls_1"),
    "Block": ("norm1", "ls1"),  # timm's VisionTransformer
}
_OUT = -1e4  # a logit that no softmax sees; finite, so that interpolation makes no nan of it


class DenseTokens(NamedTuple):
    """One unit vector a patch, where the patches stand, and the keys that refinements compare."""

    tokens: Tensor  # [B, P, D]
    grid: tuple[int, int]  # rows, columns
    keys: Tensor | None = None  # [B, P, width], unit norm


def dense_tokens(
    dual: Any, image: Tensor, *, how: How = "maskclip", residual: bool = True, keys: bool = False
) -> DenseTokens:
    """Unit vectors [B, P, D] of pictures [B, 3, H, W], uint8 or normalised; ValueError for towers that have none.

    how: `maskclip`, see above; `tokens`, the projected patches of the whole tower; `hidden`, these before projection.
    residual: the last block keeps its residual and its MLP, as in MaskCLIP's code for ViTs; without them only the value
    goes on, as the paper has it for an attention pool. A tower that pools by attention (ModifiedResNet, timm `map`) has
    its value path there, with no such choice, and its `tokens` are the same. keys: those of that attention, too.
    """
    if how not in get_args(How):
        raise ValueError(f'no dense features "{how}"{nearest(how, get_args(How))}')
    if getattr(getattr(dual, "visual", None), "attn_pool", None) is not None:
        raise ValueError(
            "dense features: this tower (CoCa) pools by queries of its own, and what it gives are no patches; known "
            "are VisionTransformer without attentional_pool, ModifiedResNet, and timm's VisionTransformer"
        )
    if how == "tokens" and not keys:
        tokens, found = dual.encode_image_tokens(image)[1], None
    else:
        made, found = _run(dual.image_tower, dual.pixels(image), values=how == "maskclip", residual=residual, keys=keys)
        tokens = made.hidden if how == "hidden" else made.tokens
    grid = grid_of(tokens.shape[1], (image.shape[-2], image.shape[-1]))
    return DenseTokens(normalize(tokens, dim=-1), grid, None if found is None else normalize(found, dim=-1))


def grid_of(patches: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of square patches that tile a picture of this height and width; ValueError if none do."""
    rows = max(1, round(math.sqrt(patches * size[0] / size[1])))
    if patches % rows:
        raise ValueError(
            f"{patches} patches do not tile a picture of {size[0]} x {size[1]} in rows; dense features need a grid"
        )
    return rows, patches // rows


class DenseTower(nn.Module):
    """Dense features under the names that `vlp.embed.Encoder` asks for: an encoder of it is the one pass over pictures.

    A token is the vector of `how` and, if asked for, behind it that of `beside`, or the patch's key; `halves` parts
    them. The pooled feature is the mean of the tokens, which has their width.
    """

    def __init__(
        self,
        dual: Any,
        how: How,
        *,
        beside: How | Literal["keys"] | None = None,
        residual: bool = True,
        resize_mode: str | None = None,
    ) -> None:
        super().__init__()
        self.dual, self.how, self.beside, self.residual = dual, how, beside, residual
        own = dual.transform
        self.transform = own if resize_mode is None else own.model_copy(update={"resize_mode": resize_mode})

    def encode_image_tokens(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [B, W] and tokens [B, P, W] of pictures [B, 3, H, W]."""
        first = dense_tokens(self.dual, image, how=self.how, residual=self.residual, keys=self.beside == "keys")
        rows = [first.tokens]
        if self.beside == "keys":
            assert first.keys is not None
            rows.append(first.keys)
        elif self.beside is not None:
            rows.append(dense_tokens(self.dual, image, how=self.beside, residual=self.residual).tokens)
        tokens = torch.cat(rows, dim=-1)
        return tokens.mean(dim=1), tokens


def halves(tokens: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The vectors [..., dim] and what stands behind them [..., W - dim] (nothing: width 0), each of unit norm, fp32.

    An encoder norms the two as one, and keeps half precision.
    """
    return normalize(tokens[..., :dim].float(), dim=-1), normalize(tokens[..., dim:].float(), dim=-1)


def denoised(logits: Tensor, *, threshold: float = 0.5) -> Tensor:
    """Logits [..., P, C] where classes that no patch gives `threshold` of its softmax are out (prompt denoising).

    MaskCLIP. Ours: where that would leave no class, all stay (in the released code the first one wins).
    """
    gone = logits.softmax(dim=-1).amax(dim=-2, keepdim=True) < threshold
    return logits.masked_fill(gone & ~gone.all(dim=-1, keepdim=True), _OUT)


def key_smoothed(probabilities: Tensor, keys: Tensor, *, threshold: float = 1.0) -> Tensor:
    """Class probabilities [..., P, C], each patch's replaced by a mean over all patches weighted by cosine of their
    keys [..., P, width], where its best is below `threshold` (key smoothing).

    MaskCLIP. The released code norms the keys over the places instead of over the channels,
    which is no cosine; and it does not divide by the sum of (absolute) weights, so that smoothed patches outweigh the
    others in interpolation.
    """
    weight = keys @ keys.transpose(-2, -1)
    smooth = (weight / weight.abs().sum(dim=-1, keepdim=True)) @ probabilities
    return torch.where(probabilities.amax(dim=-1, keepdim=True) < threshold, smooth, probabilities)


def _run(tower: ImageTower, pixels: Tensor, *, values: bool, residual: bool, keys: bool) -> tuple[Any, Tensor | None]:
    """What the tower makes of the pictures, and if asked for the keys [B, P, width] of its last attention."""
    pool = _pool_keys(tower)
    if pool is not None:
        out = tower.run(pixels, tokens=True)
        return out, pool(out.hidden) if keys else None
    if not values and not keys:
        return tower.run(pixels, tokens=True), None
    with _alone(_last_block(tower), values=values, residual=residual) as seen:
        out = tower.run(pixels, tokens=True)
    assert out.tokens is not None
    return out, seen[0][:, -out.tokens.shape[1] :] if keys else None  # patches stand behind all other tokens


def _pool_keys(tower: Any) -> Callable[[Tensor | None], Tensor] | None:
    """The keys of a pool that attends to the patches; None for towers that pool otherwise."""
    if isinstance(tower, ResNet):
        keys: Callable[[Tensor | None], Tensor] = tower.visual.attnpool.k_proj
        return keys
    pool: Any = getattr(tower.visual.trunk, "attn_pool", None) if isinstance(tower, Timm) else None
    return None if not hasattr(pool, "kv") else lambda hidden: pool.kv(hidden).chunk(2, dim=-1)[0]


def _last_block(tower: ImageTower) -> Any:
    """The last block; ValueError for one that is not attention and MLP with residuals."""
    block: Any = tower.blocks[-1] if tower.blocks else None
    if type(block).__name__ in _BLOCKS and type(block.attn).__name__ in ("MultiheadAttention", "Attention"):
        return block
    raise ValueError(
        f"dense features: the last block of this tower is a {type(block).__name__}, of which no value path is known; "
        f"known are VisionTransformer, ModifiedResNet and timm's VisionTransformer (blocks {', '.join(_BLOCKS)}, or "
        "pool `map`). `how: tokens` takes the projected patches of any tower"
    )


@contextmanager
def _alone(block: Any, *, values: bool, residual: bool) -> Iterator[list[Tensor]]:
    """While open the list gets the keys [B, T, width] of each call, and with `values` tokens attend to themselves only.

    By a hook, so that all before and behind the block runs as it does in the tower.
    """
    norm, scale = (getattr(block, name) for name in _BLOCKS[type(block).__name__])
    seen: list[Tensor] = []

    def hook(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        x = args[0]
        h = norm(x)
        seen.append(_keys(module.attn, h))
        if not values:
            return None
        single = (x if residual else h).flatten(0, 1)[:, None]  # [B * T, 1, width]
        made = module.forward(single) if residual else scale(_attended(module, single))
        return made.reshape(x.shape)  # type: ignore[no-any-return]

    handle = block.register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def _attended(block: Any, h: Tensor) -> Any:
    if isinstance(block.attn, nn.MultiheadAttention):
        return block.attn(h, h, h, need_weights=False)[0]
    return getattr(block, "ln_attn", nn.Identity())(block.attn(h))


def _keys(attention: Any, h: Tensor) -> Tensor:
    """Keys [B, T, width] of all heads in a row, before any norm of theirs."""
    if hasattr(attention, "qkv"):
        made: Tensor = attention.qkv(h).chunk(3, dim=-1)[1]
        return made
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    return linear(h, weight.chunk(3)[1], None if bias is None else bias.chunk(3)[1])
