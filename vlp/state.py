"""What a run carries from one process to the next: model, optimizer, companions and one integer, the step."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlp import checkpoint, config
from vlp.log import flatten, host_facts
from vlp.models import pretrained
from vlp.prepare import Prepared
from vlp.run import Run

# Settings that say how a run is watched or where it computes, not what it computes: free to differ on resume.
FREE = (
    "name", "out", "log", "save", "evals", "threads", "device", "data.workers", "data.prefetch", "data.timeout",
    "data.cache", "data.max_bad_fraction", "expect_world", "resume", "allow_change", "compile", "max_nonfinite",
    "micro_batch", "model.pretrained",
)  # fmt: skip


class Progress(NamedTuple):
    """Where the run stands: everything else about its data order follows from the step."""

    step: int = 0
    seconds: float = 0.0
    skips: Mapping[str, int] = {}  # counts by reason


class State:
    """The things that are saved together, and their way into a checkpoint folder and back."""

    def __init__(self, run: Run, parts: Prepared, *, scaler: Any) -> None:
        self.run, self.dual, self.adamw = run, parts.dual, parts.adamw
        self.companions, self.scaler, feed = parts.companions, scaler, parts.feed
        self.facts = {"batch_size": feed.batch_size, "streams": feed.streams, "fingerprint": feed.fingerprint}
        self.root = run.folder / "checkpoints"

    def save(self, progress: Progress) -> Path:
        """Write the checkpoint of `progress.step`; CheckpointError if the disk refuses."""
        return checkpoint.write(
            self.root, progress.step, lambda folder: self._fill(folder, progress), keep=self.run.save.keep
        )

    def _fill(self, folder: Path, progress: Progress) -> None:
        pretrained.save(self.dual, folder / "model")
        for name, companion in self.companions.items():
            checkpoint.save_tensors(folder / f"companion.{name}.safetensors", companion.state_dict())
            if hasattr(companion, "applied"):  # an average of the weights is a model of its own
                with companion.applied(self.dual):
                    pretrained.save(self.dual, folder / f"model_{name}")
        checkpoint.save_tensors(folder / "optimizer.safetensors", checkpoint.optimizer_tensors(self.adamw))
        (folder / "config.yaml").write_text(config.to_yaml(self.run), encoding="utf-8")
        state = {
            "schema": 1,
            **progress._asdict(),
            **self.facts,
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "host": host_facts(),
        }
        checkpoint.write_json(folder / "state.json", state)

    def load(self, path: Path) -> Progress:
        """Put a checkpoint back in place; CheckpointError naming every setting or shard set that differs."""
        saved = checkpoint.read_json(path / "state.json")
        self._refuse_change(path, saved)
        pretrained.load_weights(self.dual, path / "model")
        checkpoint.load_optimizer(self.adamw, checkpoint.load_tensors(path / "optimizer.safetensors"))
        for name, companion in self.companions.items():
            file = path / f"companion.{name}.safetensors"
            if not file.is_file():
                raise checkpoint.CheckpointError(
                    f"{path} has no state for companion {name}; it was not part of the run"
                )
            companion.load_state_dict(checkpoint.load_tensors(file))
        if self.scaler is not None and saved.get("scaler"):
            self.scaler.load_state_dict(saved["scaler"])
        return Progress(int(saved["step"]), float(saved["seconds"]), saved["skips"])

    def _refuse_change(self, path: Path, saved: Mapping[str, Any]) -> None:
        moved = [f"companions.{n}.pretrained" for n in range(len(self.run.companions))]  # they know it by its weights
        lines = differences(
            config.read_yaml(path / "config.yaml"), self.run.model_dump(mode="json"), [*self.run.allow_change, *moved]
        )
        for key, value in self.facts.items():
            if saved.get(key) != value and key not in self.run.allow_change:
                lines.append(f"{key}: {saved.get(key)} in the checkpoint, {value} now")
        if lines:
            raise checkpoint.CheckpointError(
                f"{path} belongs to another run:\n  "
                + "\n  ".join(lines)
                + "\nGive the run another name, or let a change pass with allow_change=[KEY]"
            )


def differences(old: Mapping[str, Any], new: Mapping[str, Any], allowed: Sequence[str]) -> list[str]:
    """One line per setting that differs and matters, sorted by dotted path."""
    before, after = flat_settings(old), flat_settings(new)
    lines = []
    for dotted in sorted(before.keys() | after.keys()):
        if (
            before.get(dotted) != after.get(dotted)
            and not MOVED.fullmatch(dotted)
            and not _covers(FREE, dotted)
            and not _covers(allowed, dotted)
        ):
            lines.append(f"{dotted}: {before.get(dotted)} in the checkpoint, {after.get(dotted)} now")
    return lines


MOVED = re.compile(r"data\.sources\.\d+\.(urls|path)(\.\d+)?")  # data may move: their fingerprint is what counts


def _covers(keys: Sequence[str], dotted: str) -> bool:
    return any(dotted == key or dotted.startswith(f"{key}.") for key in keys)


def flat_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted path -> plain value, list items by their number."""
    return {path.replace("/", "."): value for path, value in flatten(_listed(settings))}


def _listed(value: Any) -> Any:
    """Lists as mappings by position, so that they flatten like the rest."""
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return {str(i): _listed(item) for i, item in enumerate(value)}
    return value


class Lock:
    """One run a folder: refuses a folder that a live process on this machine is writing to."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "lock.json"
        if self.path.is_file() and (holder := self._holder()):
            raise checkpoint.CheckpointError(
                f"{folder} is in use by process {holder}; wait for it, stop it, or give this run another name"
            )
        try:
            self.path.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), encoding="utf-8")
        except OSError as error:
            raise checkpoint.CheckpointError(f"cannot write into {folder}: {error}; choose another out=") from error

    def _holder(self) -> str:
        try:
            held = json.loads(self.path.read_text(encoding="utf-8"))
            if held["host"] != socket.gethostname():
                return f"{held['pid']} on {held['host']} (remove {self.path} if that one is gone)"
            os.kill(int(held["pid"]), 0)
        except (ValueError, KeyError, ProcessLookupError):
            return ""
        except PermissionError:  # it lives, and is somebody else's
            return str(held["pid"])
        return "" if int(held["pid"]) == os.getpid() else str(held["pid"])

    def release(self) -> None:
        self.path.unlink(missing_ok=True)
