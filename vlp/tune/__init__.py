"""`vlp tune`: fit an adapter to what a protocol gives it, and measure it on pictures whose labels it never saw."""

from __future__ import annotations

from vlp.registry import Table

PROTOCOLS = Table(
    "protocol",
    {
        "few_shot": "vlp.tune.protocols:FewShot",
        "unsupervised": "vlp.tune.protocols:Unsupervised",
        "semi_supervised": "vlp.tune.protocols:SemiSupervised",
        "transductive": "vlp.tune.protocols:Transductive",
        "imbalanced": "vlp.tune.protocols:Imbalanced",
        "base_to_new": "vlp.tune.transfers:BaseToNew",
        "open_set": "vlp.tune.transfers:OpenSet",
        "cross_dataset": "vlp.tune.transfers:CrossDataset",
        "domain_shift": "vlp.tune.transfers:DomainShift",
    },
)
