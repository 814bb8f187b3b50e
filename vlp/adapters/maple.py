"""Prompts of the image tower made from those of the text tower (MaPLe, Khattak et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vlp.adapters.prompted import TowerClassifier
from vlp.adapters.prompts import ClassPrompts
from vlp.adapters.shots import Shots
from vlp.adapters.task import Task
from vlp.adapters.tower_tuner import TowerTuner, picture_features, text_prompts
from vlp.adapters.tuning import frozen, seeded_linear


class MaPLe(TowerTuner):
    """Text prompts P_j at the first `depth` blocks, and visual ones F_j(P_j), F_j linear (2210.03117, section 3.2).

    P_0 are the first `tokens` words of `words`, the others random. Widths are the towers' own, where the released code
    has 512 and 768. Depth ends where the shorter tower ends. What is saved are the finished prompts of both towers.
    """

    lr: float = Field(0.0035, gt=0)
    words: str | None = "a photo of a"
    tokens: int = Field(2, ge=1)
    depth: int = Field(9, ge=1)

    def prompts(self, encoder: Any, names: Sequence[str]) -> ClassPrompts:
        """Around the first of the words."""
        return ClassPrompts(encoder, names, words=self.words, count=self.tokens)

    def fit(self, encoder: Any, task: Task) -> TowerClassifier:
        """A classifier over pictures."""
        support = self.given(task, "support")
        prompts = self.prompts(encoder, task.names)
        learned = Coupled(encoder, prompts, depth=self.depth, seed=task.seed)
        scale = encoder.scale

        def loss(shots: Shots) -> Tensor:
            weight = prompts.encode(learned.text[0], learned.text[1:])
            features = picture_features(encoder, shots.image, learned.visual())
            return cross_entropy(scale * features @ weight.to(features.dtype).T, shots.label)

        with frozen(encoder):
            shots = self.shots(encoder, task, support)
            said = self.tune(encoder, learned, shots, loss, epochs=self.epochs_for(support))
        with torch.no_grad():
            made = {"text": learned.text, "visual": learned.visual()}
        return self.classifier(encoder, task, made, said)


class Coupled(nn.Module):
    """Text prompts [depth, M, text width], and a linear layer a depth from text width to image width."""

    def __init__(self, encoder: Any, prompts: ClassPrompts, *, depth: int, seed: int) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        depth = min(depth, len(encoder.dual.text_blocks), len(encoder.dual.image_blocks))
        self.text = nn.Parameter(text_prompts(encoder, prompts, depth, rng))
        width = encoder.dual.image_tower.width
        self.couplings = nn.ModuleList(seeded_linear(prompts.width, width, rng) for _ in range(depth))
        self.to(encoder.device)

    def visual(self) -> Tensor:
        """Visual prompts [depth, M, image width]."""
        return torch.stack([couple(text) for couple, text in zip(self.couplings, self.text, strict=True)])
