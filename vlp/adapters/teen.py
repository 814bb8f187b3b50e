"""Prototypes of classes with few pictures, moved towards those of classes with many (TEEN, arXiv 2312.05229)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from vlp.adapters.adapter import Adapter, Given
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.descriptions import said_missing
from vlp.adapters.seen import check_every_class, class_means
from vlp.adapters.task import Examples, Task


class Teen(Adapter):
    """Nearest class mean by cosine, where each new prototype is calibrated by the base ones (2312.05229).

    c_n <- (1 - shift) c_n + shift * norm(sum_b w_b c_b), w = softmax_b(temperature * cos(c_n, c_b)), as the released
    code has it: the sum is normalised. `base`: how many of the task's classes, the first ones, or their names; None:
    those with more pictures than a class has on average. The others are new. With shift 0 it is `ncm`.
    """

    wants: ClassVar[tuple[Given, ...]] = ("support",)

    base: int | tuple[str, ...] | None = None
    shift: float = Field(0.5, ge=0, le=1)
    temperature: float = Field(16.0, ge=0)

    def fit(self, encoder: Any, task: Task) -> LinearClassifier:
        """A classifier with a weight row a class, at the model's own temperature."""
        support = self.given(task, "support")
        check_every_class(support, task.names, who="teen")
        base = self._base(support, task)
        weight = normalize(class_means(support.image, support.known, len(task.names)), dim=1)
        if self.shift:
            weight[~base] = normalize(self._calibrated(weight[~base], weight[base]), dim=1)
        return LinearClassifier(
            weight.to(support.image.dtype),
            names=task.names,
            scale=encoder.scale,
            about={
                "adapter": "teen",
                "settings": self.model_dump(mode="json"),
                "base": [name for name, is_base in zip(task.names, base.tolist(), strict=True) if is_base],
                "selection": {"split": "none"},
            },
        )

    def _calibrated(self, new: Float[Tensor, "n D"], base: Float[Tensor, "b D"]) -> Float[Tensor, "n D"]:
        share = (self.temperature * new @ base.T).softmax(dim=1)
        return (1 - self.shift) * new + self.shift * normalize(share @ base, dim=1)

    def _base(self, support: Examples, task: Task) -> Tensor:
        """Bool [C]; ValueError where it does not part the classes in two."""
        classes = len(task.names)
        if isinstance(self.base, int):
            found = torch.arange(classes) < self.base
        elif self.base is None:
            count = support.known.bincount(minlength=classes)
            found = count * classes > len(support)
            if not found.any():
                raise ValueError(
                    f"teen: every class has {int(count[0])} pictures, so none tells which are base classes; set `base` "
                    "to their number, if they come first, or to their names"
                )
        else:
            strange = [name for name in self.base if name not in task.names]
            if strange:
                raise ValueError(said_missing(strange, task.names, of=len(self.base), what="class", where="base"))
            found = torch.tensor([name in self.base for name in task.names])
        if found.all() or not found.any():
            raise ValueError(
                f"teen: base: {int(found.sum())} of {classes} classes are base classes; it needs some, and some new"
            )
        return found
