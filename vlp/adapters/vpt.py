"""Learned tokens in the image tower (VPT, Jia et al. 2022), for a dual encoder."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vlp.adapters.adapter import class_weights
from vlp.adapters.prompted import TowerClassifier
from vlp.adapters.shots import Shots
from vlp.adapters.task import Task
from vlp.adapters.tower_tuner import TowerTuner, picture_features, random_prompts
from vlp.adapters.tuning import frozen


class VPT(TowerTuner):
    """`tokens` vectors behind the patches, fresh ones at each of the first `depth` blocks (2203.12119, section 3.2).

    depth: 1 is the shallow form. Text stays as the task's templates make it. The vectors pass the norm in front of the
    blocks, as in the code of MaPLe's authors for CLIP, and are left out of what the tower pools over. A tower of fewer
    blocks has prompts at all of them. `tokens: 0` is zero-shot.
    """

    lr: float = Field(0.0025, gt=0)
    tokens: int = Field(8, ge=0)
    depth: int = Field(12, ge=1)

    def fit(self, encoder: Any, task: Task) -> TowerClassifier:
        """A classifier over pictures."""
        support = self.given(task, "support")
        weight = class_weights(encoder, task).to(encoder.device)
        depth = min(self.depth, len(encoder.dual.image_blocks))
        rng = torch.Generator().manual_seed(task.seed)
        start = random_prompts(depth, self.tokens, encoder.dual.image_tower.width, rng)
        learned = nn.ParameterDict({"visual": nn.Parameter(start.to(encoder.device))})
        scale = encoder.scale

        def loss(shots: Shots) -> Tensor:
            features = picture_features(encoder, shots.image, learned["visual"])
            return cross_entropy(scale * features @ weight.to(features.dtype).T, shots.label)

        epochs = self.epochs_for(support) if self.tokens else 0
        with frozen(encoder):
            said = self.tune(encoder, learned, self.shots(encoder, task, support), loss, epochs=epochs)
        return self.classifier(encoder, task, dict(learned.items()), said)
