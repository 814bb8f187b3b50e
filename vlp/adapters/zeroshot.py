"""Zero-shot classification with prompt ensembles (Radford et al. 2021, section 3.1.4)."""

from __future__ import annotations

from typing import Any

from vlp.adapters.adapter import Adapter, class_weights
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.task import Task


class ZeroShot(Adapter):
    """Class weights from words alone: each template's feature normalised, their mean, normalised again.

    All classes and templates go through the text tower in one pass, where equal prompts are encoded once.
    """

    def fit(self, encoder: Any, task: Task) -> LinearClassifier:
        """A classifier with one weight row a class, at the model's own temperature."""
        return LinearClassifier(
            class_weights(encoder, task),
            names=task.names,
            scale=encoder.scale,
            about={"adapter": "zeroshot", "templates": list(task.templates), "templates_hash": task.templates_hash},
        )
