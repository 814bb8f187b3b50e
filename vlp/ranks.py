"""The ranks of a run: how they meet, and what must be alike on all of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import InitProcessGroupKwargs

from vlp import dist
from vlp.log import host_facts
from vlp.run import Run


def accelerator_of(run: Run) -> Accelerator:
    """Accelerate's part of a run; the processes that a launcher started have met after this."""
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    with dist.named_rendezvous(rank=os.environ.get("RANK"), world=os.environ.get("WORLD_SIZE"), where=where):
        return Accelerator(
            mixed_precision=run.precision,
            cpu=run.device == "cpu" or not torch.cuda.is_available(),
            log_with=list(run.log.trackers) or None,
            project_dir=str(run.folder),
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
                InitProcessGroupKwargs(timeout=timedelta(seconds=run.collective_timeout)),
            ],
        )


def refuse_different(facts: Mapping[str, Any], *, what: str) -> None:
    """ValueError on every rank, naming what differs and where, unless `facts` are equal on all ranks."""
    words = {name: str(value) for name, value in sorted(facts.items())}
    digest = hashlib.blake2b(repr(words).encode()).hexdigest()
    if len(set(dist.gather_object(digest))) == 1:
        return
    ranks = dist.gather_object(words)
    lines = []
    for name in sorted({name for rank in ranks for name in rank}):
        holders: dict[str, list[str]] = {}
        for number, rank in enumerate(ranks):
            holders.setdefault(rank.get(name, "absent"), []).append(str(number))
        if len(holders) > 1:
            lines.append(f"{name}: " + ", ".join(f"{value} on rank {','.join(on)}" for value, on in holders.items()))
    raise ValueError(
        f"{what} differ between ranks:\n  " + "\n  ".join(lines) + "\nStart every rank with the same files, arguments "
        "and environment, from one checkout; a shared file system may show one host an old state for some seconds"
    )


def code_facts() -> dict[str, Any]:
    """What this process computes with: versions of Python and packages, and a hash of the sources of this package."""
    facts = host_facts()
    sources = hashlib.blake2b(digest_size=8)
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        sources.update(path.read_bytes())
    return {"python": facts["python"], "sources of vlp": sources.hexdigest(), **facts["versions"]}
