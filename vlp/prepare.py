"""A configuration made into the things that a run works with."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import nn

from vlp import dist
from vlp.data.feed import Feed
from vlp.duration import Clock
from vlp.guards import refuse_batch_statistics, refuse_large_vocabulary
from vlp.losses.objective import Objective
from vlp.models.dual import Dual
from vlp.models.freeze import depths
from vlp.models.momentum import Queue
from vlp.optim import Rate
from vlp.run import Run
from vlp.sharded import Shards, refuse_unshardable
from vlp.types import Batch


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
    shards: Shards | None = None  # with parallel=fsdp2: how `dual` is cut, and made whole


def prepare(run: Run, accelerator: Accelerator, *, stored: Path | None = None) -> Prepared:
    """Everything of `run` but its state; the weights at the start are a function of the seed alone.

    stored: folder of the model in the checkpoint that follows; nothing at `model.pretrained` is needed then.
    """
    torch.manual_seed(run.seed)
    objective = Objective(run.losses)
    dual = dual_of(run, objective, stored=stored)
    if dist.world() > 1 and accelerator.device.type == "cuda":
        dual = nn.SyncBatchNorm.convert_sync_batchnorm(dual)
        run.model.lock(dual)  # again: what was held in eval mode are other modules now
    dual.to(accelerator.device)
    refuse_batch_statistics(dual, micro_batch=run.micro_batch, device=accelerator.device.type)
    feed = feed_of(run, dual)
    clock = clock_of(run, feed)
    shards = shards_of(run, dual) if run.parallel == "fsdp2" else None
    companions = companions_of(run, dual)
    adamw = run.optim.build(dual, depths=depths(dual))
    if run.compile:
        compile_blocks(dual)
    with warnings.catch_warnings():  # Accelerate 1.15 still calls it by the name that torch 2.15 deprecates
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        model = accelerator.prepare_model(dual, evaluation_mode=shards is not None)  # then without DDP
        optimizer = accelerator.prepare_optimizer(adamw)
    rate = run.schedule.bind(clock)
    return Prepared(objective, dual, model, feed, clock, rate, companions, adamw, optimizer, shards)


def shards_of(run: Run, dual: Dual) -> Shards:
    """The model cut over the processes; ValueError for settings that do not go together with that."""
    companions = named_companions(run.companions)
    refuse_unshardable(dual, companions=companions, precision=run.precision, compiled=run.compile)
    return Shards(dual)


def named_companions(parts: Sequence[Any]) -> dict[str, Any]:
    """Companions by the name of their class in small letters; the second of a kind is "ema.2"."""
    named: dict[str, Any] = {}
    for part in parts:
        kind = type(part).__name__.lower()
        number = 1 + sum(name.partition(".")[0] == kind for name in named)
        named[kind if number == 1 else f"{kind}.{number}"] = part
    return named


def companions_of(run: Run, dual: Dual) -> dict[str, Any]:
    """The companions of a run by name, made for the model on the device where it is."""
    refuse_queue_of_a_stream(run)
    return {name: part.build(dual) for name, part in named_companions(run.companions).items()}


def accompanied(batch: Batch, companions: Mapping[str, Any], dual: Dual) -> Batch:
    """The batch with what the companions add to it, each seeing what those before it added; no column is made twice."""
    makers: dict[str, str] = {}
    for name, companion in companions.items():
        before = {**batch.extra, **batch.memory}
        batch = companion.before_step(batch, dual)
        for column, value in {**batch.extra, **batch.memory}.items():
            if column in before and value is not before[column]:
                first = f"the companion `{makers[column]}`" if column in makers else "the data"
                raise ValueError(
                    f'the companion `{name}` makes the column "{column}", which {first} brought already; leave one of '
                    "them out, or let it come under another name (`prefix` of a teacher, data.sources[].columns)"
                )
            if column not in before:
                makers[column] = name
    return batch


def refuse_queue_of_a_stream(run: Run) -> None:
    """ValueError where a queue could not know the samples of a source again."""
    streams = [source.shown() for source in run.data.sources if source.endless]
    if streams and any(isinstance(part, Queue) for part in run.companions):
        raise ValueError(
            f"the companion `queue` knows its entries by the place of their sample, and {streams[0]} is a stream, "
            "which numbers its samples anew at every pass and resume; make shards of it (`vlp data build`), or leave "
            "queue out"
        )


def compile_blocks(dual: Dual) -> None:
    """Compile each block of both towers in place: parameters keep their names.

    The whole model would be compiled anew for every batch, since its text is cut into groups by length. All blocks of
    a kind share one graph; sizes are symbolic, so that the graph does not depend on which batch came first.
    """
    for block in [*dual.image_blocks, *dual.text_blocks]:
        block.compile(dynamic=True)


def dual_of(run: Run, objective: Objective, *, stored: Path | None = None) -> Dual:
    """The model with the heads that its losses ask for."""
    dual = run.model.build(needs=objective.needs, stored=stored)
    refuse_large_vocabulary(dual.text, dual.tokenizer.vocab_size)
    dual.heads.update(objective.heads(dual))
    return dual


def feed_of(run: Run, dual: Dual) -> Feed:
    """This rank's batches, read as the model wants them."""
    transform: Any = dual.transform
    feed = Feed(
        run.data,
        tokenizer=dual.tokenizer,
        preprocess=transform,
        seed=run.seed,
        rank=dist.rank(),
        world=dist.world(),
    )
    if dual.prefix is not None:
        dual.prefix.serve(feed.kinds)
    return feed


def clock_of(run: Run, feed: Feed) -> Clock:
    """Steps, epochs and the length of the run; the empty slots at the end of an epoch belong to it."""
    clock = Clock(feed.batch_size, round(feed.steps_per_epoch * feed.batch_size))
    return clock._replace(total=clock.steps(run.duration))
