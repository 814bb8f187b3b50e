"""Contrast by late interaction: every patch looks for its word, every word for its patch."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import pad

from vlp import dist
from vlp.kernels.blocks import Block, full
from vlp.kernels.late import LateImpl, PadMax, late_similarity
from vlp.losses.contrast import global_mean
from vlp.losses.loss import Loss
from vlp.losses.per_sample import idle
from vlp.losses.scale import FixedScale, OwnScale
from vlp.losses.tokens import TokenPool, own_tokens, places_kept, pool_tokens, select
from vlp.types import Batch, Features

INIT_SCALE = 3.8665  # logarithm; the scale starts at 47.8


class FILIP(Loss):
    """Softmax contrast of token-wise similarities (FILIP, arXiv 2111.07783, section 3.1).

    An image's similarity to a text is the mean over its patches of the largest dot product with a word, a text's to an
    image the mean over its words of the largest with a patch: two matrices, each for its own direction. Padding is no
    word, in neither mean nor maximum; `pad_max: zero` lets the maximum over words see a zero, as in the authors' code:
    of texts that leave a place of the context empty, as theirs are padded to it; a text that fills it has none.
    With `image_keep` and `text_keep` (paper: 0.25) only the nearest tokens are gathered and compared; they are found
    within `group` consecutive slots, by default within each pair, where the paper takes all that a worker has: so the
    number of processes does not change them.

    One scale for both directions, where the authors' code has two by accident. Equal labels are positives, unless
    `positives: own`. With K captions an image, slot k contrasts the pairs that have a k-th caption; the result is the
    mean over all captions. `impl` and `block` choose how it is computed, never the value.
    """

    image_keep: float = Field(1.0, gt=0.0, le=1.0, description="share of an image's patches that is compared")
    text_keep: float = Field(1.0, gt=0.0, le=1.0, description="share of a text's words that is compared")
    group: int | None = Field(None, ge=1, description="slots among which tokens are chosen; default: each pair alone")
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0, description="share of the target spread over all columns")
    positives: Literal["label", "own"] = Field("label", description="pairs with equal labels, or only the pair itself")
    pad_max: PadMax = "exclude"
    own_scale: bool = Field(False, description="a learned scale of its own, from 47.8, in place of the model's")
    clip_logits: float | None = Field(None, gt=0.0, allow_inf_nan=False, description="their bound; authors: 100")
    temperature: float | None = Field(None, gt=0.0, allow_inf_nan=False, description="in place of a learned scale")
    wire: Literal["full", "half"] = Field("full", description="half: tokens are rounded to bfloat16 for the gather")
    impl: LateImpl = "auto"
    block: Block = None

    needs: ClassVar[frozenset[str]] = frozenset({"image_tokens", "text_tokens"})
    batchless: ClassVar[frozenset[str]] = frozenset({"filip/scale", "filip/room"})

    @model_validator(mode="after")
    def _settings_that_agree(self) -> FILIP:
        if self.own_scale and self.temperature is not None:
            raise ValueError("own_scale learns a scale and temperature fixes it; leave one of them out")
        if self.group is not None and self.image_keep == self.text_keep == 1:
            raise ValueError(
                f"group: {self.group} says among which slots tokens are chosen, and all are kept; set image_keep or "
                "text_keep (paper: 0.25), or leave group out"
            )
        return self

    def heads(self, dual: Any) -> dict[str, nn.Module]:
        """A scale, if it is to have one of its own, and with `pad_max: zero` the length that texts are padded to."""
        made: dict[str, nn.Module] = {}
        if self.own_scale:
            made[f"{self.name}_scale"] = OwnScale(f"{self.name}/scale", INIT_SCALE)
        if self.temperature is not None:
            made[f"{self.name}_scale"] = FixedScale(self.temperature)
        if self.pad_max == "zero":
            made[f"{self.name}_room"] = Room(f"{self.name}/room", dual.tokenizer.context)
        return made

    def image_tokens(self, features: Features) -> Tensor | None:
        """The tokens [B, P, D] that stand for each image."""
        return features.image_tokens

    def __call__(self, features: Features, batch: Batch) -> dict[str, Tensor]:
        """The term "contrast"."""
        image, text = self.image_tokens(features), features.text_tokens
        if image is None or text is None:
            raise ValueError(f"{self.name} compares tokens, and the model made none: dual.set_needs(objective.needs)")
        tokens = own_tokens(image, text, batch)
        tokens = select(tokens, image_keep=self.image_keep, text_keep=self.text_keep, group=self.group)
        everyone = pool_tokens(tokens, batch, half=self.wire == "half")
        everyone = everyone if self.positives == "label" else everyone.apart()
        similarities = self._similarities(everyone, self._room(features))
        by_image, by_text = (self._logits(similarity, features) for similarity in similarities)
        sums = []
        for k in range(text.shape[1]):
            valid = everyone.real[:, k]
            target = self._target(everyone, valid)
            both = _cross_entropy(by_image[..., k], target, valid) + _cross_entropy(by_text[..., k], target, valid)
            sums.append(torch.where(valid[everyone.own], both / 2, 0.0).sum())
        return {"contrast": global_mean(torch.stack(sums).sum(), everyone.num_captions) + idle(features, batch)}

    def _room(self, features: Features) -> int | None:
        """Places of a text that words can fill, if padding behind them counts."""
        if self.pad_max == "exclude":
            return None
        if (room := features.extra.get(f"{self.name}/room")) is None:
            raise ValueError(
                f"{self.name}: pad_max: zero needs its head, which knows the context: build it into the model"
            )
        return places_kept(self.text_keep, int(room.detach()))

    def _similarities(
        self, everyone: TokenPool, room: int | None
    ) -> tuple[Float[Tensor, "B N K"], Float[Tensor, "B N K"]]:
        """Of our images to everyone's texts, and of our texts to everyone's images."""
        N, K = everyone.real.shape
        image, texts, words, own = everyone.image, everyone.text, everyone.words, everyone.own
        if room is not None and texts.shape[2] < room:  # no text fills it: all have padding, also the batch's longest
            texts, words = pad(texts, (0, 0, 0, 1)), pad(words, (0, 1))
        how: dict[str, Any] = {"x_mask": None, "pad_max": self.pad_max, "impl": self.impl, "block": self.block}
        if dist.world() == 1:  # both from one product
            late = late_similarity(image, texts.flatten(0, 1), y_mask=words.flatten(0, 1), **how)
            rows, columns = late.rows, late.columns
        else:
            rows = late_similarity(image[own], texts.flatten(0, 1), y_mask=words.flatten(0, 1), want="rows", **how).rows
            ours, real = texts[own].flatten(0, 1), words[own].flatten(0, 1)
            columns = late_similarity(image, ours, y_mask=real, want="columns", **how).columns
        assert rows is not None
        assert columns is not None
        return rows.unflatten(1, (N, K)), columns.unflatten(1, (-1, K)).transpose(0, 1)

    def _logits(self, similarity: Tensor, features: Features) -> Tensor:
        if self.temperature is not None:
            logits = similarity / self.temperature
        else:
            logits = similarity * full(features.extra[f"{self.name}/scale"] if self.own_scale else features.scale)
        return logits if self.clip_logits is None else logits.clamp(-self.clip_logits, self.clip_logits)

    def _target(self, everyone: TokenPool, valid: Bool[Tensor, "N"]) -> Float[Tensor, "B N"]:
        """Even over the positives, `label_smoothing` of it even over all; the same in both directions."""
        even = valid.to(everyone.image.dtype)
        target = even * (everyone.group[everyone.own, None] == everyone.group)
        target = target / target.sum(1, keepdim=True).clamp(min=1)
        if self.label_smoothing:
            target = torch.lerp(target, (even / even.sum().clamp(min=1)).expand_as(target), self.label_smoothing)
        return target


class Room(nn.Module):
    """A head: the number of tokens that fill a text, {name: [1]} on the CPU, so that reading it waits for no device."""

    def __init__(self, name: str, room: int) -> None:
        super().__init__()
        self.name, self.room = name, room

    def forward(self, batch: Batch, towers: Any) -> dict[str, Tensor]:
        return {self.name: torch.tensor([float(self.room)])}


def _cross_entropy(
    logits: Float[Tensor, "B N"], target: Float[Tensor, "B N"], valid: Bool[Tensor, "N"]
) -> Float[Tensor, "B"]:
    """Of each row against its target, over the valid columns; finite, and to be thrown away, where none is valid."""
    partition = logits.masked_fill(~valid, torch.finfo(logits.dtype).min).logsumexp(1)
    return partition - (target * logits).sum(1)
