"""A learned context for class names (CoOp, Zhou et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vlp.adapters.adapter import Given, Level
from vlp.adapters.prompted import ContextClassifier, finished, fitted_by
from vlp.adapters.prompts import ClassPrompts, Position
from vlp.adapters.shots import Shots, feature_shots
from vlp.adapters.task import Task
from vlp.adapters.tuning import Tuner, autocast, frozen

Term = Callable[[Float[Tensor, "C D"]], Tensor]  # what is added to the loss, of the class weights


class CoOp(Tuner):
    """Vectors v_1 .. v_M in front of every class name, learned by cross-entropy (2109.01134, section 3.2).

    words: what they start from ("a photo of a", M = 4); None: `tokens` random vectors, N(0, 0.02^2), M = 16. specific:
    own vectors for every class, which other classes cannot take over. position: of the name, at the `end`, in the
    `middle` or in `front`. Learns on stored features, of augmented views where there are some: the image tower is
    never run, and what all prompts begin with goes through the text tower once a step.
    """

    level: ClassVar[Level] = "text"
    wants: ClassVar[tuple[Given, ...]] = ("support",)
    views: ClassVar[int] = 8

    words: str | None = None
    tokens: int | None = Field(None, ge=1)
    position: Position = "end"
    specific: bool = False

    def usual_epochs(self, shots: int) -> int:
        """200 from 8 shots on, 100 from 2 on, else 50."""
        return 200 if shots >= 8 else 100 if shots >= 2 else 50

    def fit(self, encoder: Any, task: Task) -> ContextClassifier:
        """A linear classifier whose weights are the features of the prompts, with the context that was learned."""
        support = self.given(task, "support")
        prompts = self._prompts(encoder, task.names)
        start = prompts.first(torch.Generator().manual_seed(task.seed), each=self.specific)
        learned = nn.ParameterDict({"context": nn.Parameter(start)})
        term, scale = self.term(encoder, task), encoder.scale

        def loss(shots: Shots) -> Tensor:
            weight = prompts.encode(learned["context"])
            logits = scale * shots.image.to(weight.dtype) @ weight.T
            value = cross_entropy(logits, shots.label)
            return value if term is None else value + term(weight)

        shots = feature_shots(support, size=self.batch, seed=task.seed, device=encoder.device)
        with frozen(encoder):
            said = self.tune(encoder, learned, shots, loss, epochs=self.epochs_for(support))
        return self._classifier(encoder, task, prompts, learned["context"].detach(), said)

    def term(self, encoder: Any, task: Task) -> Term | None:
        """What is added to cross-entropy: nothing."""
        return None

    def transfer(self, encoder: Any, classifier: Any, task: Task) -> ContextClassifier:
        """The learned context in front of other names; NotImplementedError where each class has its own."""
        made: CoOp = fitted_by(self, encoder, classifier)
        context = classifier.learned["context"]
        if context.ndim == 3:
            raise NotImplementedError(
                "specific: true learns a context for each of its classes, and none for other ones"
            )
        prompts = made._prompts(encoder, task.names)
        return made._classifier(encoder, task, prompts, context.to(encoder.device), {"fitted": list(classifier.names)})

    def _prompts(self, encoder: Any, names: Sequence[str]) -> ClassPrompts:
        return ClassPrompts(encoder, names, words=self.words, count=self.tokens, position=self.position)

    def _classifier(
        self, encoder: Any, task: Task, prompts: ClassPrompts, context: Tensor, said: dict[str, Any]
    ) -> ContextClassifier:
        with frozen(encoder), torch.no_grad(), autocast(encoder):
            weight = finished(prompts.encode(context))
        about = self.about(encoder, task, **said)
        return ContextClassifier(
            weight, learned={"context": context}, names=task.names, scale=encoder.scale, about=about
        )
