"""Losses: pure functions of (Features, Batch). One file and one line here for each."""

from __future__ import annotations

from vlp.registry import Table

LOSSES = Table(
    "loss",
    {
        "infonce": "vlp.losses.infonce:InfoNCE",
        "sigmoid": "vlp.losses.sigmoid:Sigmoid",
    },
)
