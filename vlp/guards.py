"""Conditions under which a run must not start or go on, each with its reason and remedy."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from vlp import dist
from vlp.log import SkipLedger


def refuse_batch_statistics(dual: nn.Module, *, micro_batch: int | None, device: str) -> None:
    """ValueError where BatchNorm would see less than the global batch, so that results depend on how it is cut."""
    live = [
        name
        for name, module in dual.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.track_running_stats
    ]
    cut = "micro_batch is set" if micro_batch else ""
    if dist.world() > 1 and device == "cpu":
        cut = f"{dist.world()} CPU processes (SyncBatchNorm needs GPUs)"
    if live and cut:
        raise ValueError(
            f"{live[0]} and {len(live) - 1} more BatchNorm layers take statistics of the batch, but it is cut: {cut}; "
            "set model.frozen_batchnorm=true or lock the image tower"
        )


def refuse_bad_data(ledger: SkipLedger, *, limit: float, folder: Path) -> None:
    """RuntimeError with the counts by reason once more than `limit` of the samples seen could not be used."""
    if ledger.seen >= 100 and ledger.total > limit * ledger.seen:
        raise RuntimeError(
            f"{ledger.total} of {ledger.seen} samples could not be used ({ledger.summary()}), more than "
            f"data.max_bad_fraction={limit}; see {folder / 'skips.jsonl'}, then `vlp data verify` the shards"
        )
