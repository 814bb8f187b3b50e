"""Losses: pure functions of (Features, Batch). One file and one line here for each."""

from __future__ import annotations

from vlp.registry import Table

LOSSES = Table(
    "loss",
    {
        "cmpm": "vlp.losses.identity:CMPM",
        "dcl": "vlp.losses.decoupled:DCL",
        "dclw": "vlp.losses.decoupled:DCLW",
        "distill": "vlp.losses.distill:LogitDistill",
        "dreamlip": "vlp.losses.dreamlip:DreamLIP",
        "feature_distill": "vlp.losses.distill:FeatureDistill",
        "filip": "vlp.losses.filip:FILIP",
        "flair": "vlp.losses.flair:Flair",
        "hard_negative": "vlp.losses.hard:HardNegative",
        "infonce": "vlp.losses.infonce:InfoNCE",
        "koleo": "vlp.losses.spread:KoLeo",
        "longclip": "vlp.losses.longclip:LongCLIP",
        "matryoshka": "vlp.losses.matryoshka:Matryoshka",
        "negclip": "vlp.losses.negatives:NegCLIP",
        "relation_distill": "vlp.losses.distill:RelationDistill",
        "sdm": "vlp.losses.identity:SDM",
        "sigmoid": "vlp.losses.sigmoid:Sigmoid",
        "topology": "vlp.losses.continual:Topology",
        "uniformity": "vlp.losses.spread:Uniformity",
        "wukong": "vlp.losses.wukong:Wukong",
        "simclr": "vlp.losses.selfsup:SimCLR",
        "simsiam": "vlp.losses.selfsup:SimSiam",
        "multiview": "vlp.losses.multiview:MultiView",
        "nearest_text": "vlp.losses.multiview:NearestText",
        "text_pairs": "vlp.losses.text_pairs:TextPairs",
        "mlm": "vlp.losses.masked_text:MaskedText",
        "mae": "vlp.losses.masked_image:MaskedImage",
        "caption": "vlp.losses.caption:Caption",
        "momentum_contrast": "vlp.losses.momentum:MomentumContrast",
        "m3i": "vlp.losses.momentum:M3I",
        "mmc": "vlp.losses.mmc:MMC",
    },
)
