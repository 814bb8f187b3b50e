"""What a run carries from one process to the next: model, optimizer, companions and one integer, the step."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from vlp import checkpoint, config, dist, sharded
from vlp.data.plan import changed_shards
from vlp.log import flatten, host_facts
from vlp.models import pretrained
from vlp.models.dual import Dual
from vlp.optim_state import load_optimizer, optimizer_room, optimizer_tensors
from vlp.prepare import Prepared
from vlp.run import Run
from vlp.sharded import Shards

OPTIMIZER = "optimizer/"  # how names of its state begin
MODEL = "model"  # folder in a checkpoint that plain open_clip loads
SHARDED = "sharded"  # folder in a checkpoint that all processes wrote
_ASIDE = 1 << 20  # bytes for what is beside tensors: tokenizer, configuration, manifest

# Settings that say how a run is watched or where it computes, not what it computes: free to differ on resume.
FREE = (
    "name", "out", "log", "save", "evals", "threads", "device", "data.workers", "data.prefetch", "data.timeout",
    "data.cache", "data.max_bad_fraction", "expect_world", "resume", "allow_change", "compile", "max_nonfinite",
    "micro_batch", "model.pretrained", "spike", "collective_timeout",
)  # fmt: skip


class Progress(NamedTuple):
    """Where the run stands: everything else about its data order follows from the step."""

    step: int = 0
    seconds: float = 0.0
    skips: Mapping[str, int] = {}  # counts by reason


class State:
    """The things that are saved together, and their way into a checkpoint folder and back."""

    def __init__(self, run: Run, parts: Prepared, *, scaler: Any) -> None:
        self.run, self.dual, self.adamw, self.shards = run, parts.dual, parts.adamw, parts.shards
        self.companions, self.scaler, feed = parts.companions, scaler, parts.feed
        self.facts = {"batch_size": feed.batch_size, "streams": feed.streams, "fingerprint": feed.fingerprint}
        self.shard_hashes = feed.plan.shards()
        self.root = run.folder / "checkpoints"

    @property
    def bytes_needed(self) -> int:
        """About what a checkpoint takes, also before the optimizer has any state."""
        model = _bytes(self.dual.state_dict())
        trained = _bytes({name: p for name, p in self.dual.named_parameters() if p.requires_grad})
        total = model + 2 * trained + _ASIDE + (0 if self.shards is None else model)
        for companion in self.companions.values():
            total += _bytes(companion.state_dict()) + (model if hasattr(companion, "applied") else 0)
        return total

    def refuse_no_room(self) -> None:
        """NoRoomError on every process, before anything is trained, if not even one checkpoint has room."""

        def refuse() -> None:
            checkpoint.sweep(self.root)
            checkpoint.refuse_no_room(self.root, self.bytes_needed)

        checkpoint.together(refuse, here=dist.is_main())

    def introduce(self) -> None:
        """Write config.yaml and host.json into the folder of the run, each whole or not there."""
        path = self.run.folder / "config.yaml"
        partial = path.with_name(f".{path.name}.tmp")
        partial.write_text(config.to_yaml(self.run), encoding="utf-8")
        partial.replace(path)
        checkpoint.replace_json(self.run.folder / "host.json", host_facts())

    def save(self, progress: Progress) -> None:
        """Write the checkpoint of `progress.step`; every process calls it, and gets the same error if there is one:
        NoRoomError where the disk is full, CheckpointError for the rest.
        """
        if self.shards is not None:
            self._save_together(self.shards, progress)
            return
        save = lambda: checkpoint.write(  # noqa: E731
            self.root,
            progress.step,
            lambda folder: self._fill(folder, progress),
            keep=self.run.save.keep,
            need=self.bytes_needed,
        )
        checkpoint.together(save, here=dist.is_main())

    def _fill(self, folder: Path, progress: Progress) -> None:
        pretrained.save(self.dual, folder / MODEL)
        for name, companion in self.companions.items():
            checkpoint.save_tensors(folder / f"companion.{name}.safetensors", companion.state_dict())
            if hasattr(companion, "applied"):  # an average of the weights is a model of its own
                with companion.applied(self.dual):
                    pretrained.save(self.dual, folder / f"model_{name}")
        checkpoint.save_tensors(folder / "optimizer.safetensors", optimizer_tensors(self.adamw))
        self._describe(folder, progress)

    def _describe(self, folder: Path, progress: Progress) -> None:
        (folder / "config.yaml").write_text(config.to_yaml(self.run), encoding="utf-8")
        state = {
            "schema": 1,
            **progress._asdict(),
            **self.facts,
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "host": host_facts(),
        }
        checkpoint.write_json(folder / "state.json", state)
        checkpoint.write_json(folder / "shards.json", self.shard_hashes)

    def _save_together(self, shards: Shards, progress: Progress) -> None:
        """As `checkpoint.write`, while every process writes its part; one rename makes it a checkpoint."""
        main, need = dist.is_main(), self.bytes_needed
        try:
            checkpoint.together(lambda: checkpoint.begin(self.root, progress.step, need=need), here=main)
            folder = checkpoint.aside(self.root, progress.step)
            known = sharded.save(folder / SHARDED, self._tensors())
            for name, model in self._models(shards):
                checkpoint.together(partial(pretrained.save, model, folder / name), here=main)
            checkpoint.together(lambda: self._describe(folder, progress), here=main)
            entries = {f"{SHARDED}/{name}": entry for name, entry in known.items()}
            checkpoint.together(lambda: checkpoint.seal(folder, known=entries), here=main)
            checkpoint.together(
                lambda: checkpoint.publish(self.root, progress.step, keep=self.run.save.keep), here=main
            )
        except Exception as error:
            error = checkpoint.given_up(self.root, progress.step, error, need=need)
            raise error from error.__cause__

    def _models(self, shards: Shards) -> Iterator[tuple[str, Dual]]:
        """The whole model, and each average of it, with the name of its folder; one after the other."""
        with shards.assembled(on_all=False) as model:
            yield MODEL, model
        for name, companion in self.companions.items():
            if hasattr(companion, "applied"):
                with companion.applied(self.dual), shards.assembled(on_all=False) as model:
                    yield f"model_{name}", model

    def _tensors(self) -> dict[str, Tensor]:
        """All tensors of the run, under one name each."""
        companions = {name: companion.state_dict() for name, companion in self.companions.items()}
        return self._named(optimizer_tensors(self.adamw), companions)

    def _named(
        self, moments: Mapping[str, Tensor], companions: Mapping[str, Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        found = {f"model/{name}": tensor for name, tensor in self.dual.state_dict().items()}
        found |= {f"{OPTIMIZER}{name}": tensor for name, tensor in moments.items()}
        for companion, tensors in companions.items():
            found |= {f"companion.{companion}/{name}": tensor for name, tensor in tensors.items()}
        return {name: tensor.detach() for name, tensor in found.items()}

    def load(self, path: Path) -> Progress:
        """Put a checkpoint back in place; CheckpointError naming every setting or shard set that differs."""
        saved = checkpoint.read_json(path / "state.json")
        self._refuse_change(path, saved)
        if (path / SHARDED).is_dir():
            self._load_together(path / SHARDED)
        elif self.shards is not None:
            raise checkpoint.CheckpointError(
                f"{path} was written with parallel=ddp; go on with that, or start from its weights with parallel=fsdp2 "
                f"in a folder of its own: model.pretrained={path / 'model'}"
            )
        else:
            self._load_files(path)
        if self.scaler is not None and saved.get("scaler"):
            self.scaler.load_state_dict(saved["scaler"])
        return Progress(int(saved["step"]), float(saved["seconds"]), saved["skips"])

    def _load_files(self, path: Path) -> None:
        pretrained.load_weights(self.dual, path / MODEL)
        load_optimizer(self.adamw, checkpoint.load_tensors(path / "optimizer.safetensors"))
        for name, companion in self.companions.items():
            file = path / f"companion.{name}.safetensors"
            if not file.is_file():
                raise checkpoint.CheckpointError(
                    f"{path} has no state for companion {name}; it was not part of the run"
                )
            companion.load_state_dict(checkpoint.load_tensors(file))

    def _load_together(self, folder: Path) -> None:
        there = sharded.stored(folder)
        own = {n.removeprefix(OPTIMIZER): t for n, t in there.items() if n.startswith(OPTIMIZER)}
        moments = optimizer_room(self.adamw, own)
        companions = {name: companion.state_dict() for name, companion in self.companions.items()}
        sharded.load(folder, self._named(moments, companions))
        load_optimizer(self.adamw, moments)
        for name, found in companions.items():
            self.companions[name].load_state_dict(found)

    def _refuse_change(self, path: Path, saved: Mapping[str, Any]) -> None:
        moved = [f"companions.{n}.pretrained" for n in range(len(self.run.companions))]  # they know it by its weights
        lines = differences(
            config.read_yaml(path / "config.yaml"), self.run.model_dump(mode="json"), [*self.run.allow_change, *moved]
        )
        for key, value in self.facts.items():
            if saved.get(key) != value and key not in self.run.allow_change:
                lines.append(f"{key}: {saved.get(key)} in the checkpoint, {value} now")
                if key == "fingerprint" and (path / "shards.json").is_file():
                    lines += changed_shards(checkpoint.read_json(path / "shards.json"), self.shard_hashes)[:20]
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


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
