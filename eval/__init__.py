"""Benchmarks by name; `python -m eval CHECKPOINT SUITE.yaml` runs a suite of them."""

from __future__ import annotations

from vlp.registry import Table

BENCHMARKS = Table(
    "benchmark",
    {
        "zeroshot": "eval.classify:Classification",
        "retrieval": "eval.retrieve:Retrieval",
        "multilabel": "eval.multilabel:MultiLabel",
        "label_retrieval": "eval.identity:LabelRetrieval",
        "anomaly": "eval.anomaly:Anomaly",
        "health": "eval.health:Health",
        "pointing": "eval.pointing:Pointing",
        "caption_negatives": "eval.compose:Negatives",
        "true_false": "eval.compose:TrueFalse",
        "corruptions": "eval.corruption:Corruptions",
        "segmentation": "eval.segment:Segmentation",
        "regions": "eval.regions:RegionClasses",
        "reco": "eval.reco:ReCo",
        "prompting_patch": "eval.patch_prompts:PatchPrompts",
        "caption_selection": "eval.selection:Selection",
        "winoground": "eval.winoground:Winoground",
        "composed": "eval.composed:Composed",
        "conditional": "eval.conditional:Conditional",
        "linear_probe": "eval.probe:LinearProbe",
        "knn": "eval.probe:KNN",
        "few_shot": "eval.few_shot:FewShot",
    },
)
