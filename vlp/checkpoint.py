"""Checkpoints that are whole or not there: written aside, hashed, fsynced, renamed; the newest valid one is resumed.

A checkpoint is a folder `step-NNNNNNNN` of safetensors and JSON with a `manifest.json` that holds the sha256 of every
file. Nothing is pickled, so nothing in it can run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

MANIFEST = "manifest.json"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or is not whole; names the path and what to do."""


class Found(NamedTuple):
    """The newest valid checkpoint, and the ones passed over with the reason."""

    path: Path | None
    rejected: list[tuple[Path, str]]


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def write(root: Path, step: int, fill: Callable[[Path], None], *, keep: int = 2) -> Path:
    """The folder `root/step-NNNNNNNN`, made by `fill(tmp)`; older ones go only after this one verifies.

    Raises CheckpointError with the path and the free space if the disk refuses; earlier checkpoints are untouched.
    """
    root.mkdir(parents=True, exist_ok=True)
    final, tmp = root / name_of(step), root / f".{name_of(step)}.tmp"
    shutil.rmtree(tmp, ignore_errors=True)
    try:
        tmp.mkdir()
        fill(tmp)
        _seal(tmp)
        if final.exists():  # the same step again after a rewind: the new one is whole, so it takes the place
            shutil.rmtree(final)
        os.replace(tmp, final)
        _fsync(root)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(tmp, ignore_errors=True)
        free = shutil.disk_usage(root).free / 2**20
        raise CheckpointError(
            f"could not save {final}: {error}; {free:.0f} MiB free. Earlier checkpoints are kept; make room and resume"
        ) from error
    if reason := fault(final):
        raise CheckpointError(f"{final} was written but does not read back: {reason}; earlier checkpoints are kept")
    retain(root, keep)
    return final


def retain(root: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what killed writers left; 0 keeps all."""
    for leftover in root.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    if keep > 0:
        for old in listed(root)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)


def listed(root: Path) -> list[Path]:
    """All checkpoint folders under `root`, oldest first, valid or not."""
    return sorted(p for p in root.glob("step-*") if p.is_dir() and p.name.removeprefix("step-").isdigit())


def newest(root: Path) -> Found:
    """The newest checkpoint whose every file has the hash its manifest says."""
    rejected: list[tuple[Path, str]] = []
    for path in reversed(listed(root)):
        reason = fault(path)
        if not reason:
            return Found(path, rejected)
        rejected.append((path, reason))
    return Found(None, rejected)


def fault(path: Path) -> str:
    """Why the checkpoint is not whole; an empty string if it is."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        for name, entry in manifest["files"].items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != entry["bytes"]:
                return f"{name} has {file.stat().st_size} bytes, not {entry['bytes']}"
            if sha256(file) != entry["sha256"]:
                return f"{name} does not have the hash of the manifest"
    except FileNotFoundError:
        return f"no {MANIFEST}: the save did not finish"
    except (ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} is not readable: {error}"
    return ""


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Tensors as safetensors, on the CPU and contiguous; shared memory is written twice rather than refused."""
    save_file({name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except Exception as error:  # safetensors raises its own class, without the file's name
        raise CheckpointError(f"{path} is not readable: {error}") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name ("exp_avg/image.conv1.weight"), names as `Optim.groups` gave them.

    A parameter that never had a gradient has no state; "unmoved/NAME" says so.
    """
    flat: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            state = optimizer.state.get(parameter) or {"unmoved": torch.empty(0)}
            flat.update({f"{key}/{name}": torch.as_tensor(value) for key, value in state.items()})
    return flat


def load_optimizer(optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; CheckpointError naming parameters that the checkpoint lacks."""
    by_name: dict[str, dict[str, Tensor]] = {}
    for path, value in flat.items():
        key, _, name = path.partition("/")
        by_name.setdefault(name, {})[key] = value
    missing = []
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if name not in by_name:
                missing.append(name)
                continue
            state = by_name[name]
            if "unmoved" in state:
                optimizer.state.pop(parameter, None)
                continue
            optimizer.state[parameter] = {
                key: value.to(parameter.device if key != "step" or group.get("fused") else "cpu")
                for key, value in state.items()
            }
    if missing and by_name:
        raise CheckpointError(f"the checkpoint's optimizer has no state for {', '.join(missing[:5])} ({len(missing)})")


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error


def _seal(folder: Path) -> None:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    manifest = {
        "schema": 1,
        "files": {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files},
    }
    write_json(folder / MANIFEST, manifest)
    for path in [*files, folder / MANIFEST, *(p for p in folder.rglob("*") if p.is_dir()), folder]:
        _fsync(path)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
