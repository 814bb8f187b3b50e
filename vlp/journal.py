"""What a run writes down while it goes: numbers by step, samples left out, seconds by stage, what was evaluated."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlp import checkpoint, dist
from vlp.data.feed import Feed
from vlp.duration import Clock
from vlp.guards import none_usable, refuse_bad_data
from vlp.log import JsonLines, Meter, Reporter, SkipLedger, Tracker, console
from vlp.room import is_full
from vlp.run import Run
from vlp.spikes import Spike, record_of
from vlp.state import Progress
from vlp.types import Batch, Skip

ASIDE = ("save", "evaluate")  # stages that are no part of the pace of training


class Journal:
    """The books of one process; numbers and skips of all ranks come together at every record."""

    def __init__(
        self,
        folder: Path,
        *,
        clock: Clock,
        start: Progress,
        max_bad_fraction: float,
        trackers: Iterable[Tracker] = (),
    ) -> None:
        main = dist.is_main()
        self.folder, self.clock, self.max_bad_fraction = folder, clock, max_bad_fraction
        self.report = Reporter(folder, total=clock.total, start=start.step, main=main, trackers=trackers)
        self.meter = Meter()
        self.ledger = SkipLedger(folder / "skips.jsonl" if main else None)
        self.ledger.counts.update(start.skips)
        self.ledger.seen = start.step * clock.batch_size
        self._began = time.perf_counter() - start.seconds
        self._skips: list[Skip] = []
        self._notes: Counter[str] = Counter()
        self._samples = 0
        self.unsaved = 0  # checkpoints of this start that the disk had no room for
        self._last: dict[str, Any] = {}
        self._spikes: JsonLines | None = None

    def seen(self, batch: Batch) -> None:
        """Take note of a batch that was trained on."""
        self._skips.extend(batch.skips)
        self._notes.update(batch.notes)
        self._samples += len(batch)

    def refuse_empty(self, batch: Batch) -> None:
        """RuntimeError where the first batch has no pair on any rank: its loss would be a 0 that nothing was seen for.

        Every rank calls it, after `seen`.
        """
        if not dist.agree(bool(batch.valid.any())):
            self._gather(1)
            raise none_usable(self.ledger, folder=self.folder)

    def record(self, done: int, step: Mapping[str, Any], **more: Any) -> None:
        """Write the record of step `done`, with `more`; RuntimeError once too many samples could not be used.

        step: its "lr", and of one that had a pair its "loss", "terms" and "grad_norm"; the record has no others.
        """
        wall, stages = self.meter.lap()
        pace = max(1e-9, wall - sum(stages.get(stage, 0.0) for stage in ASIDE))
        samples = self._gather(done)
        self._last = {
            "step": done,
            "samples": done * self.clock.batch_size,
            "epoch": self.clock.epoch(done),
            **_found(step),
            "lr": step["lr"],
            "samples_per_s": samples / pace,
            "data_wait": stages.get("data wait", 0.0) / pace,
            "seconds": time.perf_counter() - self._began,
            "stages": dict(self.meter.seconds),
            "skipped": self.ledger.total,
            "notes": dict(self.ledger.notes),
            "unsaved": self.unsaved,
            **more,
        }
        self.report.step(self._last)
        refuse_bad_data(self.ledger, limit=self.max_bad_fraction, folder=self.folder)

    def _gather(self, done: int) -> int:
        """Samples since the last record over all ranks; their skips and notes are in the ledger."""
        samples = self._samples * dist.world()
        shares = dist.gather_object((self._skips, self._notes))
        skips = [skip for rank, _ in shares for skip in rank]
        for _, notes in shares:
            self.ledger.notes.update(notes)
        self.ledger.add(skips, step=done, samples=samples)
        self._skips, self._notes, self._samples = [], Counter(), 0
        return samples

    def spike(self, spike: Spike) -> None:
        """Write a spike to spikes.jsonl with the last samples of all ranks, and say so. Every rank calls it."""
        shares = dist.gather_object(spike.last)
        if not dist.is_main():
            return
        path = self.folder / "spikes.jsonl"
        self._spikes = self._spikes or JsonLines(path)
        self._spikes.write(record_of(spike, shares))
        what = ", ".join(
            f"{name} {value:.4g} (median {middle:.4g}, limit {limit:.4g})"
            for name, (value, middle, limit) in spike.above.items()
        )
        self.report.say(f"step {spike.step}: spike of {what}; the samples of the last {len(spike.last)} steps: {path}")

    def progress(self, done: int) -> Progress:
        """Where the run stands, as a checkpoint keeps it."""
        seconds = time.perf_counter() - self._began
        return Progress(done, seconds, dict(self.ledger.counts))

    def close(self) -> None:
        if self._last:  # the last save and evaluation came after the record
            self.report.amend({**self._last, "stages": dict(self.meter.seconds), "unsaved": self.unsaved})
        self.report.close()
        self.ledger.close()
        if self._spikes:
            self._spikes.close()


class Evaluated:
    """Which evaluation was last done at which step: one that a kill cut short is made up for on the next start."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "evaluated.json"
        found = self._read() if dist.is_main() and self.path.is_file() else {}
        self.steps: dict[str, int] = dict(dist.broadcast_object(found))

    def _read(self) -> dict[str, int]:
        try:
            return dict(checkpoint.read_json(self.path))
        except (checkpoint.CheckpointError, TypeError, ValueError) as error:
            text = f"{error}; evaluations of the step it starts from are made again"
            console.print(text, highlight=False, soft_wrap=True)
            return {}

    def __contains__(self, item: tuple[int, int]) -> bool:
        number, step = item
        return self.steps.get(str(number)) == step

    def add(self, number: int, step: int) -> None:
        self.steps[str(number)] = step
        if dist.is_main():
            try:
                checkpoint.replace_json(self.path, self.steps)
            except OSError as error:
                if not is_full(error):
                    raise
                console.print(f"{self.path}: {error}; a restart makes this evaluation again", soft_wrap=True)


def opening(run: Run, progress: Progress, *, clock: Clock, feed: Feed, trained: Sequence[Tensor]) -> str:
    """What is said before the first step: how much is to be done with what; or that nothing is left to do.

    trained: the parameters that the optimizer changes.
    """
    total = clock.total
    if progress.step >= total:
        return (
            f"{run.name} is finished ({progress.step} of {total} steps); nothing to train. "
            "Longer: duration=... allow_change=[duration]; anew: name=OTHER"
        )
    verb = f"resumed at step {progress.step}" if progress.step else "starts"
    numbers = sum(map(Tensor.numel, trained)) / 1e6
    return (
        f"{run.name} {verb}: {total} steps of {feed.batch_size} pairs from {feed.num_samples} samples, "
        f"{numbers:.1f} M parameters, {dist.world()} process(es), {torch.get_num_threads()} thread(s), "
        f"{trained[0].device}, precision {run.precision}"
    )


def _found(step: Mapping[str, Any]) -> dict[str, Any]:
    """Loss, terms and gradient norm over all ranks; nothing for a step that no rank had a pair for."""
    if "loss" not in step:
        return {}
    terms = {name: _mean(term) for name, term in step["terms"].items()}
    return {"loss": _mean(step["loss"]), "terms": terms, "grad_norm": float(step["grad_norm"])}


def _mean(value: Tensor) -> float:
    """The single-process value: ranks hold W times their share."""
    with torch.no_grad():
        return float(dist.total(value.detach().float())) / dist.world()
