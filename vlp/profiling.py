"""Where the time of a run goes: a few of its steps by stage, the loader's by stage in its own process, and a trace."""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.data import DataLoader

from vlp import dist
from vlp.alarm import shared_fate
from vlp.data import augment, serve, transforms
from vlp.data.serve import Server
from vlp.data.stream import Stream
from vlp.losses.objective import Objective
from vlp.run import Run
from vlp.trainer import Trainer
from vlp.types import Batch

WARMUP, STEPS, TRACED = 2, 8, 2  # steps before the clock, timed, and traced
COLD, LOADED = 8, 4  # batches of a loader process before the clock, while it learns words, and timed
FOLDER = "profile"

ADVICE = {
    "data wait": "the model waits for its loader; see how many loader processes would feed it, below",
    "copy to device": "batches come as uint8 already; check that the device is not shared",
    "image tower": "fewer patches: patch dropout, a smaller model.image_size; on a GPU precision=bf16 and compile=true",
    "text tower": "shorter captions (captions.pick=sentences) or model.context; on a GPU precision=bf16",
    "rest of forward": "heads and companions: leave out losses that the run does not need",
    "loss": "a larger `block` of the loss, or a smaller batch: it grows with the square of the batch",
    "backward": "twice the towers' forward is what is to be expected; model.grad_checkpointing adds a third to it",
    "clip": "clip_norm=null leaves it out",
    "optimizer": "optim.fused=yes; a larger batch makes fewer updates",
    "communication": "fewer, larger nodes, or a faster network between them; a larger batch does not reduce it",
    "other": "Python between the stages: a larger batch spreads it",
}


class Clock:
    """Seconds by stage. A stage within another is not counted in the other; what is in none is "other"."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._wait = device is not None and device.type == "cuda"
        self._within, self._since = ["other"], time.perf_counter()

    def clocked(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its seconds counted as `stage`, its call named so in a trace."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self._turn()
            self._within.append(stage)
            try:
                with record_function(f"vlp: {stage}"):
                    return function(*args, **kwargs)
            finally:
                self._turn()
                self._within.pop()

        return run

    def start(self) -> None:
        """Forget what was counted so far."""
        self._turn()
        self.seconds.clear()

    def stop(self) -> dict[str, float]:
        """Seconds by stage since the start."""
        self._turn()
        return dict(self.seconds)

    def _turn(self) -> None:
        if self._wait:
            torch.cuda.synchronize()  # or a stage would be over before its kernels are
        now = time.perf_counter()
        self.seconds[self._within[-1]] += now - self._since
        self._since = now


class Place(NamedTuple):
    """Where a function is looked up, under which name, and what its time counts as."""

    owner: Any
    name: str
    stage: str


@contextmanager
def clocks(clock: Clock, places: Sequence[Place]) -> Iterator[None]:
    """While open, calls at these places are counted."""
    before = [vars(place.owner).get(place.name) for place in places]
    for place in places:
        setattr(place.owner, place.name, clock.clocked(place.stage, getattr(place.owner, place.name)))
    try:
        yield
    finally:
        for place, value in zip(places, before):
            delattr(place.owner, place.name) if value is None else setattr(place.owner, place.name, value)


def profile_run(run: Run) -> Path:
    """Profile a run without touching it; returns the folder RUN/profile with trace.json and profile.md.

    The model is a fresh one that is trained for a dozen steps and forgotten. On a GPU every stage is waited for, which
    the trace's steps are not: there stages overlap.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler reports each start and stop
    folder = run.folder / FOLDER
    spare = run.model_copy(update={"out": str(run.folder), "name": FOLDER, "evals": ()})
    trainer = Trainer(spare)
    with shared_fate():
        stages, loader, trace = _measured(trainer)
    if dist.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        trace.export_chrome_trace(str(folder / "trace.json"))
        (folder / "profile.md").write_text(page(run, stages, loader), encoding="utf-8")
    return folder


def _measured(trainer: Trainer) -> tuple[dict[str, float], dict[str, float], profile]:
    """Seconds of a step by stage, those of a batch in a loader process, and a trace."""
    clock = Clock(trainer.accelerator.device)
    loader = loader_seconds(trainer.feed.server) if dist.is_main() else {}
    batches = trainer.feed.batches(0, WARMUP + STEPS + TRACED)
    fetch = clock.clocked("data wait", lambda: next(batches))
    try:
        with clocks(clock, trainer_places(trainer)):
            for step in range(WARMUP):
                trainer.update(step, fetch())
            clock.start()
            for step in range(WARMUP, WARMUP + STEPS):
                trainer.update(step, fetch())
            stages = {stage: seconds / STEPS for stage, seconds in clock.stop().items()}
            with profile(activities=_activities()) as trace:
                for step in range(WARMUP + STEPS, WARMUP + STEPS + TRACED):
                    trainer.update(step, fetch())
    finally:
        batches.close()
    return stages, loader, trace


