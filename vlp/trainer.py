"""The training loop, in the open: batch, rate, features, objective, backward, clip, step, clamp, companions, log."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from typing import Any, NamedTuple

import torch
from accelerate.state import AcceleratorState
from torch import nn

from vlp import checkpoint, dist, gradcache, guards, state, verdict
from vlp.alarm import shared_fate
from vlp.duration import Duration
from vlp.journal import Evaluated, Journal, opening
from vlp.lock import Lock, refuse_unwritable
from vlp.log import console
from vlp.losses.objective import Objective
from vlp.optim import set_rate
from vlp.prepare import accompanied, prepare
from vlp.ranks import accelerator_of, code_facts, refuse_different
from vlp.requeue import Requeue, Signals
from vlp.run import Run
from vlp.sharded import whole
from vlp.spikes import ScaleLimit, Spikes, Step
from vlp.state import Progress
from vlp.types import Batch
from vlp.unread import Watch
from vlp.verdict import LeftOut, Verdict


class Evaluator(NamedTuple):
    """A measurement during the run, as a value: the trainer knows when and on which weights, the function what."""

    every: Duration
    measure: Callable[[nn.Module, int], Mapping[str, float]]
    weights: str = "model"  # or the name of a companion that holds an average of them


class Trainer:
    """One run from its configuration to its last checkpoint; started again, it goes on from the newest valid one."""

    def __init__(self, run: Run, *, evaluators: Sequence[Evaluator] = ()) -> None:
        self.run, self.evaluators = run, list(evaluators)
        guards.refuse_absent_trackers(run.log.trackers)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        AcceleratorState._reset_state(reset_partial_state=dist.world() == 1)  # or a second run must be like the first
        self.accelerator = accelerator_of(run)
        with shared_fate():
            self._open(run)

    def _open(self, run: Run) -> None:
        """Everything before the first step; what differs between ranks is refused before it can do harm."""
        refuse_different(state.flat_settings(run.model_dump(mode="json")), what="the settings")
        refuse_different(code_facts(), what="the versions")
        if run.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device: cuda was asked for, but torch sees no CUDA device; use device=auto or device=cpu")
        if run.expect_world is not None:
            dist.expect(run.expect_world)
        torch.set_num_threads(run.torch_threads(dist.world()))
        guards.refuse_other_checkpoints(run.folder / "checkpoints", resume=run.resume)
        checkpoint.together(lambda: refuse_unwritable(run.folder), here=dist.is_main())
        self.found = checkpoint.whole(run.folder / "checkpoints")
        self.parts = parts = prepare(run, self.accelerator, stored=self.found.path and self.found.path / state.MODEL)
        self.dual, self.model, self.optimizer, self.feed = parts.dual, parts.model, parts.optimizer, parts.feed
        self.objective, self.companions, self.clock = parts.objective, parts.companions, parts.clock
        newest = self.found.path.name if self.found.path else None
        seen = {"newest checkpoint": newest, "data fingerprint": self.feed.fingerprint}
        refuse_different(seen, what="what the ranks find")
        guards.refuse_unknown_weights([evaluator.weights for evaluator in self.evaluators], self.companions)
        self.parameters = [p for p in self.dual.parameters() if p.requires_grad]
        self.state = state.State(run, parts, scaler=self.accelerator.scaler)
        self.spikes = Spikes(window=run.spike.window, factor=run.spike.factor, keep=run.spike.keep)
        self.left_out, self.scale_limit, self.watch = LeftOut(run.max_nonfinite), ScaleLimit(), Watch()
        self.statistics = guards.BatchStatistics(self.dual)

    def train(self) -> Progress:
        """Run to the end of the duration; returns where it stands. Ends with Requeue if SIGTERM or SIGUSR1 came."""
        with Signals() as stop, shared_fate():
            lock = checkpoint.together(lambda: Lock(self.run.folder), here=dist.is_main())
            try:
                checkpoint.together(
                    lambda: checkpoint.refuse_moved_on(self.state.root, self.found), here=dist.is_main()
                )
                return self._train(stop)
            finally:
                if lock:
                    lock.release()

    def _train(self, stop: list[str]) -> Progress:
        progress = self._resume()
        if progress.step < self.clock.total:
            self.state.refuse_no_room()
        if dist.is_main():
            self.state.introduce()
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
        self._say(opening(self.run, progress, clock=self.clock, feed=self.feed, trained=self.parameters))
        try:
            done = self._loop(progress, stop)
            if done.step > progress.step:
                skipped = self.journal.ledger.summary()
                self._say(f"trained {done.step} steps in {done.seconds:.0f} s; skipped: {skipped}")
            return done
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
        batches = self.feed.batches(progress.step, total)
        try:
            return self._steps(progress, batches, stop)
        except RuntimeError as error:
            if (cause := self.feed.explained(error)) is error:
                raise
            raise cause from error
        finally:
            batches.close()  # ends the loader's workers, whatever happened; the interpreter would wait for them

    def _steps(self, progress: Progress, batches: Generator[Batch], stop: list[str]) -> Progress:
        total = self.clock.total
        for step in range(progress.step, total):
            with self.journal.meter.time("data wait"):
                batch = next(batches)
            self.journal.seen(batch)
            if step == 0:
                self.journal.refuse_empty(batch)
            with self.journal.meter.time("step"):
                record, found = self.update(step, batch, stop)
            done = step + 1
            leave = found.leave and done < total
            save = leave or self._due(self.run.save.every, done)
            if save or self._due(self.run.log.every, done):
                self._record(done, record)
            if not found.empty and (spike := self.spikes.add(Step(done, found.loss, found.grad_norm, batch.keys))):
                self.journal.spike(spike)
            progress = self.journal.progress(done)
            if save:
                self._save(progress, last=leave or done == total)
            if leave:
                self._say(f"told to leave by {stop[0] if stop else 'another rank'}: saved step {done}; requeue me")
                raise Requeue
            self._evaluate(done)
        return progress

    def _record(self, done: int, record: Mapping[str, Any]) -> None:
        scale = float(whole(self.dual.logit_scale.detach()).exp())
        if held := self.scale_limit.read():
            self._say(f"step {done}: {held}")
        self.journal.record(
            done, record, scale=scale, scale_clamped=self.scale_limit.count, left_out=dict(self.left_out.counts)
        )

    def update(self, step: int, batch: Batch, stop: Sequence[str] = ()) -> tuple[dict[str, Any], Verdict]:
        """One update of the model on one batch; returns what there is to log about it, and what all ranks found."""
        rate = self.run.optim.lr * self.parts.rate(step)
        set_rate(self.parts.adamw, rate)
        batch = self.watch(self._prepared(batch))
        self.statistics.keep()
        value = self._backward(step, batch)
        if self.dual.prefix is not None:
            self.dual.prefix.leave_absent(batch)
        norm = whole(self.accelerator.clip_grad_norm_(self.parameters, self.run.clip_norm or float("inf")))
        record = {"loss": value.total, "terms": value.terms, "lr": rate, "grad_norm": norm}
        scaler = self.accelerator.scaler
        found = verdict.agree(value.total, norm, valid=batch.valid, scaled=scaler is not None, stop=bool(stop))
        if found.finite and not found.empty:
            self.optimizer.step()
            self._follow(step, batch)
        else:
            self.statistics.put_back()
            self._leave_out(step, batch, record, found)
            if scaler is not None:
                scaler.update()  # or the next clipping would find its gradients unscaled already
        self.optimizer.zero_grad(set_to_none=True)
        return record, found

    def _leave_out(self, step: int, batch: Batch, record: dict[str, Any], found: Verdict) -> None:
        """Say why no update is made; without a pair weight decay and momentum alone would move the weights."""
        if found.finite:
            del record["loss"], record["terms"], record["grad_norm"]  # zeros that nothing was seen for
            self._say(verdict.without_pair(batch, step=step + 1, sources=self.feed.source_names))
            return self.left_out.no_pair()
        text = verdict.explain(self.dual, batch, record, step=step + 1, parts=lambda: self._parts(step, batch))
        if self.parts.shards is not None:
            self.parts.shards.reshard()
        self._say(text)
        self.left_out.not_finite(text)

    def _follow(self, step: int, batch: Batch) -> None:
        """What comes after the optimizer's step, unless the gradient scaler left it out."""
        self.left_out.made(step + 1, overflow=self.optimizer.step_was_skipped)
        if self.optimizer.step_was_skipped:
            return
        self.scale_limit.note(self.dual.logit_scale)
        self.dual.clamp_scale()
        for companion in self.companions.values():
            companion.after_step(self.dual, step=step + 1, batch=batch)
        if idle := self.watch.told(batch):
            self._say(idle)

    def _parts(self, step: int, batch: Batch) -> Iterator[Batch]:
        """The micro-batches of a step, each with the generator seeded as for its forward."""
        size = self.run.micro_batch or len(batch)
        for micro, start in enumerate(range(0, len(batch), size)):
            self._reseed(step, micro)
            yield batch.rows(start, min(start + size, len(batch)))

    def _backward(self, step: int, batch: Batch) -> Objective.Value:
        if self.run.micro_batch and self.run.micro_batch < len(batch):
            return gradcache.step(
                self.model,
                self.objective,
                batch,
                micro=self.run.micro_batch,
                reseed=lambda micro: self._reseed(step, micro),
                backward=self.accelerator.backward,
                no_sync=getattr(self.model, "no_sync", nullcontext),  # of DDP, which a group of one process has too
            )
        self._reseed(step, 0)
        value = self.objective(self.model(batch), batch)
        self.accelerator.backward(value.total)
        return value

    def _resume(self) -> Progress:
        for path, reason in self.found.rejected if dist.is_main() else ():
            console.print(f"passed over {path}: {reason}", highlight=False, markup=False, soft_wrap=True)
        return self.state.load(self.found.path) if self.found.path else Progress()

    def _settle(self, step: int) -> None:
        """The throw-away pass of `guards.leave_no_trace`, on the batch that comes first."""
        if dist.world() > 1:
            with closing(self.feed.batches(step, step + 1)) as batches:  # by a worker: data.timeout holds for it
                batch = self._prepared(next(batches))
            with guards.leave_no_trace(self.dual):
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

    def _due(self, every: Duration, done: int) -> bool:
        return done == self.clock.total or done % max(1, self.clock.steps(every)) == 0

    def _save(self, progress: Progress, *, last: bool) -> None:
        """A checkpoint, or the same error on every rank; a full disk may be waited out, but not at the end."""
        try:
            with self.journal.meter.time("save"):
                self.state.save(progress)
        except checkpoint.NoRoomError as error:
            if last or self.run.save.on_full == "stop":
                raise
            self.journal.unsaved += 1
            self._say(f"step {progress.step} is not saved, training goes on (save.on_full): {error}")

    def _evaluate(self, done: int) -> None:
        """The evaluations that are due after `done` steps and have no result yet."""
        for number, evaluator in enumerate(self.evaluators):
            if not self._due(evaluator.every, done) or (number, done) in self.evaluated:
                continue
            average = self.companions.get(evaluator.weights)
            shards = self.parts.shards
            with (
                self.journal.meter.time("evaluate"),
                average.applied(self.dual) if average else nullcontext(),
                shards.assembled() if shards else nullcontext(self.dual) as dual,
            ):
                evaluator.measure(dual, done)
            self.evaluated.add(number, done)

    def _say(self, text: str) -> None:
        if hasattr(self, "journal"):
            self.journal.report.say(text)
        elif dist.is_main():  # a profile keeps no journal
            console.print(text, highlight=False, markup=False, soft_wrap=True)
