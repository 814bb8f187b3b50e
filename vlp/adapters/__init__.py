"""Everything that adapts a model: `fit(encoder, task) -> Classifier`. One evaluation serves them all."""

from __future__ import annotations

from vlp.registry import Table

ADAPTERS = Table(
    "adapter",
    {
        "zeroshot": "vlp.adapters.zeroshot:ZeroShot",
        "descriptions": "vlp.adapters.descriptions:Descriptions",
        "waffle": "vlp.adapters.waffle:Waffle",
        "hierarchy": "vlp.adapters.hierarchy:Hierarchy",
        "loki": "vlp.adapters.loki:Loki",
        "token_zeroshot": "vlp.adapters.token_zeroshot:TokenZeroShot",
        "saved": "vlp.adapters.saved:Saved",
        "linear": "vlp.adapters.linear:LinearProbe",
        "ncm": "vlp.adapters.ncm:NearestMean",
        "tip": "vlp.adapters.tip:Tip",
        "tip_f": "vlp.adapters.tip:TipF",
        "gda": "vlp.adapters.gda:Gda",
        "gda_em": "vlp.adapters.gda_em:GdaEm",
        "teen": "vlp.adapters.teen:Teen",
        "concept": "vlp.adapters.concept:Concept",
        "clip_adapter": "vlp.adapters.clip_adapter:ClipAdapter",
        "coop": "vlp.adapters.coop:CoOp",
        "cocoop": "vlp.adapters.cocoop:CoCoOp",
        "kgcoop": "vlp.adapters.kgcoop:KgCoOp",
        "vpt": "vlp.adapters.vpt:VPT",
        "ivlp": "vlp.adapters.ivlp:IVLP",
        "maple": "vlp.adapters.maple:MaPLe",
        "promptsrc": "vlp.adapters.promptsrc:PromptSRC",
        "finetune": "vlp.adapters.finetune:Finetune",
        "wise_ft": "vlp.adapters.wise_ft:WiseFT",
        "soup": "vlp.adapters.soup:Soup",
        "task_arithmetic": "vlp.adapters.task_arithmetic:TaskArithmetic",
        "atlas": "vlp.adapters.atlas:Atlas",
        "atlas_ufm": "vlp.adapters.atlas_tta:AtlasUFM",
        "atlas_tta": "vlp.adapters.atlas_tta:AtlasTTA",
        "clip_lora": "vlp.adapters.clip_lora:ClipLora",
        "levi": "vlp.adapters.levi:Levi",
    },
)

CLASSIFIERS = Table(
    "classifier",
    {
        "linear_classifier": "vlp.adapters.classifier:LinearClassifier",
        "context": "vlp.adapters.prompted:ContextClassifier",
        "conditional_context": "vlp.adapters.cocoop:ConditionalClassifier",
        "prompted_towers": "vlp.adapters.prompted:TowerClassifier",
        "gda": "vlp.adapters.gaussian:GaussianClassifier",
        "tip": "vlp.adapters.tip:TipClassifier",
        "clip_adapter": "vlp.adapters.clip_adapter:AdaptedClassifier",
        "tuned": "vlp.adapters.tuned:TunedClassifier",
        "levi": "vlp.adapters.levi:LeviClassifier",
        "patches": "vlp.adapters.linear_patches:PatchClassifier",
        "denseclip": "vlp.adapters.denseclip:DenseClipClassifier",
        "anomalies": "vlp.adapters.adaptclip:AnomalyClassifier",
    },
)
