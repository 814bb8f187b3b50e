"""Conditions under which a run must not start or go on, each with its reason and remedy."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from vlp import checkpoint, dist
from vlp.log import SkipLedger
from vlp.registry import nearest


def refuse_batch_statistics(dual: nn.Module, *, micro_batch: int | None, device: str) -> None:
    """ValueError where BatchNorm would see less than the global batch, so that results depend on how it is cut."""
    live = [
        name
        for name, module in dual.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.track_running_stats
    ]
    cut = "micro_batch is set" if micro_batch else ""
    if dist.world() > 1 and device == "cpu":
        cut = f"{dist.world()} CPU processes (SyncBatchNorm needs GPUs)"
    if live and cut:
        raise ValueError(
            f"{live[0]} and {len(live) - 1} more BatchNorm layers take statistics of the batch, but it is cut: {cut}; "
            "set model.frozen_batchnorm=true or lock the image tower"
        )


def refuse_bad_data(ledger: SkipLedger, *, limit: float, folder: Path) -> None:
    """RuntimeError with the counts by reason once more than `limit` of the samples seen could not be used.

    It waits for 100 samples, lest one bad picture end a run, unless none at all could be used.
    """
    if 0 < ledger.seen <= ledger.total:
        raise none_usable(ledger, folder=folder)
    if ledger.seen >= 100 and ledger.total > limit * ledger.seen:
        raise RuntimeError(
            f"{ledger.total} of {ledger.seen} samples could not be used ({ledger.summary()}), more than "
            f"data.max_bad_fraction={limit}; see {folder / 'skips.jsonl'}, then `vlp data verify` the shards"
        )


def none_usable(ledger: SkipLedger, *, folder: Path) -> RuntimeError:
    """The error of a run whose samples so far were all left out, by reason."""
    return RuntimeError(
        f"none of {ledger.seen} samples could be used ({ledger.summary()}); see {folder / 'skips.jsonl'}. "
        "With no_caption, name the fields that hold captions of the source named there: "
        "data.sources.0.captions.fields=[...] for the first"
    )


def refuse_large_vocabulary(text: nn.Module, vocab_size: int) -> None:
    """ValueError if the tokenizer has ids that the text tower has no embedding for."""
    encoder = getattr(text, "transformer", None)  # of transformers: its position table may be larger than that of words
    asked = getattr(encoder, "get_input_embeddings", None)
    words = [asked()] if asked is not None else [m for m in text.modules() if isinstance(m, nn.Embedding)]
    tables = [module.num_embeddings for module in words]
    if tables and vocab_size > max(tables):
        raise ValueError(
            f"the tokenizer has {vocab_size} ids, the text tower embeddings for {max(tables)}; name the tokenizer that "
            "belongs to the tower (model.tokenizer), or set vocab_size in the text_cfg of the architecture's file"
        )


def refuse_other_checkpoints(root: Path, *, resume: str) -> None:
    """ValueError for checkpoints where none are wanted: among them the new ones would be taken for the oldest."""
    if resume == "never" and (found := checkpoint.listed(root)):
        raise ValueError(
            f"{root} holds {found[-1].name} of an earlier run, but resume is never; give this run another name, or "
            f"remove {root.parent}"
        )


def refuse_absent_trackers(names: Sequence[str]) -> None:
    """ValueError for a tracker that is not installed: Accelerate would leave it out without a word."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"log.trackers: {name} is not installed; `pip install -e '.[tracking]'` here, or leave it out"
            )


def refuse_unknown_weights(names: Iterable[str], companions: Iterable[str]) -> None:
    """ValueError for an evaluation of weights that the run does not have."""
    known = ["model", *companions]
    for name in names:
        if name not in known:
            raise ValueError(f'evals: no weights called "{name}"{nearest(name, known)}')


class BatchStatistics:
    """Running statistics of the BatchNorm layers that take them, put back where a step is not to count."""

    def __init__(self, dual: nn.Module) -> None:
        live = [m for m in dual.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
        self.buffers = [buffer for module in live for buffer in module.buffers()]

    def keep(self) -> None:
        """Before the step's forward, which would leave what is not finite in them for good."""
        self.kept = [buffer.clone() for buffer in self.buffers]

    def put_back(self) -> None:
        for buffer, value in zip(self.buffers, self.kept, strict=True):
            buffer.copy_(value)


@contextmanager
def leave_no_trace(dual: nn.Module) -> Iterator[None]:
    """Around passes that are thrown away: buffers are put back; the caller drops gradients and steps nothing.

    With 3 or more ranks DDP reduces in another order until its first pass is over. Every start of a run, first or
    resumed, has such passes first, or a resumed run would differ from the straight one in the last bit.
    """
    kept = [buffer.clone() for buffer in dual.buffers()]
    yield
    with torch.no_grad():
        for buffer, value in zip(dual.buffers(), kept, strict=True):
            buffer.copy_(value)
