"""Pictures as a caption sees them: FLAIR's text-conditioned attention pooling, under a sigmoid loss."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear, logsigmoid, normalize, scaled_dot_product_attention

from vlp import dist
from vlp.kernels.blocks import Block, Impl, full, no_autocast
from vlp.kernels.recompute import in_parts
from vlp.kernels.softplus import pair_softplus
from vlp.losses.contrast import Pool, global_mean, pool, positive_sums
from vlp.losses.loss import Loss
from vlp.types import Batch, Features

_BLOCK_NUMBERS = {"cpu": 1 << 22}  # of what one block of pictures holds for all its texts
_ACCELERATOR = 1 << 26


class Flair(Loss):
    """FLAIR (arXiv 2412.03561): mean of a text-conditioned and a global sigmoid loss, s and b the model's.

    "conditioned": v_i|y pools the patches of picture i by attention whose query is caption y. The texts T_i of i are
    its own captions and one caption of each other picture of the global batch:
    sum_i 1/|T_i| sum_(y in T_i) -log sigmoid(q (s v_i|y . y + b)).
    "global": sum over pictures i and all captions y of -log sigmoid(q (s x_i . y + b)), divided by the number of
    captions. q = +1 for captions of pairs with i's label, else -1. Both terms come with their weight 1/2.

    Our deviations: the caption drawn of picture j is the same for all other pictures, so that one query a picture is
    gathered; |T_i| counts the captions that are there; patches enter with unit length, before the layer's own norms.
    """

    num_heads: int = Field(8, ge=1, description="of the attention; divides the joint width")
    impl: Impl = "auto"
    block: Block = None

    needs: ClassVar[frozenset[str]] = frozenset({"image_tokens", "bias"})
    cuts: ClassVar[bool] = False
    batchless: ClassVar[frozenset[str]] = frozenset({"flair/projection", "flair/offset"})

    def heads(self, dual: Any) -> dict[str, nn.Module]:
        """The attention layer."""
        return {"flair": TextConditionedPooling(dual.dim, num_heads=self.num_heads)}

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """The terms "conditioned" and "global", each with its half."""
        if features.bias is None:
            raise ValueError('flair needs features.bias; build the model with needs={"bias", "image_tokens"}')
        if "flair/queries" not in features.extra:
            raise ValueError("flair needs the queries, keys and values of its head: build the model with its heads")
        everyone = pool(features, batch)
        scale, bias = full(features.scale), full(features.bias)
        with no_autocast(everyone.image):
            conditioned = self._conditioned(everyone, _material(features, batch), scale, bias)
        return {"conditioned": conditioned / 2, "global": self._global(everyone, scale, bias) / 2}

    def _conditioned(self, everyone: Pool, ours: Material, scale: Tensor, bias: Tensor) -> Tensor:
        own, real = everyone.own, everyone.real
        picture, place = torch.arange(len(ours.draw), device=real.device), drawn(real[own], ours.draw)
        text = everyone.text[own]
        rows = torch.cat([ours.queries[picture, place].flatten(1), text[picture, place]], 1)
        rows = dist.gather(rows)
        D = text.shape[-1]
        others = Others(
            queries=rows[:, :-D].unflatten(1, ours.queries.shape[2:]),
            text=rows[:, -D:],
            real=real.any(1),
            group=everyone.group,
        )
        given = (ours.keys, ours.values, ours.queries, text, real[own], own.start + picture)
        term = partial(_block, others=others, projection=ours.projection, offset=ours.offset, scale=scale, bias=bias)
        each = in_parts(term, self._parts(ours, len(others.text)), *given)
        return global_mean(each.sum(), scale.new_ones(()))

    def _parts(self, ours: Material, num_others: int) -> list[slice]:
        """Slices of pictures, each small enough to be held with all its texts."""
        B, K, H, d = ours.queries.shape
        if self.impl == "reference":
            return [slice(0, B)]
        numbers = _BLOCK_NUMBERS.get(ours.keys.device.type, _ACCELERATOR)
        texts = (K + num_others) * H * (ours.keys.shape[1] + 4 * d)
        size = self.block or max(1, numbers // texts)
        return [slice(start, min(start + size, B)) for start in range(0, B, size)]

    def _global(self, everyone: Pool, scale: Tensor, bias: Tensor) -> Tensor:
        own, group, seen = everyone.own, everyone.group, everyone.real.any(1)
        image, texts = everyone.image[own], everyone.text.flatten(0, 1)
        pairs = pair_softplus(
            image,
            texts,
            scale,
            bias,
            row_valid=seen[own],
            column_valid=everyone.real.flatten(),
            impl=self.impl,
            block=self.block,
        )
        # softplus(-z) = softplus(z) - z, and the sum of z over positives is linear
        sums = positive_sums(everyone.text.sum(1), group=group, own=own)
        counts = torch.zeros_like(group).index_add_(0, group, everyone.real.sum(1))[group[own]]
        positives = scale * (image * sums).sum(1) + bias * counts
        return global_mean(pairs - torch.where(seen[own], positives, 0.0).sum(), everyone.num_captions)


class Material(NamedTuple):
    """What the head made of this rank's batch, zero where there is no picture or caption; in fp32 or fp64."""

    keys: Tensor  # [B, P, H, d]
    values: Tensor  # [B, P, H, d]
    queries: Tensor  # [B, K, H, d]
    projection: Tensor  # [D, H * d]
    offset: Tensor  # [D]
    draw: Tensor  # long [B]


