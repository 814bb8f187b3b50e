"""DetPro: prompts for regions, one set of vectors for each range of overlap (2203.14940)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from vlp.adapters.adapter import class_weights
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.dense_task import DenseAdapter
from vlp.adapters.pixel_training import Course, train
from vlp.adapters.prompts import ClassPrompts
from vlp.adapters.regions import BACKGROUND, Regions, RegionTask
from vlp.adapters.task import Task
from vlp.adapters.tuning import frozen


class DetPro(DenseAdapter):
    """Context vectors learned from crops of proposals, apart for each range of IoU in `bins`; background is no class.

    A region of a range is a positive of its class: cross-entropy at `temperature`, weighted by the inverse of the
    class's share times C. Regions of `negative` IoU with every object, of which `negatives` are drawn, should look like
    no class: cross-entropy with 1/C for each, weighted so that together they count half as much as all objects. Both
    sums are divided by the sum of the weights. The classifier's weight of a class, also of one that was not learned, is
    the normed mean of its unit features behind all sets. A range without a positive is left out and said in `about`;
    0 epochs give names in templates, so the zero-shot classifier. Ours: the rate falls as (1 - step / steps)^0.9.
    """

    scores: ClassVar[Literal["pixels", "anomalies", "regions"]] = "regions"

    context: int = Field(8, ge=1)
    bins: tuple[float, ...] = Field((0.5, 0.6, 0.7, 0.8, 0.9), min_length=1)  # lower ends; the last one has no upper
    negative: tuple[float, float] = (0.1, 0.5)
    negatives: float = Field(0.1, ge=0, le=1)
    temperature: float = Field(0.01, gt=0)
    lr: float = Field(2e-3, gt=0)
    epochs: int = Field(6, ge=0)
    batch: int = Field(512, ge=1)

    def fit(self, encoder: Any, task: RegionTask) -> LinearClassifier:
        """A classifier of crops, over `task.names` and behind them `task.others`."""
        names = [*task.names, *task.others]
        about: dict[str, Any] = {
            "adapter": "detpro",
            "settings": self.model_dump(mode="json"),
            "selection": {"split": "none"},
        }
        if not self.epochs:
            weight = class_weights(encoder, Task(names, task.templates))
            return LinearClassifier(weight, names=names, scale=encoder.scale, about=about)
        support = task.support
        if support is None or not len(support):
            raise ValueError("DetPro needs regions with classes to learn from: give `train` with boxes")
        ends = [*self.bins[1:], torch.inf]
        found, positives = list[Tensor](), dict[str, int]()
        with frozen(encoder):
            whole = ClassPrompts(encoder, names, count=self.context)
            for low, high in zip(self.bins, ends):
                own = support.only((support.label != BACKGROUND) & (support.iou >= low) & (support.iou < high))
                positives[f"{low:g}"] = len(own)
                if len(own):
                    context = self._learn(encoder, task, own, self._negatives(support, task.seed))
                    with torch.no_grad():
                        found.append(whole.encode(context).cpu())
        if not found:
            raise ValueError(f"DetPro: no region of {len(support)} overlaps an object by {min(self.bins):g} or more")
        weight = normalize(torch.stack(found).mean(dim=0), dim=-1)
        about |= {"positives": positives, "others": len(task.others)}
        return LinearClassifier(weight, names=names, scale=1 / self.temperature, about=about)

    def _negatives(self, support: Regions, seed: int) -> Regions:
        """A drawn share of the regions that show a part of an object, as background."""
        low, high = self.negative
        rows = torch.where((support.iou >= low) & (support.iou < high))[0]
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        kept = support.only(rows[order[: round(self.negatives * len(rows))]].sort().values)
        return Regions(kept.image, torch.full_like(kept.label, BACKGROUND), kept.iou)

    def _learn(self, encoder: Any, task: RegionTask, own: Regions, background: Regions) -> Tensor:
        """Context vectors [M, w] of one range of overlap."""
        image = torch.cat([own.image, background.image]).to(encoder.device)
        label = torch.cat([own.label, background.label]).to(encoder.device)
        weight = region_weights(label, len(task.names))
        prompts = ClassPrompts(encoder, task.names, count=self.context)
        start = prompts.first(torch.Generator().manual_seed(task.seed))
        learned = nn.ParameterDict({"context": nn.Parameter(start)})

        def loss(rows: Tensor) -> Tensor:
            logits = image[rows] @ prompts.encode(learned["context"]).T / self.temperature
            return region_loss(logits, label[rows], weight)

        train(
            learned,
            torch.optim.SGD(learned.parameters(), lr=self.lr),
            loss,
            pictures=len(image),
            course=Course(self.epochs, self.batch, power=0.9),
            seed=task.seed,
        )
        context: Tensor = learned["context"].detach()
        return context


def region_weights(label: Int[Tensor, "n"], classes: int) -> Float[Tensor, "C1"]:
    """Weights [C + 1] of the classes and, last, of background: n / (C n_c), and n / (2 n_background)."""
    counts = torch.where(label == BACKGROUND, classes, label).bincount(minlength=classes + 1).double()
    many = torch.tensor([*[float(classes)] * classes, 2.0], dtype=torch.float64, device=label.device)
    return (len(label) / (many * counts.clamp_min(1))).float()


def region_loss(
    logits: Float[Tensor, "b C"], label: Int[Tensor, "b"], weight: Float[Tensor, "C1"]
) -> Float[Tensor, ""]:
    """Weighted cross-entropy of objects with their class, and of background with the even distribution over classes."""
    classes, behind = logits.shape[1], label == BACKGROUND
    target = torch.zeros_like(logits).scatter(1, label.clamp_min(0)[:, None], 1.0)
    target[behind] = 1 / classes
    each = weight[torch.where(behind, classes, label)]
    return (each * cross_entropy(logits, target, reduction="none")).sum() / each.sum()
