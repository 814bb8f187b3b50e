"""Prompt learners opened up: what one learns, and the features and class weights made of it, for other losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vlp.adapters.adapter import class_weights
from vlp.adapters.coop import CoOp
from vlp.adapters.ivlp import IVLP
from vlp.adapters.maple import Coupled, MaPLe
from vlp.adapters.prompted import ContextClassifier
from vlp.adapters.promptsrc import PromptSRC
from vlp.adapters.shots import Shots, feature_shots
from vlp.adapters.task import Examples, Task
from vlp.adapters.tower_tuner import TowerTuner, picture_features, random_prompts
from vlp.adapters.tuning import Tuner
from vlp.adapters.vpt import VPT


class Opened:
    """A prompt learner before its first step. `learned` holds its parameters; it is drawn as the learner draws it."""

    learned: nn.Module

    def __init__(self, learner: Tuner, encoder: Any, task: Task) -> None:
        self.encoder, self.task, self.learner = encoder, task, learner

    @property
    def idle(self) -> bool:
        """Whether there is nothing to learn."""
        return not any(parameter.numel() for parameter in self.learned.parameters())

    def vectors(self) -> Mapping[str, Tensor]:
        """What a classifier keeps of the parameters."""
        raise NotImplementedError

    def weights(self, extra: Sequence[str] = ()) -> Callable[[], Float[Tensor, "C D"]]:
        """Unit class weights of the task's names, then of others, as they are whenever it is called."""
        raise NotImplementedError

    def features(self, image: Tensor) -> Float[Tensor, "B D"]:
        """Unit features of what `shots` gives."""
        raise NotImplementedError

    def shots(self, support: Examples) -> Callable[[int], Iterator[Shots]]:
        """Epoch -> batches, as the learner takes them."""
        raise NotImplementedError

    def loss(self, shots: Shots, features: Float[Tensor, "B D"], weight: Float[Tensor, "C D"]) -> Tensor:
        """The learner's own loss; `weight` are those of the task's names."""
        return cross_entropy(self.encoder.scale * features.to(weight.dtype) @ weight.T, shots.label)

    def keep(self, epochs: int) -> Callable[[int], None] | None:
        """What the learner does after each epoch."""
        return None


class OpenContext(Opened):
    """CoOp and what is built on it: a context, over stored features."""

    learner: CoOp

    def __init__(self, learner: CoOp, encoder: Any, task: Task) -> None:
        super().__init__(learner, encoder, task)
        prompts = learner._prompts(encoder, task.names)
        start = prompts.first(torch.Generator().manual_seed(task.seed), each=learner.specific)
        self.learned = nn.ParameterDict({"context": nn.Parameter(start)})
        self._term = learner.term(encoder, task)

    def vectors(self) -> Mapping[str, Tensor]:
        return dict(self.learned.items())  # type: ignore[operator]

    def weights(self, extra: Sequence[str] = ()) -> Callable[[], Float[Tensor, "C D"]]:
        if extra and self.learner.specific:
            raise ValueError("specific: true learns a context for each of its classes, and none for other ones")
        prompts = self.learner._prompts(self.encoder, [*self.task.names, *extra])
        return lambda: prompts.encode(self.vectors()["context"])

    def features(self, image: Tensor) -> Float[Tensor, "B D"]:
        return image

    def shots(self, support: Examples) -> Callable[[int], Iterator[Shots]]:
        return feature_shots(support, size=self.learner.batch, seed=self.task.seed, device=self.encoder.device)

    def loss(self, shots: Shots, features: Float[Tensor, "B D"], weight: Float[Tensor, "C D"]) -> Tensor:
        value = super().loss(shots, features, weight)
        return value if self._term is None else value + self._term(weight)


class OpenTowers(Opened):
    """VPT, IVLP, MaPLe and PromptSRC: vectors in the image tower, and in the text tower but for VPT, over pictures."""

    learner: TowerTuner

    def __init__(self, learner: TowerTuner, encoder: Any, task: Task) -> None:
        super().__init__(learner, encoder, task)
        prompts = learner.prompts(encoder, task.names)
        if isinstance(learner, VPT):
            depth = min(learner.depth, len(encoder.dual.image_blocks))
            rng = torch.Generator().manual_seed(task.seed)
            start = random_prompts(depth, learner.tokens, encoder.dual.image_tower.width, rng)
            self.learned = nn.ParameterDict({"visual": nn.Parameter(start.to(encoder.device))})
        elif isinstance(learner, MaPLe):
            assert prompts is not None
            self.learned = Coupled(encoder, prompts, depth=learner.depth, seed=task.seed)
        else:
            assert isinstance(learner, IVLP)
            assert prompts is not None
            self.learned = learner.start(encoder, prompts, task.seed)
            if isinstance(learner, PromptSRC):
                self._own = learner.loss(encoder, task, prompts, self.learned)

    def vectors(self) -> Mapping[str, Tensor]:
        if isinstance(self.learned, Coupled):
            return {"text": self.learned.text, "visual": self.learned.visual()}
        return dict(self.learned.items())  # type: ignore[operator]

    def weights(self, extra: Sequence[str] = ()) -> Callable[[], Float[Tensor, "C D"]]:
        prompts = self.learner.prompts(self.encoder, [*self.task.names, *extra])
        if prompts is None:
            parts = [class_weights(self.encoder, self.task)]
            if extra:
                parts.append(class_weights(self.encoder, Task(extra, self.task.templates)))
            fixed = torch.cat(parts).to(self.encoder.device)
            return lambda: fixed

        def made() -> Tensor:
            text = self.vectors()["text"]
            return prompts.encode(text[0], text[1:])

        return made

    def features(self, image: Tensor) -> Float[Tensor, "B D"]:
        return picture_features(self.encoder, image, self.vectors()["visual"])

    def shots(self, support: Examples) -> Callable[[int], Iterator[Shots]]:
        return self.learner.shots(self.encoder, self.task, support)

    def loss(self, shots: Shots, features: Float[Tensor, "B D"], weight: Float[Tensor, "C D"]) -> Tensor:
        if isinstance(self.learner, PromptSRC):  # holds features and logits, so it makes its own
            return self._own(shots)
        return super().loss(shots, features, weight)

    def keep(self, epochs: int) -> Callable[[int], None] | None:
        if isinstance(self.learner, IVLP):
            assert isinstance(self.learned, nn.ParameterDict)
            return self.learner.keep(self.learned, epochs)
        return None


def opened(learner: Any, encoder: Any, task: Task) -> Opened:
    """The learner, opened; ValueError for one that has no vectors to tune on labelled pictures."""
    if isinstance(learner, Tuner) and learner.wants == ("support",):
        if isinstance(learner, CoOp):
            return OpenContext(learner, encoder, task)
        if isinstance(learner, VPT | IVLP | MaPLe):
            return OpenTowers(learner, encoder, task)
    raise ValueError(
        f"{type(learner).__name__} cannot be opened: its class weights depend on the picture, or it learns no prompts; "
        "known: coop, kgcoop, vpt, ivlp, maple, promptsrc"
    )


def closed(
    learner: Tuner, encoder: Any, task: Task, vectors: Mapping[str, Tensor], said: dict[str, Any]
) -> ContextClassifier:
    """The learner's classifier of finished vectors, over the names of the task."""
    if isinstance(learner, CoOp):
        context = vectors["context"].detach().to(encoder.device)
        return learner._classifier(encoder, task, learner._prompts(encoder, task.names), context, said)
    assert isinstance(learner, TowerTuner)
    return learner.classifier(encoder, task, {name: x.detach() for name, x in vectors.items()}, said)
