"""The nearest class mean."""

from __future__ import annotations

from typing import Any, ClassVar

from torch.nn.functional import normalize

from vlp.adapters.adapter import Adapter, Given
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.seen import check_every_class, class_means
from vlp.adapters.task import Task


class NearestMean(Adapter):
    """The class whose mean feature is nearest (as in iCaRL, arXiv 1611.07725; no words are used).

    `normalised`: by cosine to the means scaled to unit length, logits = s f·mu_c / |mu_c|. Else by squared Euclidean
    distance (prototypical networks, arXiv 1703.05175, eq. 2): logits = -s / 2 |f - mu_c|^2, less what all classes have.
    """

    wants: ClassVar[tuple[Given, ...]] = ("support",)

    normalised: bool = True

    def fit(self, encoder: Any, task: Task) -> LinearClassifier:
        """A classifier with a weight row a class, at the model's own temperature s."""
        support = self.given(task, "support")
        check_every_class(support, task.names, who="ncm")
        mean, kind = class_means(support.image, support.known, len(task.names)), support.image.dtype
        bias = None if self.normalised else (-encoder.scale / 2 * mean.square().sum(dim=1)).to(kind)
        return LinearClassifier(
            (normalize(mean, dim=1) if self.normalised else mean).to(kind),
            names=task.names,
            scale=encoder.scale,
            bias=bias,
            about={"adapter": "ncm", "settings": self.model_dump(mode="json"), "selection": {"split": "none"}},
        )
