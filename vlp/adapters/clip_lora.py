"""Low-rank updates of all attention of both towers (CLIP-LoRA, Zanella and Ben Ayed 2024)."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from vlp.adapters.fitting import PictureBatches, Recipe, minimise, picture_loss, seeded
from vlp.adapters.task import Examples, Task
from vlp.adapters.tuned import SIDES, TunedClassifier, own_state, prompts, with_own_head
from vlp.adapters.tuning import frozen
from vlp.adapters.weight_space import WeightSpace
from vlp.adapters.weights import State
from vlp.data.augment import Augment

# How implementations name the weights that make queries, keys and values, and how many of them lie in one tensor.
PACKED = (
    (re.compile(r"(^|\.)(in_proj_weight|(in_proj|qkv|Wqkv)\.weight)$"), 3),  # torch, open_clip, timm, ModernBERT
    (re.compile(r"(^|\.)kv\.weight$"), 2),  # timm's attention pool
    (re.compile(r"(^|\.)([qkv](_proj|_lin)?|query|key|value)\.weight$"), 1),  # Hugging Face, ResNet's attention pool
    (re.compile(r"(^|\.)[qkv]_proj_weight$"), 1),  # torch, where keys have another width
)


class Part(NamedTuple):
    """B [out, r] and A [r, in] of the update B A of one of the matrices in a tensor."""

    down: Tensor  # A
    up: Tensor  # B


class ClipLora(WeightSpace):
    """W + scaling B A for queries, keys and values of every attention of both towers (2405.18541).

    A starts as torch starts a layer, B at zero, which is zero-shot; scaling = alpha / sqrt(r), as the code has it. Text
    features are made anew each step. AdamW, cosine, 500 steps of 32 pictures a shot (`steps`: another number). The rate
    is meant for logits of scale `lr_for`, CLIP's; for a model of scale s it is multiplied by lr_for / s, since AdamW's
    step is as long whatever the scale, and what it does to logits is s times that (None: as it is). Fused tensors are
    updated third by third, and the sum is what the classifier holds, so that nothing is left to merge. Ours: dropout
    leaves out inputs of A for a whole batch, since a weight has no inputs of its own; the models' own dropout is off.
    The last step counts: nothing is chosen.
    """

    method: ClassVar[str] = "clip_lora"

    towers: Literal["image", "both"] = "both"
    r: int = Field(2, ge=1)
    alpha: float = Field(1.0, gt=0)
    dropout: float = Field(0.25, ge=0, lt=1)
    lr: float = Field(2e-4, gt=0)
    lr_for: float | None = Field(100.0, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    batch_size: int = Field(32, ge=1)
    steps_per_shot: int = Field(500, ge=0)
    steps: int | None = Field(None, ge=0)
    augment: Augment | None = Augment(scale=(0.08, 1.0), flip=0.5)

    def fit(self, encoder: Any, task: Task) -> TunedClassifier:
        """A classifier with the updated attention weights."""
        support = self.given(task, "support")
        both = self.towers == "both"
        words = prompts(encoder, task, who="clip_lora with towers: both") if both else None
        own = own_state(encoder, task, attention_weights(encoder.dual, ("image", "text") if both else ("image",)))
        scaling = self.alpha / math.sqrt(self.r)
        with seeded(encoder.device, task.seed) as rng, frozen(encoder):
            parts = start(own, self.r, rng)
            leaves = [leaf for some in parts.values() for part in some for leaf in part]
            batches = PictureBatches(encoder, support, self.augment, rng, who=self.method)

            def compose() -> State:
                return updated(own, parts, scaling, dropout=self.dropout, rng=rng)

            loss = picture_loss(encoder, batches, support.known, compose, words=words)
            factor = 1.0 if self.lr_for is None else self.lr_for / encoder.scale
            recipe = Recipe(
                self._steps(support), self.batch_size, self.lr * factor, self.weight_decay, final=1e-6 / self.lr
            )
            minimise(
                [{"params": leaves}],
                loss,
                rows=len(support),
                recipe=recipe,
                rng=rng,
                what=self.method,
                quiet=encoder.quiet,
            )
        with torch.no_grad():
            merged = updated(own, parts, scaling)
        trained = sum(leaf.numel() for leaf in leaves)
        changed = with_own_head(encoder, task, merged)
        return self.classifier(encoder, task, changed, parameters=trained, rate_factor=factor)

    def _steps(self, support: Examples) -> int:
        shots = int(support.known.bincount().max())
        return self.steps_per_shot * shots if self.steps is None else self.steps


def attention_weights(dual: Any, sides: Sequence[str]) -> list[str]:
    """Names of all weights that make queries, keys or values in these towers; ValueError for a tower without any."""
    found = []
    for side in sides:
        names = [name for name, _ in dual.tower_parameters(side) if _matrices(name)]
        if not names:
            raise ValueError(
                f"clip_lora: no queries, keys and values are known in the {side} tower ({SIDES[side]}*); "
                "use finetune, or towers: image where only the text tower has none"
            )
        found += names
    return found


def start(own: State, r: int, rng: torch.Generator) -> dict[str, list[Part]]:
    """For every matrix in every attention weight A, drawn within 1 / sqrt(inputs), and B, zero; both take gradients."""
    parts = {}
    for name, weight in own.items():
        if count := _matrices(name):
            rows, inputs = len(weight) // count, weight[0].numel()
            bound = 1 / math.sqrt(inputs)
            parts[name] = [
                Part(
                    torch.empty(r, inputs).uniform_(-bound, bound, generator=rng).to(weight).requires_grad_(),
                    torch.zeros(rows, r, dtype=weight.dtype, device=weight.device).requires_grad_(),
                )
                for _ in range(count)
            ]
    return parts


def updated(
    own: State,
    parts: dict[str, list[Part]],
    scaling: float,
    *,
    dropout: float = 0.0,
    rng: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """W + scaling B A, with gradients; dropout zeroes columns of A, and the others grow for it."""
    state = dict(own)
    for name, some in parts.items():
        updates = []
        for part in some:
            down = part.down
            if dropout and rng is not None:
                kept = torch.rand(down.shape[1], generator=rng) >= dropout
                down = down * kept.to(down) / (1 - dropout)
            updates.append(part.up @ down)
        state[name] = own[name] + scaling * torch.cat(updates).reshape(own[name].shape)
    return state


def _matrices(name: str) -> int:
    """How many of queries, keys and values are made by the tensor of this name; 0: none."""
    return next((count for pattern, count in PACKED if pattern.search(name)), 0)
