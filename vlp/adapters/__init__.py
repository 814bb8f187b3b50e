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
    },
)
