"""A context that depends on the picture (CoCoOp, Zhou et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from vlp.adapters.adapter import Given, Level
from vlp.adapters.prompted import ContextClassifier, finished, fitted_by, needed, refuse_other_backbone
from vlp.adapters.prompts import ClassPrompts
from vlp.adapters.shots import Shots, feature_shots
from vlp.adapters.task import Task
from vlp.adapters.tuning import Tuner, autocast, frozen, seeded_linear


class CoCoOp(Tuner):
    """Vectors v_m + pi(x), pi(x) = W_2 relu(W_1 f(x)) from the unit feature of the picture (2203.05557, section 3.2).

    The hidden layer is D / 16 wide. Text features are made for every picture, in training and afterwards. The released
    weights of pi start as torch draws them, so that untrained it is far from zero-shot; `zero_start` has W_2 = 0.
    Learns on stored features; in a causal tower the beginning of a picture's prompts runs once, the names behind it.
    """

    level: ClassVar[Level] = "text"
    wants: ClassVar[tuple[Given, ...]] = ("support",)
    views: ClassVar[int] = 8

    batch: int = Field(1, ge=1)
    words: str | None = "a photo of a"
    tokens: int | None = Field(None, ge=1)
    zero_start: bool = False

    def usual_epochs(self, shots: int) -> int:
        """10."""
        return 10

    def fit(self, encoder: Any, task: Task) -> ConditionalClassifier:
        """A classifier that runs the text tower for each picture, over features."""
        support = self.given(task, "support")
        prompts = self.prompts(encoder, task.names)
        learned = self._start(encoder, prompts, task, width=support.image.shape[1])
        scale = encoder.scale

        def loss(shots: Shots) -> Tensor:
            return cross_entropy(scale * cosines(prompts, dict(learned.items()), shots.image), shots.label)

        shots = feature_shots(support, size=self.batch, seed=task.seed, device=encoder.device)
        with frozen(encoder):
            said = self.tune(encoder, learned, shots, loss, epochs=self.epochs_for(support))
        return self._classifier(encoder, task, dict(learned.items()), said)

    def transfer(self, encoder: Any, classifier: Any, task: Task) -> ConditionalClassifier:
        """The learned vectors and pi in front of other names."""
        made: CoCoOp = fitted_by(self, encoder, classifier)
        return made._classifier(encoder, task, classifier.learned, {"fitted": list(classifier.names)})

    def prompts(self, encoder: Any, names: Sequence[str]) -> ClassPrompts:
        """Around the words, or around random vectors."""
        return ClassPrompts(encoder, names, words=self.words, count=self.tokens)

    def _start(self, encoder: Any, prompts: ClassPrompts, task: Task, *, width: int) -> nn.ParameterDict:
        rng = torch.Generator().manual_seed(task.seed)
        hidden = max(1, width // 16)
        context = prompts.first(rng)
        inner, outer = seeded_linear(width, hidden, rng), seeded_linear(hidden, prompts.width, rng)
        if self.zero_start:
            nn.init.zeros_(outer.weight)
            nn.init.zeros_(outer.bias)
        layers = {"w1": inner.weight, "b1": inner.bias, "w2": outer.weight, "b2": outer.bias}
        return nn.ParameterDict({"context": nn.Parameter(context), **layers}).to(encoder.device)

    def _classifier(
        self, encoder: Any, task: Task, learned: Mapping[str, Tensor], said: dict[str, Any]
    ) -> ConditionalClassifier:
        prompts = self.prompts(encoder, task.names)
        with frozen(encoder), torch.no_grad(), autocast(encoder):
            weight = finished(prompts.encode(learned["context"].detach().to(encoder.device)))
        about = self.about(encoder, task, **said)
        return ConditionalClassifier(
            weight, encoder=encoder, learned=learned, names=task.names, scale=encoder.scale, about=about
        )


def cosines(prompts: ClassPrompts, learned: Mapping[str, Tensor], image: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
    """Cosines of unit features with the prompts that each picture makes."""
    image = image.to(learned["w1"].dtype)
    shift = relu(image @ learned["w1"].T + learned["b1"]) @ learned["w2"].T + learned["b2"]
    text = prompts.encode_each(learned["context"] + shift[:, None])
    return torch.einsum("bd,bcd->bc", image.to(text.dtype), text)


class ConditionalClassifier(ContextClassifier):
    """A Classifier over features, of the encoder's text tower; `weight` [C, D] are its class weights at pi(x) = 0."""

    kind = "conditional_context"

    def __init__(self, weight: Float[Tensor, "C D"], *, encoder: Any, **given: Any) -> None:
        super().__init__(weight, **given)
        refuse_other_backbone(self, encoder)
        self.encoder = encoder
        self._prompts = CoCoOp.model_validate(self.about["settings"]).prompts(encoder, self.names)

    @classmethod
    def load(cls, folder: Path, encoder: Any = None) -> Self:
        """What `save` wrote, with the model it was fitted on; ValueError without it, or with another."""
        return cls(encoder=needed(encoder, folder), **cls.read(folder))

    def __call__(self, inputs: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Logits of features of unit norm, some pictures at a time."""
        encoder = self.encoder
        learned = {name: tensor.to(encoder.device) for name, tensor in self.learned.items()}
        prompts = self._prompts
        at_once = max(1, encoder.batch_size * encoder.dual.context // (len(self.names) * prompts.tokens))
        rows = []
        with frozen(encoder), torch.no_grad(), autocast(encoder):
            for part in inputs.split(at_once):
                rows.append(cosines(prompts, learned, part.to(encoder.device)).float().cpu())
        return self.scale * torch.cat(rows)
