"""The training loop, in the open: batch, rate, features, objective, backward, clip, step, clamp, companions, log."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn

from vlp import checkpoint, config, dist, gradcache, state
from vlp.duration import Duration
from vlp.guards import leave_no_trace, refuse_absent_trackers, refuse_bad_data
from vlp.log import Meter, Reporter, SkipLedger, console, host_facts
from vlp.losses.objective import Objective
from vlp.optim import set_rate
from vlp.prepare import prepare
from vlp.requeue import Requeue, Signals
from vlp.run import Run
from vlp.state import Lock, Progress
from vlp.types import Batch


class Evaluator(NamedTuple):
    """A measurement during the run, as a value: the trainer knows when, the function knows what."""

    every: Duration
    measure: Callable[[nn.Module, int], Mapping[str, float]]


class NonFiniteError(RuntimeError):
    """The loss or a gradient stayed not finite; the message has every term and the keys of the batch."""


class Trainer:
    """One run from its configuration to its last checkpoint; started again, it goes on from the newest valid one."""

    def __init__(self, run: Run, *, evaluators: Sequence[Evaluator] = ()) -> None:
        self.run, self.evaluators = run, list(evaluators)
        refuse_absent_trackers(run.log.trackers)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.accelerator = Accelerator(
            mixed_precision=run.precision,
            cpu=run.device == "cpu" or not torch.cuda.is_available(),
            log_with=list(run.log.trackers) or None,
            project_dir=str(run.folder),
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        )
        if run.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device: cuda was asked for, but torch sees no CUDA device; use device=auto or device=cpu")
        if run.expect_world is not None:
            dist.expect(run.expect_world)
        torch.set_num_threads(run.torch_threads(dist.world()))
        fresh = checkpoint.Found(None, [])
        self.found = checkpoint.newest(run.folder / "checkpoints") if run.resume == "auto" else fresh
        self._known = state.known_skips(self.found.path)
        self.parts = parts = prepare(run, self.accelerator, known=self._known)
        self.dual, self.model, self.optimizer, self.feed = parts.dual, parts.model, parts.optimizer, parts.feed
        self.objective, self.companions, self.clock, self.rate = (
            parts.objective, parts.companions, parts.clock, parts.rate,
        )  # fmt: skip
        self.parameters = [p for p in self.dual.parameters() if p.requires_grad]
        self.state = state.State(run, parts, scaler=self.accelerator.scaler)

    def train(self) -> Progress:
        """Run to the end of the duration; returns where it stands. Ends with Requeue if SIGTERM or SIGUSR1 came."""
        lock = Lock(self.run.folder) if dist.is_main() else None
        try:
            return self._train()
        finally:
            if lock:
                lock.release()

    def _train(self) -> Progress:
        progress, total = self._resume(), self.clock.total
        if dist.is_main():
            (self.run.folder / "config.yaml").write_text(config.to_yaml(self.run), encoding="utf-8")
            checkpoint.write_json(self.run.folder / "host.json", host_facts())
        if self.run.log.trackers:
            self.accelerator.init_trackers(
                self.run.log.project, config=state.flat_settings(self.run.model_dump(mode="json"))
            )
        report = Reporter(
            self.run.folder,
            total=total,
            start=progress.step,
            main=dist.is_main(),
            trackers=self.accelerator.trackers if self.run.log.trackers else (),
        )
        self.report, self.meter = report, Meter()
        self.ledger = SkipLedger(self.run.folder / "skips.jsonl" if dist.is_main() else None)
        self.ledger.counts.update(progress.skips)
        self._began = time.perf_counter() - progress.seconds
        self._say_start(progress)
        try:
            with Signals() as stop:
                progress = self._loop(progress, total, stop)
            report.say(f"trained {progress.step} steps in {progress.seconds:.0f} s; skipped: {self.ledger.summary()}")
            return progress
        finally:
            report.close()
            self.ledger.close()
            if self.run.log.trackers:
                self.accelerator.end_training()

    def _loop(self, progress: Progress, total: int, stop: list[str]) -> Progress:
        self._settle(progress.step)
        self._bad_steps, self._unreported, self._epoch = 0, 0, int(self.clock.epoch(progress.step))
        self._last: dict[str, Any] = {}
        self._skips: list[Any] = []
        self._notes: Counter[str] = Counter()
        batches = self.feed.batches(progress.step, total)
        saved = progress.step if progress.step else -1
        for step in range(progress.step, total):
            with self.meter.time("data wait"):
                batch = next(batches)
            with self.meter.time("step"):
                record = self._step(step, batch)
            done = step + 1
            leave = dist.agree(bool(stop))
            save = leave or self._due(self.run.save.every, done)
            if save or self._due(self.run.log.every, done):
                self._log(done, record)
            progress = self._progress(done)
            if save:
                self._save(progress)
                saved = done
            if leave:
                self.report.say(
                    f"told to leave by {stop[0] if stop else 'another rank'}: saved step {done}; requeue me"
                )
                raise Requeue
            self._evaluate(done)
        if saved != progress.step:
            self._save(progress)
        if self._last:  # the last save and evaluation came after the record
            self.report.amend({**self._last, "stages": dict(self.meter.seconds)})
        return progress

    def _step(self, step: int, batch: Batch) -> dict[str, Any]:
        """One update of the model on one batch; returns what there is to log about it."""
        self._skips.extend(batch.skips)
        self._notes.update(batch.notes)
        self._unreported += len(batch)
        rate = self.run.optim.lr * self.rate(step)
        set_rate(self.parts.adamw, rate)
        batch = self._prepared(batch)
        value = self._backward(step, batch)
        limit = self.run.clip_norm if self.run.clip_norm is not None else float("inf")
        norm = self.accelerator.clip_grad_norm_(self.parameters, limit)
        record = {"loss": value.total, "terms": value.terms, "lr": rate, "grad_norm": norm}
        if self._healthy(step, record, batch):
            self.optimizer.step()
            self.dual.clamp_scale()
            for companion in self.companions.values():
                companion.after_step(self.dual, step=step + 1)
        self.optimizer.zero_grad(set_to_none=True)
        return record

    def _backward(self, step: int, batch: Batch) -> Objective.Value:
        if self.run.micro_batch and self.run.micro_batch < len(batch):
            return gradcache.step(
                self.model,
                self.objective,
                batch,
                micro=self.run.micro_batch,
                reseed=lambda micro: self._reseed(step, micro),
                backward=self.accelerator.backward,
                no_sync=self._no_sync,
            )
        self._reseed(step, 0)
        value = self.objective(self.model(batch), batch)
        self.accelerator.backward(value.total)
        return value

    def _healthy(self, step: int, record: Mapping[str, Any], batch: Batch) -> bool:
        """Whether every rank's loss and gradient are finite; all ranks take the same decision."""
        finite = bool(torch.isfinite(record["loss"]) and torch.isfinite(record["grad_norm"]))
        scaling = self.accelerator.scaler is not None and bool(torch.isfinite(record["loss"]))
        if not dist.agree(not (finite or scaling)):
            self._bad_steps = 0
            return True
        self._bad_steps += 1
        terms = ", ".join(f"{name} {float(term):.4g}" for name, term in record["terms"].items())
        keys = ", ".join(key for key in batch.keys if key)
        text = f"step {step}: not finite (grad norm {float(record['grad_norm']):.4g}; {terms}); update left out"
        self.report.say(text)
        if self._bad_steps > self.run.max_nonfinite:
            raise NonFiniteError(
                f"{text}, {self._bad_steps} in a row; lower optim.lr or look at the samples: {keys[:2000]}"
            )
        return False

    def _resume(self) -> Progress:
        for path, reason in self.found.rejected:
            if dist.is_main():
                console.print(f"passed over {path}: {reason}", highlight=False)
        return self.state.load(self.found.path) if self.found.path else Progress()

    def _settle(self, step: int) -> None:
        """The throw-away pass of `guards.leave_no_trace`, on the batch that comes first."""
        if dist.world() > 1:
            batch = self._prepared(self.feed.batch(step))
            with leave_no_trace(self.dual):
                for _ in range(2):
                    self._backward(step, batch)
                    self.optimizer.zero_grad(set_to_none=True)

    def _prepared(self, batch: Batch) -> Batch:
        """The batch on the device, with what the companions add to it."""
        batch = batch.to(self.accelerator.device)
        for companion in self.companions.values():
            batch = companion.before_step(batch, self.dual)
        return batch

    def _reseed(self, step: int, micro: int) -> None:
        """Dropout and patch dropout are a function of (seed, step, rank, micro-batch)."""
        words = f"{self.run.seed} {step} {dist.rank()} {micro}".encode()
        torch.manual_seed(int.from_bytes(hashlib.blake2b(words, digest_size=7).digest(), "big"))

    def _no_sync(self) -> AbstractContextManager[Any]:
        return self.accelerator.no_sync(self.model) if dist.world() > 1 else nullcontext()

    def _due(self, every: Duration, done: int) -> bool:
        return done == self.clock.total or done % max(1, self.clock.steps(every)) == 0

    def _log(self, done: int, record: Mapping[str, Any]) -> None:
        wall, stages = self.meter.lap()
        samples = self._unreported * dist.world()
        shares = dist.gather_object((self._skips, self._notes))
        skips = [skip for rank, _ in shares for skip in rank]
        for _, notes in shares:
            self.ledger.notes.update(notes)
        self.ledger.add(skips, step=done, samples=samples)
        if int(self.clock.epoch(done)) != self._epoch:  # in a new epoch a sample gets a new chance
            self._epoch, self._known = int(self.clock.epoch(done)), []
        self._known = [*self._known, *skips]
        self._skips, self._notes, self._unreported = [], Counter(), 0
        self._last = {
            "step": done,
            "samples": done * self.feed.batch_size,
            "epoch": self.clock.epoch(done),
            "loss": _mean(record["loss"]),
            "terms": {name: _mean(term) for name, term in record["terms"].items()},
            "lr": record["lr"],
            "scale": float(self.dual.logit_scale.detach().exp()),
            "grad_norm": float(record["grad_norm"]),
            "samples_per_s": samples / wall,
            "data_wait": stages.get("data wait", 0.0) / wall,
            "seconds": time.perf_counter() - self._began,
            "stages": dict(self.meter.seconds),
            "skipped": self.ledger.total,
            "notes": dict(self.ledger.notes),
        }
        self.report.step(self._last)
        refuse_bad_data(self.ledger, limit=self.run.data.max_bad_fraction, folder=self.run.folder)

    def _progress(self, done: int) -> Progress:
        seconds = time.perf_counter() - self._began
        return Progress(done, seconds, dict(self.ledger.counts), [list(skip) for skip in self._known])

    def _save(self, progress: Progress) -> None:
        failure = ""
        with self.meter.time("save"):
            if dist.is_main():
                try:
                    self.state.save(progress)
                except checkpoint.CheckpointError as error:
                    failure = str(error)
            failure = str(dist.broadcast_object(failure))
        if failure:
            raise checkpoint.CheckpointError(failure)

    def _evaluate(self, done: int) -> None:
        for evaluator in self.evaluators:
            if self._due(evaluator.every, done):
                with self.meter.time("evaluate"):
                    evaluator.measure(self.dual, done)
                    self.dual.train()
                    dist.barrier()

    def _say_start(self, progress: Progress) -> None:
        trained = sum(p.numel() for p in self.parameters) / 1e6
        verb = f"resumed at step {progress.step}" if progress.step else "starts"
        self.report.say(
            f"{self.run.name} {verb}: {self.clock.total} steps of {self.feed.batch_size} pairs from "
            f"{self.feed.num_samples} samples, {trained:.1f} M parameters, {dist.world()} process(es), "
            f"{torch.get_num_threads()} thread(s), {self.accelerator.device}, precision {self.run.precision}"
        )


def _mean(value: Tensor) -> float:
    """The single-process value: ranks hold W times their share."""
    return float(dist.total(value.detach().float())) / dist.world()