class Others(NamedTuple):
    """One caption of each picture of all ranks."""

    queries: Tensor  # [N, H, d]
    text: Tensor  # [N, D]
    real: Tensor  # bool [N]; the picture has a caption
    group: Tensor  # long [N]; equal numbers are positives


def _material(features: Features, batch: Batch) -> Material:
    made = {name: features.extra[f"flair/{name}"] for name in Material._fields}
    real = batch.valid[:, None] & batch.caption_mask
    for name, mask in (("keys", batch.valid[:, None]), ("values", batch.valid[:, None]), ("queries", real)):
        made[name] = torch.where(mask[..., None, None], full(made[name]), 0.0)
    return Material(**made | {name: full(made[name]) for name in ("projection", "offset")})


def drawn(real: Bool[Tensor, "B K"], draw: Int[Tensor, "B"]) -> Int[Tensor, "B"]:
    """Places of real captions, one a row, chosen by non-negative random numbers; 0 in rows that have none."""
    number = draw % real.sum(1).clamp(min=1)
    return ((real.cumsum(1) - 1 == number[:, None]) & real).int().argmax(1)


def attend(
    queries: Float[Tensor, "B T H d"],
    keys: Float[Tensor, "B P H d"],
    values: Float[Tensor, "B P H d"],
    projection: Float[Tensor, "D width"],
    offset: Float[Tensor, "D"],
) -> Float[Tensor, "B T D"]:
    """Unit vectors of the patches as each query sees them; a patch of zeros lets a query see nothing."""
    nothing = torch.zeros_like(keys[:, :1])
    seen = scaled_dot_product_attention(
        queries.transpose(1, 2),
        torch.cat([keys, nothing], 1).transpose(1, 2),
        torch.cat([values, nothing], 1).transpose(1, 2),
    )
    return normalize(linear(seen.transpose(1, 2).flatten(2), projection, offset), dim=-1)


def _block(
    keys: Tensor,
    values: Tensor,
    queries: Tensor,
    text: Tensor,
    real: Tensor,
    index: Tensor,
    *,
    others: Others,
    projection: Tensor,
    offset: Tensor,
    scale: Tensor,
    bias: Tensor,
) -> Tensor:
    """For some pictures, number `index` of all, the mean over their texts of -log sigmoid(q z); 0 without a caption."""
    queries = torch.cat([queries, others.queries.expand(len(index), -1, -1, -1)], 1)
    text = torch.cat([text, others.text.expand(len(index), -1, -1)], 1)
    z = scale * (attend(queries, keys, values, projection, offset) * text).sum(-1) + bias
    everyone = torch.arange(len(others.text), device=index.device)
    there = torch.cat([real, others.real & (index[:, None] != everyone)], 1)
    same = torch.cat([torch.ones_like(real), others.group[index][:, None] == others.group], 1)
    each = torch.where(there, -logsigmoid(torch.where(same, z, -z)), 0.0)
    return torch.where(real.any(1), each.sum(1) / there.sum(1).clamp(min=1), 0.0)


class TextConditionedPooling(nn.Module):
    """One cross-attention layer from a caption's feature to a picture's patches, with norms before its projections."""

    def __init__(self, dim: int, *, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"flair: num_heads {num_heads} does not divide the joint width {dim}; give one that does")
        self.num_heads = num_heads
        self.norm_query, self.norm_key, self.norm_value = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, batch: Batch, towers: Any) -> dict[str, Tensor]:
        """What the loss needs to pool any picture for any text, also those of other ranks and micro-batches."""
        tokens, text = towers.features.image_tokens, towers.features.text
        return {
            "flair/keys": self._split(self.key(self.norm_key(tokens))),
            "flair/values": self._split(self.value(self.norm_value(tokens))),
            "flair/queries": self._split(self.query(self.norm_query(text))),
            "flair/projection": self.out.weight,
            "flair/offset": self.out.bias,
            "flair/draw": torch.randint(1 << 31, (len(text),), device=text.device),
        }

    def condition(self, image_tokens: Tensor, text: Tensor) -> Tensor:
        """Unit features [B, T, D] of B pictures as T texts see them, to re-rank by their products with the texts.

        image_tokens: [B, P, D] of unit length; text: unit [T, D] for all pictures, or [B, T, D], each picture's own.
        """
        text = text.expand(len(image_tokens), *text.shape[-2:])
        keys, values = self.key(self.norm_key(image_tokens)), self.value(self.norm_value(image_tokens))
        queries = self.query(self.norm_query(text))
        return attend(self._split(queries), self._split(keys), self._split(values), self.out.weight, self.out.bias)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.num_heads, -1)
