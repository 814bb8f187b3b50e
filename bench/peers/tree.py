"""CPU seconds and memory of a process with its loader workers (Linux). All environments import it, so it needs none."""

from __future__ import annotations

import multiprocessing
import os
import resource
from pathlib import Path


def cpu_seconds() -> float:
    """Of this process and of its workers that are running."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    workers = sum(_ticks(child.pid or 0) for child in multiprocessing.active_children())
    return own.ru_utime + own.ru_stime + workers / os.sysconf("SC_CLK_TCK")


def memory_bytes(pid: int) -> int:
    """Of a process and all below it; pages that n of them share count as 1/n in each, so nothing counts twice."""
    return sum(_pss(one) for one in _below(pid))


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0
    return int(fields[11]) + int(fields[12])


def _below(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        try:
            found += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
        except OSError:
            continue
    return found


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
