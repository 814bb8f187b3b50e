"""Zero-shot classification with prompt ensembles (Radford et al. 2021, section 3.1.4)."""

from __future__ import annotations

from torch.nn.functional import normalize

from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.task import Task
from vlp.embed import Encoder
from vlp.registry import Part
from vlp.text.templates import fill


class ZeroShot(Part):
    """Class weights from words alone: each template's feature normalised, their mean, normalised again.

    All classes and templates go through the text tower in one pass, where equal prompts are encoded once.
    """

    def fit(self, encoder: Encoder, task: Task) -> LinearClassifier:
        """A classifier with one weight row a class, at the model's own temperature."""
        prompts = [fill(template, name) for name in task.names for template in task.templates]
        features = encoder.texts(prompts).unflatten(0, (len(task.names), len(task.templates)))
        return LinearClassifier(
            normalize(features.mean(dim=1), dim=-1),
            names=task.names,
            scale=encoder.scale,
            about={"adapter": "zeroshot", "templates": list(task.templates), "templates_hash": task.templates_hash},
        )
