"""The root of a training configuration: all that a run is, in one checked value, written beside its results."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from vlp.data import Data
from vlp.duration import Duration, Span
from vlp.losses.loss import Loss
from vlp.models.model import Model
from vlp.optim import Cosine, Optim, Schedule
from vlp.registry import Named, Part

LossPart = Annotated[Loss, Named("vlp.losses:LOSSES")]
SchedulePart = Annotated[Schedule, Named("vlp.optim:SCHEDULES")]
CompanionPart = Annotated[Any, Named("vlp.models:COMPANIONS")]


class Save(Part):
    """When a checkpoint is written and how many stay."""

    every: Duration = Span(1, "epochs")
    keep: int = Field(2, ge=0, description="newest checkpoints that stay; 0 keeps all")
    on_full: Literal["stop", "go_on"] = Field(
        "stop", description="when the disk is full; go_on: train on and try again at the next save, but not at the last"
    )


class SpikeWatch(Part):
    """When a jump of the loss or of the gradient's norm is written to spikes.jsonl, with the samples before it."""

    window: int = Field(100, ge=4, description="steps before, whose median and deviation say what is usual")
    factor: float = Field(10.0, gt=0, description="deviations above the median that make a spike")
    keep: int = Field(8, ge=1, description="last batches whose keys are written")


class Evaluation(Part):
    """A benchmark suite that is run during training, by its YAML file; the end of the run always has one."""

    suite: str
    every: Duration = Span(100, "percent")
    overrides: dict[str, Any] = {}
    weights: str = Field("model", description='"model", or a companion that averages its weights: "ema"')


class Logging(Part):
    """How often numbers are written, and which of Accelerate's trackers get them besides metrics.jsonl."""

    every: Duration = Span(10, "steps")
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    project: str = "vlp"


class Run(Part):
    """One training run. `vlp train FILE key=value ...` makes it; `config.yaml` in its folder is the same run again."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    out: str = "runs/out"
    seed: int = Field(0, ge=0)
    model: Model
    data: Data
    losses: Annotated[tuple[LossPart, ...], Field(min_length=1)]
    optim: Optim = Optim()
    schedule: SchedulePart = Cosine(warmup=Span(5, "percent"))
    duration: Duration
    companions: tuple[CompanionPart, ...] = ()
    micro_batch: int | None = Field(None, ge=1, description="pairs a rank puts through the towers at once (GradCache)")
    precision: Literal["no", "bf16", "fp16"] = "no"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = Field(
        None, ge=1, description="torch threads; default: OMP_NUM_THREADS, else a share of the cores"
    )
    compile: bool = False
    parallel: Literal["ddp", "fsdp2"] = Field(
        "ddp", description="processes: each with the whole model, or with its share of weights and optimizer state"
    )
    clip_norm: float | None = Field(1.0, gt=0)
    max_nonfinite: int = Field(3, ge=0, description="steps in a row without a finite loss before the run stops")
    spike: SpikeWatch = SpikeWatch()
    collective_timeout: float = Field(
        1800.0, gt=0, description="seconds that a rank waits for the others; longer than the longest save"
    )
    expect_world: int | None = Field(None, ge=1, description="refuse to start at another number of processes")
    save: Save = Save()
    evals: tuple[Evaluation, ...] = ()
    log: Logging = Logging()
    resume: Literal["auto", "never"] = Field("auto", description="never: refuse a folder that holds checkpoints")
    allow_change: tuple[str, ...] = Field((), description="dotted keys that may differ from the checkpoint's")

    @model_validator(mode="after")
    def _can_be_trained(self) -> Run:
        if self.data.batch_size < 2:
            raise ValueError(f"data.batch_size is {self.data.batch_size}; a contrast needs at least 2 pairs a batch")
        for where, span in (
            ("duration", self.duration),
            ("save.every", self.save.every),
            ("log.every", self.log.every),
            *((f"evals.{number}.every", one.every) for number, one in enumerate(self.evals)),
        ):
            if span.value <= 0:
                raise ValueError(f"{where} is {span}; it must be more than 0")
        if self.duration.unit == "percent":
            raise ValueError("duration cannot be a percentage: it says what 100% is")
        return self

    @property
    def folder(self) -> Path:
        return Path(self.out) / self.name

    def torch_threads(self, world: int = 1) -> int:
        """Threads for torch: what was asked; of a single process OMP_NUM_THREADS; else its share of its cores.

        torchrun sets OMP_NUM_THREADS to 1 by itself, so with several processes it says nothing of what is wanted.

        Threads that spin while they wait (OpenMP by default) starve a busy loader: 12 samples/s where two cores can
        do 23. `vlp` and train.py set OMP_WAIT_POLICY=PASSIVE; without it loader workers get cores of their own.
        """
        if self.threads is not None:
            return self.threads
        asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # "4,2" is of nested regions
        if world == 1 and asked.isdecimal() and int(asked) > 0:
            return int(asked)
        # a batch system, taskset or a container may leave a process fewer cores than the machine has
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        passive = os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
        kept = 0 if passive else self.data.workers
        return max(1, cores // world - kept)
