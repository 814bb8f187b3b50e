"""Batches taken from a loader against the clock. All environments import it; it needs torch alone."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tree import cpu_seconds


def drain(batches: Iterator[tuple[Tensor, Tensor]], settings: dict[str, Any]) -> None:
    """Prints, as JSON, wall and CPU seconds of `batches` batches after `warmup` ones, seconds to the first, and what
    was in them: hashes of the rows of ids without padding, mean and standard deviation of the pixels.
    """
    began = time.perf_counter()
    first = next(batches)
    to_first = time.perf_counter() - began
    for _ in range(settings["warmup"] - 1):
        next(batches)
    wall, cpu = time.perf_counter(), cpu_seconds()
    count = 0
    for _ in range(settings["batches"]):
        count += len(next(batches)[0])
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    image, ids = first
    rows = sorted({hashlib.sha256(repr([i for i in row if i]).encode()).hexdigest()[:16] for row in ids.tolist()})
    std, mean = torch.std_mean(image.float(), dim=(0, 2, 3))
    found = {"samples": count, "wall": wall, "cpu": cpu, "first": to_first, "dtype": str(image.dtype)}
    print(json.dumps(found | {"rows": rows, "mean": mean.tolist(), "std": std.tolist()}), flush=True)
