"""Which measure stands for a task where there is room for one: in the overview, and in tables of many models."""

from __future__ import annotations

import re
from collections.abc import Iterable

# What a task is ranked by, CLIP_benchmark's and DataComp's choice where they have one
MAIN = {
    "zeroshot_classification": "acc1",
    "zeroshot_classification_corrupted": "acc1_corrupted",
    "zeroshot_retrieval": "image_retrieval_recall@5",
    "linear_probe": "lp_acc1",
    "knn": "knn_acc1",
    "pointing": "pointing_phrase",
    "prompting_patch": "prompt_iou",
    "anomaly_detection": "image_auroc",
}
# Where names hold settings: the last measure that fits the first of these patterns that any fits
_PATTERNS = {
    "zeroshot_retrieval": (r"image_retrieval_recall@\d+",),
    "few_shot": (r"acc1@\d+shot",),  # of most shots
    "composed_image_retrieval": (r"macro_recall@10_.+", r"recall@1_.+", r"recall@\d+_.+"),  # of the last composer
    "label_retrieval": (r"text_to_image_mAP", r"class_to_image_mAP", r".+_mAP"),
    "conditional_image_retrieval": (r"macro_recall@1_.+", r"recall@1_.+"),
}
_OTHERS = ("acc", "accuracy", "acc1", "recall@1", "auroc", "mean_average_precision", "mean_iou")


def main_metric(task: str, metrics: Iterable[str]) -> str | None:
    """The name of the measure that a record of this task is ranked by; None for a task without one."""
    names = list(metrics)
    if (name := MAIN.get(task)) in names:
        return name
    for pattern in _PATTERNS.get(task, ()):
        if found := [name for name in names if re.fullmatch(pattern, name)]:
            return found[-1]
    return next((name for name in _OTHERS if name in names), None)
