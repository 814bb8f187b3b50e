"""Prompts in both towers held near the frozen model (PromptSRC, Khattak et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, l1_loss

from vlp.adapters.adapter import class_weights
from vlp.adapters.ivlp import IVLP
from vlp.adapters.prompts import ClassPrompts
from vlp.adapters.shots import Shots
from vlp.adapters.task import Task
from vlp.adapters.tower_tuner import picture_features
from vlp.text.templates import template_set


class PromptSRC(IVLP):
    """IVLP with features and logits held near the frozen model's, averaged over epochs (2307.06948, section 3).

    loss = CE + text * mean|w - w'| + image * mean|f - f'| + sum p' ln(p'/p) / (B C), with w' over the templates
    `anchors` and f', p' of the frozen model on the same pixels. Features of single templates are of unit norm before
    they are averaged, which the released code forgets. The prompts are the mean of those after every epoch t = 1 .. E,
    weighted by N(t; centre * E, (spread * E)^2): 15 and 1 of 20 epochs for base-to-new, as here; published for few
    shots are 30 and 30, or 45 and 5, of 50, chosen by data set.
    """

    lr: float = Field(0.0025, gt=0)
    tokens: int = Field(4, ge=1)
    depth: int = Field(9, ge=1)
    visual_tokens: int = Field(4, ge=0)
    visual_depth: int = Field(9, ge=1)
    text: float = Field(25.0, ge=0)
    image: float = Field(10.0, ge=0)
    logits: float = Field(1.0, ge=0)
    anchors: str = "openai_imagenet"  # a named set of templates
    centre: float = Field(0.75, gt=0, le=1)
    spread: float = Field(0.05, gt=0)

    def usual_epochs(self, shots: int) -> int:
        """20."""
        return 20

    def loss(
        self, encoder: Any, task: Task, prompts: ClassPrompts, learned: nn.ParameterDict
    ) -> Callable[[Shots], Tensor]:
        """Cross-entropy with the three terms that hold it."""
        held = class_weights(encoder, replace(task, text=None, templates=template_set(self.anchors)))
        held, scale = held.to(encoder.device), encoder.scale
        stored = None if self.augment is not None or task.support is None else task.support.image

        def value(shots: Shots) -> Tensor:
            weight = prompts.encode(learned["text"][0], learned["text"][1:])
            features = picture_features(encoder, shots.image, learned["visual"])
            with torch.no_grad():  # stored features are of pictures as they are, and these may be augmented
                frozen = encoder.dual.encode_image(shots.image) if stored is None else stored[shots.rows]
            frozen, anchor = frozen.to(features), held.to(features.dtype)
            logits, before = scale * features @ weight.to(features.dtype).T, scale * frozen @ anchor.T
            return (
                cross_entropy(logits, shots.label)
                + self.text * l1_loss(weight, held.to(weight.dtype))
                + self.image * l1_loss(features, frozen)
                + self.logits * divergence(logits, before)
            )

        return value

    def keep(self, learned: nn.ParameterDict, epochs: int) -> Callable[[int], None]:
        """Adds the state after each epoch to a weighted sum, which takes its place after the last."""
        share = gaussian(epochs, self.centre * epochs, self.spread * epochs)
        sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in learned.items()}

        @torch.no_grad()
        def add(epoch: int) -> None:
            for name, tensor in learned.items():
                sums[name] += share[epoch].item() * tensor.double()
                if epoch == epochs - 1:
                    tensor.copy_(sums[name])

        return add


def divergence(logits: Float[Tensor, "B C"], before: Float[Tensor, "B C"]) -> Tensor:
    """KL(softmax(before) || softmax(logits)), summed and divided by B C."""
    found = kl_div(logits.log_softmax(dim=1), before.log_softmax(dim=1), reduction="sum", log_target=True)
    return found / logits.numel()


def gaussian(epochs: int, mean: float, std: float) -> Float[Tensor, "E"]:
    """Weights of epochs 1 .. E in proportion to N(t; mean, std^2), which add up to 1."""
    epoch = torch.arange(1, epochs + 1, dtype=torch.float64)
    return torch.softmax(-0.5 * ((epoch - mean) / std).square(), dim=0)
