"""A configuration made into the things that a run works with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import nn

from vlp import dist
from vlp.data.feed import Feed
from vlp.duration import Clock
from vlp.guards import refuse_batch_statistics
from vlp.losses.objective import Objective
from vlp.models.dual import Dual
from vlp.optim import Rate
from vlp.run import Run
from vlp.types import Skip


class Prepared(NamedTuple):
    """Model, data and optimizer of a run, on their device; `dual` is `model` without its wrappers."""

    objective: Objective
    dual: Dual
    model: nn.Module
    feed: Feed
    clock: Clock
    rate: Rate
    companions: dict[str, Any]
    adamw: torch.optim.AdamW
    optimizer: Any  # Accelerate's wrapper of adamw: it knows of the gradient scaler


def prepare(run: Run, accelerator: Accelerator, *, known: Iterable[Skip] = ()) -> Prepared:
    """Everything of `run` but its state; the weights at the start are a function of the seed alone."""
    torch.manual_seed(run.seed)
    objective = Objective(run.losses)
    dual = dual_of(run, objective)
    if dist.world() > 1 and accelerator.device.type == "cuda":
        dual = nn.SyncBatchNorm.convert_sync_batchnorm(dual)
    dual.to(accelerator.device)
    refuse_batch_statistics(dual, micro_batch=run.micro_batch, device=accelerator.device.type)
    feed = feed_of(run, dual, known=known)
    clock = clock_of(run, feed)
    companions = {type(part).__name__.lower(): part.build(dual) for part in run.companions}
    adamw = run.optim.build(dual)
    model, optimizer = accelerator.prepare(torch.compile(dual) if run.compile else dual, adamw)
    return Prepared(objective, dual, model, feed, clock, run.schedule.bind(clock), companions, adamw, optimizer)


def dual_of(run: Run, objective: Objective) -> Dual:
    """The model with the heads that its losses ask for."""
    dual = run.model.build(needs=objective.needs)
    dual.heads.update(objective.heads(dual))
    return dual


def feed_of(run: Run, dual: Dual, *, known: Iterable[Skip] = ()) -> Feed:
    """This rank's batches, read as the model wants them."""
    transform: Any = dual.transform
    return Feed(
        run.data,
        tokenizer=dual.tokenizer,
        preprocess=transform,
        seed=run.seed,
        rank=dist.rank(),
        world=dist.world(),
        known=known,
    )


def clock_of(run: Run, feed: Feed) -> Clock:
    """Steps, epochs and the length of the run; the empty slots at the end of an epoch belong to it."""
    clock = Clock(feed.batch_size, round(feed.steps_per_epoch * feed.batch_size))
    return clock._replace(total=clock.steps(run.duration))
