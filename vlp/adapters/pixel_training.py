"""The loop that adapters of patches are trained by: batches of stored features, and a rate that falls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from vlp.adapters.dense_task import IGNORED, DenseTask, PatchMaps
from vlp.metrics.segmentation import Segmentation, predicted_classes


class Course(NamedTuple):
    """How long to train, on how many pictures at once, and how the rate falls: (1 - step / steps) ** power."""

    epochs: int
    batch: int
    power: float = 0.0


def train(
    part: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Int[Tensor, "b"]], Tensor],
    *,
    pictures: int,
    course: Course,
    seed: int,
    judge: Callable[[], float] | None = None,
) -> dict[str, Any]:
    """What a record says of the choice of an epoch: by `judge` the best one (the first of equals), else the last.

    loss: of the pictures with these numbers. The order of pictures is drawn from `seed`.
    """
    order = torch.Generator().manual_seed(seed)
    rates = [group["lr"] for group in optimizer.param_groups]
    steps, step = course.epochs * -(-pictures // course.batch), 0
    reached: list[float] = []
    best: dict[str, Tensor] = {}
    for _ in range(course.epochs):
        part.train()
        for rows in torch.randperm(pictures, generator=order).split(course.batch):
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * (1 - step / steps) ** course.power
            step += 1
            if len(rows) == 1 < min(pictures, course.batch):
                continue  # statistics of a batch of one say nothing; the order differs from epoch to epoch
            optimizer.zero_grad()
            with torch.enable_grad():
                loss(rows).backward()
            optimizer.step()
        part.eval()
        if judge is not None:
            reached.append(judge())
            if reached[-1] == max(reached) and reached.count(reached[-1]) == 1:
                best = {name: value.clone() for name, value in part.state_dict().items()}
    part.eval()
    if judge is None or not reached:
        return {"split": "none"}
    part.load_state_dict(best)
    about = {"split": "validation", "candidates": course.epochs, "criterion": "mean_iou"}
    return {**about, "epoch": reached.index(max(reached)) + 1, "mean_iou": max(reached)}


def enlarged(scores: Float[Tensor, "B C h w"], size: tuple[int, int]) -> Float[Tensor, "B C H W"]:
    """The scores of pixels, interpolated bilinearly."""
    return interpolate(scores, size=size, mode="bilinear", align_corners=False)


def pixel_loss(scores: Float[Tensor, "B C h w"], mask: Int[Tensor, "B H W"]) -> Tensor:
    """Mean cross-entropy over the pixels that have a class; 0 where none has."""
    total = cross_entropy(enlarged(scores, (mask.shape[1], mask.shape[2])), mask, ignore_index=IGNORED, reduction="sum")
    return total / (mask != IGNORED).sum().clamp_min(1)


@torch.no_grad()
def mean_iou(
    scores: Callable[[PatchMaps], Tensor], task: DenseTask, *, batch: int, device: torch.device | str | None = None
) -> float:
    """Mean intersection over union of all pixels of the validation pictures; 0 where no pixel has a class."""
    held = task.validation
    assert held is not None
    state = Segmentation(len(task.names), ignore_index=IGNORED)
    for rows in torch.arange(len(held)).split(batch):
        truth = held.mask[rows].long()
        found = enlarged(scores(held.maps.only(rows, device=device)), held.size).cpu()
        state.update(predicted_classes(found, truth), truth)
    return state.compute().get("mean_iou", 0.0)


def judge_of(
    scores: Callable[[PatchMaps], Tensor], task: DenseTask, *, batch: int, device: torch.device | str | None = None
) -> Callable[[], float] | None:
    """What says how good these scores are now, on validation; None for a task without."""
    held = task.validation
    if held is None or not bool((held.mask != IGNORED).any()):
        return None
    return lambda: mean_iou(scores, task, batch=batch, device=device)
