"""The runs of a sequence one after the other: done ones skipped, others resumed, all domains measured after each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from accelerate import PartialState
from torch import nn

from vlp import checkpoint, config, dist
from vlp.checkpoint import CheckpointError
from vlp.continual import START
from vlp.log import console
from vlp.losses.objective import Objective
from vlp.models import pretrained
from vlp.models.dual import Dual
from vlp.models.state import load_strict, read_weights
from vlp.prepare import dual_of
from vlp.run import Run
from vlp.state import differences
from vlp.trainer import Trainer

ORIGIN = "started_from.json"  # which weights a run of a sequence began with


class Judge(Protocol):
    """Measures a model on the benchmarks of all domains, and keeps that in the folder of a stage."""

    def done(self, folder: Path) -> bool:
        """Whether the folder holds all measurements of its stage."""

    def __call__(self, dual: nn.Module, folder: Path, *, step: int) -> None: ...


def train(runs: Sequence[Run], judge: Judge, *, after: Callable[[], None] = lambda: None) -> None:
    """Every run to its end, each from the model of the one before; `after` is called when a stage has been measured.

    The starting model is measured first. What is done is left alone; CheckpointError where it was made with other
    settings, or from another model, than now.
    """
    state = PartialState(cpu=runs[0].device == "cpu" or not torch.cuda.is_available())
    start = runs[0].folder.parent / START
    if not _agreed(judge.done(start)):
        judge(starting_model(runs[0]).to(state.device), start, step=0)
        after()
    for number, run in enumerate(runs):
        before = runs[number - 1] if number else None
        if before is not None:
            _refuse_other_origin(run, before)
        if _agreed(_is_done(run, judge)):
            _say(f"{run.folder}: done before")
            continue
        trainer = Trainer(run)
        if before is not None and trainer.found.path is None:
            for line in carry(trainer, before):
                _say(f"{run.name}: {line}")
        trainer.train()
        judge(trainer.dual, run.folder, step=trainer.clock.total)
        after()


def starting_model(run: Run) -> Dual:
    """The model that `run` starts from, as `prepare` makes it."""
    torch.manual_seed(run.seed)
    return dual_of(run, Objective(run.losses))


def carry(trainer: Trainer, before: Run) -> list[str]:
    """Take over what outlives a domain from the newest checkpoint of the run before; one line for each thing.

    Heads of losses that both runs have, and the queue, whose labels and samples are forgotten: in the next domain the
    same number means another sample. The towers come by `model.pretrained`. Optimizer, momentum copy (a copy of the
    model again, as in CTP's code) and averages begin anew.
    """
    found = _newest(before)
    lines = _carry_heads(trainer.dual, found / "model" / pretrained.HEADS_FILE)
    for name, companion in trainer.companions.items():
        file = found / f"companion.{name}.safetensors"
        if name.partition(".")[0] == "queue" and file.is_file():
            state = checkpoint.load_tensors(file)
            state["label"].fill_(-1)
            state["sample"].fill_(-1)
            companion.load_state_dict(state)
            lines.append(f"{name} goes on with what it held")
    if dist.is_main():
        trainer.run.folder.mkdir(parents=True, exist_ok=True)
        checkpoint.write_json(trainer.run.folder / ORIGIN, {"run": before.name, "weights": _weights(found)})
    return lines


def _carry_heads(dual: Dual, file: Path) -> list[str]:
    state = read_weights(file) if file.is_file() else {}
    lines = []
    for name, head in dual.heads.items():
        own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        if own:
            load_strict(head, own, where=f"{file}: {name}")
            lines.append(f"head {name} goes on")
    return lines


def _is_done(run: Run, judge: Judge) -> bool:
    """Whether the run is trained and measured; CheckpointError if it was with other settings than now."""
    if not judge.done(run.folder):
        return False
    lines = differences(config.read_yaml(run.folder / "config.yaml"), run.model_dump(mode="json"), run.allow_change)
    if lines:
        raise CheckpointError(
            f"{run.folder} is done, but with other settings:\n  "
            + "\n  ".join(lines)
            + "\nGive the sequence another name, or remove this folder and those after it"
        )
    return True


def _refuse_other_origin(run: Run, before: Run) -> None:
    """CheckpointError for a run whose starting model is no longer that of the run before."""
    file = run.folder / ORIGIN
    if file.is_file() and checkpoint.read_json(file)["weights"] != _weights(_newest(before)):
        raise CheckpointError(
            f"{run.folder} began from other weights than {before.folder} holds now; remove it and those after it"
        )


def _newest(run: Run) -> Path:
    found = checkpoint.newest(run.folder / "checkpoints").path
    if found is None:
        raise CheckpointError(f"{run.folder} holds no whole checkpoint; remove it, and the sequence makes it again")
    return found


def _weights(found: Path) -> str:
    """Hash of the model in a checkpoint."""
    files = checkpoint.read_json(found / checkpoint.MANIFEST)["files"]
    return str(files[f"model/{pretrained.WEIGHTS_FILE}"]["sha256"])


def _agreed(flag: bool) -> bool:
    """What the main process found: others may see files later."""
    return bool(dist.broadcast_object(flag))


def _say(text: str) -> None:
    if dist.is_main():
        console.print(text, highlight=False, markup=False)
