"""Independent prompts in both towers (IVLP: Rasheed et al. 2023; the baseline of MaPLe and the body of PromptSRC)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vlp.adapters.prompted import TowerClassifier
from vlp.adapters.prompts import ClassPrompts
from vlp.adapters.shots import Shots
from vlp.adapters.task import Task
from vlp.adapters.tower_tuner import TowerTuner, picture_features, random_prompts, text_prompts
from vlp.adapters.tuning import frozen


class IVLP(TowerTuner):
    """VPT in the image tower and a context with deep vectors in the text tower, learned apart (2210.03117, section 3).

    The first `tokens` words of `words` are learned and the others stay; the next `depth` - 1 text blocks get random
    vectors in their place. `visual_tokens` and `visual_depth` are VPT's, and 0 tokens leave the image tower as it is.
    A tower of fewer blocks has prompts at all of them.
    """

    lr: float = Field(0.0035, gt=0)
    words: str | None = "a photo of a"
    tokens: int = Field(2, ge=1)
    depth: int = Field(12, ge=1)
    visual_tokens: int = Field(2, ge=0)
    visual_depth: int = Field(12, ge=1)

    def prompts(self, encoder: Any, names: Sequence[str]) -> ClassPrompts:
        """Around the first of the words."""
        return ClassPrompts(encoder, names, words=self.words, count=self.tokens)

    def fit(self, encoder: Any, task: Task) -> TowerClassifier:
        """A classifier over pictures."""
        support = self.given(task, "support")
        prompts = self.prompts(encoder, task.names)
        learned = self.start(encoder, prompts, task.seed)
        with frozen(encoder):
            loss = self.loss(encoder, task, prompts, learned)
            said = self.tune(
                encoder,
                learned,
                self.shots(encoder, task, support),
                loss,
                epochs=self.epochs_for(support),
                after_epoch=self.keep(learned, self.epochs_for(support)),
            )
        return self.classifier(encoder, task, dict(learned.items()), said)

    def start(self, encoder: Any, prompts: ClassPrompts, seed: int) -> nn.ParameterDict:
        """What is learned, before it is."""
        rng = torch.Generator().manual_seed(seed)
        text = text_prompts(encoder, prompts, self.depth, rng)
        depth = min(self.visual_depth, len(encoder.dual.image_blocks))
        visual = random_prompts(depth, self.visual_tokens, encoder.dual.image_tower.width, rng)
        return nn.ParameterDict({"text": nn.Parameter(text), "visual": nn.Parameter(visual)}).to(encoder.device)

    def loss(
        self, encoder: Any, task: Task, prompts: ClassPrompts, learned: nn.ParameterDict
    ) -> Callable[[Shots], Tensor]:
        """The loss of a batch: cross-entropy."""
        scale = encoder.scale

        def value(shots: Shots) -> Tensor:
            weight = prompts.encode(learned["text"][0], learned["text"][1:])
            features = picture_features(encoder, shots.image, learned["visual"])
            return cross_entropy(scale * features @ weight.to(features.dtype).T, shots.label)

        return value

    def keep(self, learned: nn.ParameterDict, epochs: int) -> Callable[[int], None] | None:
        """What happens after each epoch: nothing, so that the last state stays."""
        return None