def trainer_places(trainer: Trainer) -> list[Place]:
    """What a step of a trainer is made of."""
    return [
        Place(Batch, "to", "copy to device"),
        Place(trainer.dual, "forward", "rest of forward"),
        Place(trainer.dual, "_run_image", "image tower"),
        Place(trainer.dual, "_run_text", "text tower"),
        Place(Objective, "__call__", "loss"),
        Place(trainer.accelerator, "backward", "backward"),
        Place(trainer.accelerator, "clip_grad_norm_", "clip"),
        Place(trainer.optimizer, "step", "optimizer"),
        *(Place(dist, name, "communication") for name in ("gather", "gather_const", "total", "agree")),
    ]


class LoaderClock:
    """A data set whose items are seconds: what a loader process spends on one local batch, by stage."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def __getitem__(self, step: int) -> dict[str, float]:
        records = self.server.plan.records
        places = [
            *(Place(one, "next" if isinstance(one, Stream) else "read", "read shards") for one in records),
            Place(transforms, "decode", "decode"),
            Place(augment, "decode", "decode"),
            Place(augment, "decode_shrunk", "decode"),
            Place(augment, "_cut", "crop and resize"),
            Place(augment, "_cut_small", "crop and resize"),
            Place(transforms.Preprocess, "fit", "crop and resize"),
            Place(augment.Augment, "distort", "augment"),
            Place(type(self.server.tokenizer), "encode", "tokenise"),
            Place(serve, "collate", "collate"),
        ]
        clock = Clock()
        with clocks(clock, places):
            clock.start()
            self.server[step]
            return clock.stop()


def loader_seconds(server: Server) -> dict[str, float]:
    """Mean seconds by stage that one loader process spends on a local batch, once it is warm."""
    loader: DataLoader[dict[str, float]] = DataLoader(
        LoaderClock(server),  # type: ignore[arg-type]  # it has __getitem__, which is all that a sampler needs
        batch_size=None,
        sampler=range(COLD + LOADED),
        num_workers=1,
        worker_init_fn=_one_thread,
        timeout=server.plan.data.timeout,
    )
    found = list(loader)[COLD:]
    return {
        stage: sum(one.get(stage, 0.0) for one in found) / LOADED for stage in {s: None for one in found for s in one}
    }


def _one_thread(worker: int) -> None:
    """As the loader's own processes start."""
    torch.set_num_threads(1)


def page(run: Run, stages: Mapping[str, float], loader: Mapping[str, float]) -> str:
    """The breakdown as Markdown: the step, the loader, and what to do about the largest stage."""
    whole, made = sum(stages.values()), sum(loader.values())
    batch = run.data.batch_size // dist.world()
    largest = max(stages, key=lambda stage: stages[stage])
    feeds = math.ceil(made / max(1e-9, whole - stages.get("data wait", 0.0)))
    return "\n".join(
        [
            f"# Profile of {run.name}",
            "",
            f"{STEPS} steps of {batch} pairs on each of {dist.world()} process(es), {torch.get_num_threads()} torch "
            f"thread(s), {os.cpu_count()} cores, precision {run.precision}: {1000 * whole:.0f} ms a step, "
            f"{batch * dist.world() / whole:.1f} samples/s.",
            "",
            *_table("a step", stages),
            "",
            f"Largest: **{largest}**. What to do about it: {ADVICE[largest]}.",
            "",
            f"A loader process makes a batch in {1000 * made:.0f} ms ({batch / made:.0f} samples/s). "
            f"{feeds} would feed this model; data.workers is {run.data.workers}.",
            "",
            *_table("a batch, in a loader process", loader),
            "",
            "Between several processes, the all-reduce of the gradients runs inside backward; `trace.json` shows it. "
            "Open that file at https://ui.perfetto.dev or chrome://tracing; our stages are named `vlp: ...`.",
            "",
        ]
    )


def _table(title: str, seconds: Mapping[str, float]) -> list[str]:
    whole = sum(seconds.values())
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    rows = [f"| {stage} | {1000 * value:.1f} | {100 * value / whole:.1f} |" for stage, value in ordered]
    return [f"| {title} | ms | % |", "| --- | --- | --- |", *rows]


def _activities() -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
