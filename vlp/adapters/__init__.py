"""Everything that adapts a model: `fit(encoder, task) -> Classifier`. One evaluation serves them all."""

from __future__ import annotations

from vlp.registry import Table

ADAPTERS = Table(
    "adapter",
    {
        "zeroshot": "vlp.adapters.zeroshot:ZeroShot",
        "token_zeroshot": "vlp.adapters.token_zeroshot:TokenZeroShot",
    },
)
