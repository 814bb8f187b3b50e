"""Checkpoints that are whole or not there: written aside, hashed, fsynced, renamed; the newest valid one is resumed.

A checkpoint is a folder `step-NNNNNNNN` of safetensors and JSON with a `manifest.json` that holds the sha256 of every
file. Nothing is pickled, so nothing in it can run.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlp import dist
from vlp.room import free, in_bytes, is_full

MANIFEST = "manifest.json"
T = TypeVar("T")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or is not whole; names the path and what to do."""


class NoRoomError(CheckpointError):
    """A checkpoint that the disk has no room for; names the path, the bytes needed and the bytes free."""


class Found(NamedTuple):
    """The newest valid checkpoint, and the ones passed over with the reason."""

    path: Path | None
    rejected: list[tuple[Path, str]]


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def write(root: Path, step: int, fill: Callable[[Path], object], *, keep: int = 2, need: int = 0) -> Path:
    """The folder `root/step-NNNNNNNN`, made by `fill(tmp)`; older ones go only after this one verifies.

    need: bytes it will take, as far as known. Raises CheckpointError if the disk refuses, NoRoomError with the bytes if
    it is full; earlier checkpoints are untouched and nothing of this one stays.
    """
    try:
        tmp = begin(root, step, need=need)
        fill(tmp)
        seal(tmp)
        return publish(root, step, keep=keep)
    except Exception as error:
        raise given_up(root, step, error, need=need) from error


def begin(root: Path, step: int, *, need: int = 0) -> Path:
    """The empty folder beside the checkpoints that one is made in; NoRoomError if `need` bytes are not free."""
    root.mkdir(parents=True, exist_ok=True)
    tmp = aside(root, step)
    sweep(root)
    refuse_no_room(root / name_of(step), need)
    tmp.mkdir()
    return tmp


def refuse_no_room(path: Path, need: int) -> None:
    """NoRoomError if there are fewer than `need` bytes free where `path` will be."""
    if need > free(path):
        raise NoRoomError(_no_room(path, need, "the disk is too full"))


def publish(root: Path, step: int, *, keep: int) -> Path:
    """Give the sealed folder its name, in one rename; once it reads back, older ones go."""
    final = root / name_of(step)
    if final.exists():  # the same step again after a rewind: the new one is whole, so it takes the place
        shutil.rmtree(final)
    os.replace(aside(root, step), final)
    _fsync(root)
    if reason := fault(final):
        raise CheckpointError(f"{final} was written but does not read back: {reason}; earlier checkpoints are kept")
    retain(root, keep, step=step)
    return final


def given_up(root: Path, step: int, error: Exception, *, need: int) -> Exception:
    """What to raise for an `error` while the checkpoint of `step` was made, once what there was of it is removed."""
    shutil.rmtree(aside(root, step), ignore_errors=True)
    if isinstance(error, CheckpointError) or not isinstance(error, OSError | SafetensorError):
        return error
    final = root / name_of(step)
    if is_full(error):
        return NoRoomError(_no_room(final, need, str(error)))
    return CheckpointError(f"could not save {final}: {error}. Earlier checkpoints are kept; mend the disk and resume")


def sweep(root: Path) -> None:
    """Remove what killed writers left, which may be as large as a checkpoint; the lock of the run has to be held."""
    for leftover in root.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def retain(root: Path, keep: int, *, step: int) -> None:
    """Remove all but the newest `keep` checkpoints up to that of `step`, and what killed writers left; 0 keeps all.

    Later ones are those that a resume passed over as damaged. They do not count: they would push out whole ones.
    """
    sweep(root)
    if keep > 0:
        for old in [path for path in listed(root) if step_of(path) <= step][:-keep]:
            shutil.rmtree(old, ignore_errors=True)


def refuse_moved_on(root: Path, found: Found) -> None:
    """CheckpointError if another process changed the checkpoints after `found` was chosen and before the lock came."""
    passed = {path for path, _ in found.rejected}
    newest_seen = -1 if found.path is None else step_of(found.path)
    newer = [path.name for path in listed(root) if path not in passed and step_of(path) > newest_seen]
    if newer or (found.path is not None and not found.path.is_dir()):
        raise CheckpointError(
            f"{root}: another process went on with this run while this one started"
            f"{f' and wrote {newer[-1]}' if newer else ''}; start again"
        )


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
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return f"{MANIFEST} is not readable: {error}"
    except OSError as error:
        return f"it cannot be read: {error}"
    return ""


def whole(root: Path) -> Found:
    """As `newest`, found by the first process for all; CheckpointError if there are checkpoints and none is whole."""
    found: Found | None = together(lambda: _whole(root), here=dist.is_main())
    return Found(*dist.broadcast_object(found))


def _whole(root: Path) -> Found:
    found = newest(root)
    if found.rejected and found.path is None:
        lines = "\n  ".join(f"{path}: {reason}" for path, reason in found.rejected)
        raise CheckpointError(
            f"no checkpoint of this run is whole:\n  {lines}\nPut back a copy; or remove {root} to start anew"
        )
    return found


def together(work: Callable[[], T], *, here: bool = True) -> T | None:
    """What `work` returns, on the processes where it is run (`here`); if it fails on one, all raise that error."""
    result, failure = None, None
    if here:
        try:
            result = work()
        except Exception as error:  # whatever it is, the other processes wait for word of it
            failure = error
    faults = [fault for fault in dist.gather_object(failure and _told(failure)) if fault]
    if isinstance(failure, CheckpointError) or (failure is not None and dist.world() == 1):
        raise failure
    if faults:
        kind, *words = faults[0]
        raise kind(*words) from failure
    return result


def _told(error: Exception) -> tuple[type[Exception], *tuple[Any, ...]]:
    """An error as what makes it anew in another process: of its kind where a caller asks for the kind."""
    if isinstance(error, CheckpointError):
        return type(error), str(error)
    if is_full(error):
        return OSError, errno.ENOSPC, str(error)
    return CheckpointError, f"{type(error).__name__}: {error}"


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


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error


def replace_json(path: Path, value: Any) -> None:
    """As `write_json`, but the file is the old one or the new one whenever the process dies."""
    partial = path.with_name(f".{path.name}.tmp")
    write_json(partial, value)
    _fsync(partial)
    partial.replace(path)


def entry(file: Path) -> dict[str, Any]:
    """What the manifest says of a file."""
    return {"bytes": file.stat().st_size, "sha256": sha256(file)}


def seal(folder: Path, *, known: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Write the manifest of what is in `folder`, and make the disk keep it.

    known: entries of files, by their path in the folder, that another process wrote, hashed and synced.
    """
    entries = dict(known or {})
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).as_posix() not in entries)
    entries.update({p.relative_to(folder).as_posix(): entry(p) for p in files})
    write_json(folder / MANIFEST, {"schema": 1, "files": entries})
    for path in [*files, folder / MANIFEST, *(p for p in folder.rglob("*") if p.is_dir()), folder]:
        _fsync(path)


def aside(root: Path, step: int) -> Path:
    """Where the checkpoint of `step` is made."""
    return root / f".{name_of(step)}.tmp"


def _no_room(path: Path, need: int, why: str) -> str:
    needed = f"it needs {in_bytes(need)}, " if need else ""
    return (
        f"could not save {path}: {why}; {needed}{in_bytes(free(path))} are free. "
        "Earlier checkpoints are kept; make room and resume, or keep fewer (save.keep)"
    )


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
