"""What learners of visual prompts share: pictures through the image tower in every step, and other names afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from vlp.adapters.adapter import Given, Level, class_weights
from vlp.adapters.prompted import TowerClassifier, finished, fitted_by
from vlp.adapters.prompts import STD, ClassPrompts
from vlp.adapters.shots import Shots, picture_shots
from vlp.adapters.task import Examples, Task
from vlp.adapters.tuning import Tuner, autocast, frozen
from vlp.data.augment import Augment


class TowerTuner(Tuner):
    """Tunes with the pictures of the support. `augment`: a crop of 8 to 100 % and a mirror, as published; null: none.

    What is learned ends as "visual" [depth, p, width] and, where the text tower is prompted, "text" [depth, M, width].
    """

    level: ClassVar[Level] = "towers"
    wants: ClassVar[tuple[Given, ...]] = ("support",)

    batch: int = Field(4, ge=1)
    augment: Augment | None = Augment(scale=(0.08, 1.0), flip=0.5)

    def usual_epochs(self, shots: int) -> int:
        """5."""
        return 5

    def prompts(self, encoder: Any, names: Sequence[str]) -> ClassPrompts | None:
        """Prompts around learned text vectors; None where text is the task's own."""
        return None

    def transfer(self, encoder: Any, classifier: Any, task: Task) -> TowerClassifier:
        """The learned vectors with other names."""
        made: TowerTuner = fitted_by(self, encoder, classifier)
        return made.classifier(encoder, task, classifier.learned, {"fitted": list(classifier.names)})

    def shots(self, encoder: Any, task: Task, support: Examples) -> Callable[[int], Iterator[Shots]]:
        """Epoch -> batches of pixels."""
        who = type(self).__name__
        return picture_shots(support, encoder, augment=self.augment, size=self.batch, seed=task.seed, who=who)

    def classifier(
        self, encoder: Any, task: Task, learned: Mapping[str, Tensor], said: dict[str, Any]
    ) -> TowerClassifier:
        """The classifier of what was learned, with the names of the task."""
        prompts = self.prompts(encoder, task.names)
        if prompts is None:
            weight = class_weights(encoder, task)
        else:
            text = learned["text"].detach().to(encoder.device)
            with frozen(encoder), torch.no_grad(), autocast(encoder):
                weight = finished(prompts.encode(text[0], text[1:]))
        about = self.about(encoder, task, **said)
        return TowerClassifier(
            weight, encoder=encoder, learned=learned, names=task.names, scale=encoder.scale, about=about
        )


def picture_features(encoder: Any, image: Tensor, visual: Tensor | Sequence[Tensor]) -> Float[Tensor, "B D"]:
    """Unit features of pixels with the visual prompts [depth, p, width], with gradients."""
    with encoder.dual.prompted_image(visual):
        features: Tensor = encoder.dual.encode_image(image)
    return features


def random_prompts(depth: int, count: int, width: int, rng: torch.Generator) -> Float[Tensor, "depth count width"]:
    """N(0, 0.02^2)."""
    return torch.randn(depth, count, width, generator=rng) * STD


def text_prompts(
    encoder: Any, prompts: ClassPrompts, depth: int, rng: torch.Generator
) -> Float[Tensor, "depth count width"]:
    """The context of the first block as `prompts` starts it, and random vectors for the next, at most one a block."""
    deep = random_prompts(min(depth, len(encoder.dual.text_blocks)) - 1, prompts.count, prompts.width, rng)
    first = prompts.first(rng)
    return torch.cat([first[None], deep.to(first)])
