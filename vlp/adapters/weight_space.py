"""What every adapter that changes weights of the towers has in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from vlp.adapters.adapter import Adapter, Given, Level
from vlp.adapters.selection import choices_of
from vlp.adapters.task import Task
from vlp.adapters.tuned import HEAD, TunedClassifier, own_state, with_own_head
from vlp.adapters.weights import State

NOT_CHOSEN = {"split": "none", "candidates": 1}


class WeightSpace(Adapter):
    """Ends in a TunedClassifier, and says in its record what it did."""

    level: ClassVar[Level] = "towers"
    wants: ClassVar[tuple[Given, ...]] = ("support",)
    method: ClassVar[str]  # its name in records and messages

    def classifier(
        self,
        encoder: Any,
        task: Task,
        state: State,
        *,
        selection: dict[str, Any] | None = None,
        inner: Sequence[Mapping[str, Any]] = (),
        **more: Any,
    ) -> TunedClassifier:
        """A classifier with the tensors of `state`; `selection`: how its settings were chosen, None: they were not.

        inner: the selections of the tuned models that it is made of.
        """
        about = {
            "adapter": self.method,
            "settings": self.model_dump(mode="json"),
            "seed": task.seed,
            "templates_hash": task.templates_hash,
            **more,
            "selection": choices_of(NOT_CHOSEN if selection is None else selection, inner),
        }
        return TunedClassifier(encoder, state, names=task.names, about=about)

    def transfer(self, encoder: Any, classifier: TunedClassifier, task: Task) -> TunedClassifier:
        """The tuned towers with other names, whose class weights come from words: a learned head knows none of them."""
        if classifier.encoder.weights_hash != encoder.weights_hash:
            raise ValueError(
                f"{self.method}: the classifier was fitted on other weights than this model's; fit it on this model"
            )
        towers = {name: tensor for name, tensor in classifier.state.items() if name != HEAD}
        state = with_own_head(encoder, task, {**own_state(encoder, task, ()), **towers})
        about = {**classifier.about, "fitted": list(classifier.names)}
        return TunedClassifier(encoder, state, names=task.names, about=about)
