"""Whether the batches that loader workers make ahead fit into shared memory; where they do not, a process dies."""

from __future__ import annotations

import os
from pathlib import Path

from vlp.data.schema import DataError

SHM = Path("/dev/shm")


def refuse_small(batch_bytes: int, *, workers: int, prefetch: int) -> None:
    """DataError where /dev/shm has no room for what the workers of all ranks of this machine hold at once.

    Elsewhere a worker that finds it full ends by SIGBUS. Ranks of this machine: LOCAL_WORLD_SIZE, which torchrun sets.
    """
    if not SHM.is_dir():
        return
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    place = os.statvfs(SHM)
    free, need = place.f_bavail * place.f_frsize, batch_bytes * workers * prefetch * ranks
    if free < need:
        raise DataError(
            f"{ranks} rank(s) x data.workers={workers} x data.prefetch={prefetch} batches of {_mebibytes(batch_bytes)} "
            f"need {_mebibytes(need)} of shared memory, {SHM} has {_mebibytes(free)} free; lower data.prefetch or "
            "data.workers, remove what ended runs left there, or give the container more (`docker run --shm-size=16g`; "
            "in Kubernetes an emptyDir of medium Memory at /dev/shm)"
        )


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
