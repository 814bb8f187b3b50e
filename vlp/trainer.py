"""The training loop, in the open: batch, rate, features, objective, backward, clip, step, clamp, companions, log."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import nn

from vlp import checkpoint, config, dist, gradcache, state
from vlp.duration import Duration
from vlp.guards import leave_no_trace, refuse_absent_trackers, refuse_other_checkpoints
from vlp.journal import Evaluated, Journal
from vlp.log import console, host_facts
from vlp.losses.objective import Objective
from vlp.optim import set_rate
from vlp.prepare import accompanied, prepare
from vlp.registry import nearest
from vlp.requeue import Requeue, Signals
from vlp.run import Run
from vlp.state import Lock, Progress
from vlp.types import Batch

MAX_OVERFLOWS = 30  # fp16: steps in a row that the gradient scaler may leave out while it looks for its scale


class Evaluator(NamedTuple):
    """A measurement during the run, as a value: the trainer knows when and on which weights, the function what."""

    every: Duration
    measure: Callable[[nn.Module, int], Mapping[str, float]]
    weights: str = "model"  # or the name of a companion that holds an average of them


class NonFiniteError(RuntimeError):
    """The loss or a gradient stayed not finite; the message has every term and the keys of the batch."""


class Trainer:
    """One run from its configuration to its last checkpoint; started again, it goes on from the newest valid one."""

    def __init__(self, run: Run, *, evaluators: Sequence[Evaluator] = ()) -> None:
        self.run, self.evaluators = run, list(evaluators)
        refuse_absent_trackers(run.log.trackers)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        AcceleratorState._reset_state(reset_partial_state=dist.world() == 1)  # or a second run must be like the first
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
        refuse_other_checkpoints(run.folder / "checkpoints", resume=run.resume)
        self.found = checkpoint.newest(run.folder / "checkpoints")
        self.parts = parts = prepare(run, self.accelerator, start=self.found.path is None)
        self.dual, self.model, self.optimizer, self.feed = parts.dual, parts.model, parts.optimizer, parts.feed
        self.objective, self.companions, self.clock = parts.objective, parts.companions, parts.clock
        for evaluator in self.evaluators:
            if evaluator.weights not in ("model", *self.companions):
                known = nearest(evaluator.weights, ["model", *self.companions])
                raise ValueError(f'evals: no weights called "{evaluator.weights}"{known}')
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
        progress = self._resume()
        if dist.is_main():
            (self.run.folder / "config.yaml").write_text(config.to_yaml(self.run), encoding="utf-8")
            checkpoint.write_json(self.run.folder / "host.json", host_facts())
        if self.run.log.trackers:
            settings = state.flat_settings(self.run.model_dump(mode="json"))
            self.accelerator.init_trackers(self.run.log.project, config=settings)
        self.journal = Journal(
            self.run.folder,
            clock=self.clock,
            start=progress,
            max_bad_fraction=self.run.data.max_bad_fraction,
            trackers=self.accelerator.trackers if self.run.log.trackers else (),
        )
        self.evaluated = Evaluated(self.run.folder)
        self._say_start(progress)
        try:
            with Signals() as stop:
                progress = self._loop(progress, stop)
            skipped = self.journal.ledger.summary()
            self._say(f"trained {progress.step} steps in {progress.seconds:.0f} s; skipped: {skipped}")
            return progress
        finally:
            self.journal.close()
            if self.run.log.trackers:
                self.accelerator.end_training()

    def _loop(self, progress: Progress, stop: list[str]) -> Progress:
        total = self.clock.total
        if progress.step:
            self._evaluate(progress.step)  # what a kill cut short
        if progress.step < total:
            self._settle(progress.step)
        self._bad_steps = self._overflows = 0
        batches = self.feed.batches(progress.step, total)
        try:
            return self._steps(progress, batches, stop)
        finally:
            batches.close()  # ends the loader's workers, whatever happened; the interpreter would wait for them

    def _steps(self, progress: Progress, batches: Generator[Batch], stop: list[str]) -> Progress:
        total = self.clock.total
        for step in range(progress.step, total):
            with self.journal.meter.time("data wait"):
                batch = next(batches)
            self.journal.seen(batch)
            with self.journal.meter.time("step"):
                record = self._step(step, batch)
            done = step + 1
            leave = dist.agree(bool(stop)) and done < total
            save = leave or self._due(self.run.save.every, done)
            if save or self._due(self.run.log.every, done):
                self.journal.record(done, record, scale=float(self.dual.logit_scale.detach().exp()))
            progress = self.journal.progress(done)
            if save:
                self._save(progress)
            if leave:
                self._say(f"told to leave by {stop[0] if stop else 'another rank'}: saved step {done}; requeue me")
                raise Requeue
            self._evaluate(done)
        return progress

    def update(self, step: int, batch: Batch) -> dict[str, Any]:
        """One update without the books of a run, as a profile takes it."""
        self._bad_steps = self._overflows = 0
        return self._step(step, batch)

    def _step(self, step: int, batch: Batch) -> dict[str, Any]:
        """One update of the model on one batch; returns what there is to log about it."""
        rate = self.run.optim.lr * self.parts.rate(step)
        set_rate(self.parts.adamw, rate)
        batch = self._prepared(batch)
        value = self._backward(step, batch)
        if self.dual.prefix is not None:
            self.dual.prefix.leave_absent(batch)
        limit = self.run.clip_norm if self.run.clip_norm is not None else float("inf")
        norm = self.accelerator.clip_grad_norm_(self.parameters, limit)
        record = {"loss": value.total, "terms": value.terms, "lr": rate, "grad_norm": norm}
        if self._healthy(step, record, batch):
            self.optimizer.step()
            self._follow(step, batch)
        elif self.accelerator.scaler is not None:
            self.accelerator.scaler.update()  # or the next clipping would find its gradients unscaled already
        self.optimizer.zero_grad(set_to_none=True)
        return record

    def _follow(self, step: int, batch: Batch) -> None:
        """What comes after the optimizer's step, unless the gradient scaler left it out."""
        if self.optimizer.step_was_skipped:
            self._overflows += 1
            if self._overflows > MAX_OVERFLOWS:
                raise NonFiniteError(f"step {step}: {self._overflows} fp16 overflows in a row; use precision=bf16")
            return
        self._overflows = 0
        self.dual.clamp_scale()
        for companion in self.companions.values():
            companion.after_step(self.dual, step=step + 1, batch=batch)

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
        """Whether every rank's loss and gradient are finite; all ranks take the same decision.

        Under a gradient scaler a gradient may overflow: then the scaler leaves the step out, and counts.
        """
        finite = torch.isfinite(record["loss"])
        if self.accelerator.scaler is None:
            finite = finite & torch.isfinite(record["grad_norm"])
        if not dist.agree(not bool(finite)):
            self._bad_steps = 0
            return True
        self._bad_steps += 1
        terms = ", ".join(f"{name} {float(term):.4g}" for name, term in record["terms"].items())
        keys = ", ".join(key for key in batch.keys if key)
        text = f"step {step}: not finite (grad norm {float(record['grad_norm']):.4g}; {terms}); update left out"
        self._say(text)
        if self._bad_steps > self.run.max_nonfinite:
            advice = f"lower optim.lr or look at the samples: {keys[:2000]}"
            raise NonFiniteError(f"{text}, {self._bad_steps} in a row; {advice}")
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
        return accompanied(batch.to(self.accelerator.device), self.companions, self.dual)

    def _reseed(self, step: int, micro: int) -> None:
        """Dropout and patch dropout are a function of (seed, step, rank, micro-batch)."""
        words = f"{self.run.seed} {step} {dist.rank()} {micro}".encode()
        torch.manual_seed(int.from_bytes(hashlib.blake2b(words, digest_size=7).digest(), "big"))

    def _no_sync(self) -> AbstractContextManager[Any]:
        return self.accelerator.no_sync(self.model) if dist.world() > 1 else nullcontext()

    def _due(self, every: Duration, done: int) -> bool:
        return done == self.clock.total or done % max(1, self.clock.steps(every)) == 0

    def _save(self, progress: Progress) -> None:
        """A checkpoint, or the same error on every rank."""
        failure = ""
        with self.journal.meter.time("save"):
            if dist.is_main():
                try:
                    self.state.save(progress)
                except Exception as error:  # whatever it is, the other ranks wait for word of it
                    failure = f"{type(error).__name__}: {error}"
            failure = str(dist.broadcast_object(failure))
        if failure:
            raise checkpoint.CheckpointError(failure)

    def _evaluate(self, done: int) -> None:
        """The evaluations that are due after `done` steps and have no result yet."""
        for number, evaluator in enumerate(self.evaluators):
            if not self._due(evaluator.every, done) or (number, done) in self.evaluated:
                continue
            average = self.companions.get(evaluator.weights)
            with self.journal.meter.time("evaluate"), average.applied(self.dual) if average else nullcontext():
                evaluator.measure(self.dual, done)
            self.evaluated.add(number, done)

    def _say(self, text: str) -> None:
        self.journal.report.say(text)

    def _say_start(self, progress: Progress) -> None:
        trained = sum(p.numel() for p in self.parameters) / 1e6
        verb = f"resumed at step {progress.step}" if progress.step else "starts"
        self._say(
            f"{self.run.name} {verb}: {self.clock.total} steps of {self.feed.batch_size} pairs from "
            f"{self.feed.num_samples} samples, {trained:.1f} M parameters, {dist.world()} process(es), "
            f"{torch.get_num_threads()} thread(s), {self.accelerator.device}, precision {self.run.precision}"
        )
