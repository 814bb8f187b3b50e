"""Semantic segmentation: intersection over union and accuracies from counts per picture.

Letters: C classes, B pictures of H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlp.metrics.interval import Interval
from vlp.metrics.multilabel import percentiles_of, resamples


def predicted_classes(scores: Float[Tensor, "B C H W"], truth: Int[Tensor, "B H W"]) -> Int[Tensor, "B H W"]:
    """The class with the highest score of each pixel; where the true one only ties for first place, its rival.

    A true class whose score is not a number loses, a rival whose score is not a number wins. `truth` outside 0..C-1
    (ignored pixels) names no class to be strict about.
    """
    known = (truth >= 0) & (truth < scores.shape[1])
    index = torch.where(known, truth, 0)[:, None]
    own = scores.gather(1, index)
    rivals = torch.where(scores.isnan(), torch.inf, scores).scatter(1, index, -torch.inf)
    best, rival = rivals.max(dim=1, keepdim=True)
    return torch.where(known, torch.where(own > best, index, rival)[:, 0], scores.argmax(dim=1))


@dataclass
class Segmentation:
    """Mean IoU and accuracies over all pixels of all pictures; the state is three counts a class and picture.

    mean_iou               mean over classes of intersection / union of the summed counts (Everingham et al. 2010, the
                           VOC measure), over the classes that truth or prediction has anywhere
    mean_iou_foreground    the same without class `background` (only where one is given)
    pixel_accuracy         share of pixels with the right class
    mean_class_accuracy    mean over classes that truth has of the share of their pixels found

    Pixels whose truth is `ignore_index` count nowhere, whatever is predicted there.
    """

    classes: int
    ignore_index: int = 255
    background: int | None = None
    _counts: list[Tensor] = field(default_factory=list)  # [B, 3, C]: intersection, truth, prediction
    _confusion: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._confusion = torch.zeros(self.classes, self.classes, dtype=torch.long)
        if self.background is not None and not 0 <= self.background < self.classes:
            raise ValueError(f"background is {self.background}; it must be one of the classes 0..{self.classes - 1}")

    def update(self, predicted: Int[Tensor, "B H W"], truth: Int[Tensor, "B H W"]) -> None:
        """Adds pictures; ValueError for shapes that differ or a value that is no class."""
        if predicted.shape != truth.shape or truth.ndim != 3:
            raise ValueError(
                f"predictions {tuple(predicted.shape)} and truth {tuple(truth.shape)} must both be pictures x height x "
                "width; resize the prediction to the truth, and give pictures of different sizes one by one"
            )
        valid = truth != self.ignore_index
        picture = torch.arange(len(truth), device=truth.device)[:, None, None].expand_as(truth)[valid]
        true, guess = truth[valid].long(), predicted[valid].long()
        for name, values in (("truth", true), ("prediction", guess)):
            if len(values) and not 0 <= int(values.min()) <= int(values.max()) < self.classes:
                raise ValueError(
                    f"the {name} has values {int(values.min())}..{int(values.max())}; classes are "
                    f"0..{self.classes - 1}, and {self.ignore_index} in the truth means ignored"
                )
        hit = true == guess
        counted = [(picture[hit], true[hit]), (picture, true), (picture, guess)]
        self._counts.append(torch.stack([self._count(*pair, len(truth)) for pair in counted], dim=1))
        self._confusion += self._count(true, guess, self.classes)

    def _count(self, row: Tensor, column: Tensor, rows: int) -> Tensor:
        """[rows, C], on the CPU"""
        return torch.bincount(row * self.classes + column, minlength=rows * self.classes).view(rows, self.classes).cpu()

    def merge(self, other: Segmentation) -> None:
        """Adds the other state's pictures."""
        settings = [(s.classes, s.ignore_index, s.background) for s in (self, other)]
        if settings[0] != settings[1]:
            raise ValueError(f"cannot merge segmentations of different (classes, ignore_index, background): {settings}")
        self._counts += other._counts
        self._confusion += other._confusion

    def compute(self) -> dict[str, float]:
        """The numbers above, in 0..1; empty without a pixel that counts, no foreground's mean without foreground."""
        total = self._per_picture().sum(dim=0)
        return {name: float(value) for name, value in self._numbers(total).items() if not value.isnan()}

    def intervals(self, *, n_boot: int = 1000, seed: int = 0) -> dict[str, Interval]:
        """95 % bootstrap interval of every number of `compute`, drawing pictures, for pixels of one depend."""
        counts = self._per_picture()
        if not counts.any():
            return {}
        each = counts.flatten(1).double()
        every = resamples(torch.zeros(len(each), dtype=torch.long), n_boot=n_boot, seed=seed)
        found = percentiles_of(self._numbers((times.double() @ each).unflatten(1, (3, -1))) for times in every)
        return {name: found[name] for name in self.compute()}

    def chance(self) -> dict[str, float]:
        """What a uniformly random class for every pixel reaches, of these truths.

        Of T pixels of a class, T / C are found; N / C of all N are taken for it. The IoU is the ratio of the expected
        counts, which the expected ratio nears with many pixels. All C classes are predicted somewhere, so all count.
        """
        truth = self._per_picture()[:, 1].sum(dim=0).double()
        if not truth.any():
            return {}
        guessed = torch.full_like(truth, float(truth.sum()) / self.classes)
        expected = self._numbers(torch.stack([truth / self.classes, truth, guessed]))
        return {name: float(value) for name, value in expected.items() if not value.isnan()}

    def confusion(self) -> Int[Tensor, "C C"]:
        """Pixels [true, predicted]."""
        return self._confusion.clone()

    def class_iou(self) -> list[float | None]:
        """Intersection over union of every class, None for those that neither truth nor prediction has."""
        intersection, truth, predicted = self._per_picture().sum(dim=0)
        union = truth + predicted - intersection
        return [int(i) / int(u) if u else None for i, u in zip(intersection, union)]

    def _per_picture(self) -> Tensor:
        return torch.cat(self._counts) if self._counts else torch.zeros(0, 3, self.classes, dtype=torch.long)

    def _numbers(self, counts: Tensor) -> dict[str, Tensor]:
        """Name -> [...], of counts [..., 3, C]"""
        intersection, truth, predicted = counts.double().unbind(dim=-2)
        iou = intersection / (truth + predicted - intersection)  # 0 / 0, a class of neither, is nan and left out
        numbers = {"mean_iou": iou.nanmean(dim=-1)}
        if self.background is not None:
            foreground = [c for c in range(self.classes) if c != self.background]
            numbers["mean_iou_foreground"] = iou[..., foreground].nanmean(dim=-1)
        numbers["pixel_accuracy"] = intersection.sum(dim=-1) / truth.sum(dim=-1)
        numbers["mean_class_accuracy"] = (intersection / truth).nanmean(dim=-1)
        return numbers
