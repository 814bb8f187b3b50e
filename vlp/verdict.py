"""What all ranks decide alike about a step: whether its update is made, and whether the run is to leave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlp import dist
from vlp.guards import leave_no_trace
from vlp.models.dual import Dual
from vlp.types import Batch, Features

MAX_OVERFLOWS = 30  # fp16: steps in a row that the gradient scaler may leave out while it looks for its scale
SHOWN = 8  # samples that a message names


class NonFiniteError(RuntimeError):
    """The loss or a gradient stayed not finite; the message has every term and the keys of the samples."""


class Verdict(NamedTuple):
    """One answer on every rank."""

    finite: bool  # loss and gradient, on all ranks
    empty: bool  # no rank has a valid pair: the loss is a 0 that nothing was seen for
    leave: bool  # a rank was told to
    loss: float  # mean over ranks
    grad_norm: float


def agree(loss: Tensor, grad_norm: Tensor, *, valid: Tensor, scaled: bool, stop: bool) -> Verdict:
    """The verdict of all ranks on a step, by one small collective and one wait for the device.

    valid: bool [B], slots with a pair. scaled: under a gradient scaler a gradient may overflow, then the scaler leaves
    the step out.
    """
    loss, norm = loss.detach(), grad_norm.detach().to(loss.device)
    finite = loss.isfinite() if scaled else loss.isfinite() & norm.isfinite()
    some, left = valid.any().to(loss.device), loss.new_full((), float(stop))
    mine = torch.stack([x.double() for x in (~finite, some, left, loss, norm)])
    bad, pairs, leave, loss_sum, norm_sum = dist.total(mine).tolist()
    return Verdict(bad == 0, pairs == 0, leave > 0, loss_sum / dist.world(), norm_sum / dist.world())


class LeftOut:
    """Updates that were not made, by reason; NonFiniteError once too many came in a row."""

    def __init__(self, limit: int) -> None:
        self.limit, self.counts = limit, {"not_finite": 0, "overflow": 0, "no_pair": 0}
        self._bad = self._overflows = 0

    def made(self, step: int, *, overflow: bool) -> None:
        """Take note of a finite step; overflow: the gradient scaler left it out."""
        self._bad = 0
        self._overflows = self._overflows + 1 if overflow else 0
        self.counts["overflow"] += overflow
        if self._overflows > MAX_OVERFLOWS:
            raise NonFiniteError(f"step {step}: {self._overflows} fp16 overflows in a row; use precision=bf16")

    def no_pair(self) -> None:
        """Take note of a step whose batch had no pair on any rank."""
        self.counts["no_pair"] += 1

    def not_finite(self, text: str) -> None:
        """Take note of a step that was not finite; `text` says of what."""
        self._bad += 1
        self.counts["not_finite"] += 1
        if self._bad > self.limit:
            raise NonFiniteError(
                f"{text}, {self._bad} in a row (max_nonfinite={self.limit}); look at the samples it names, take those "
                "that are bad out of the shards, or lower optim.lr; started again, the run goes on from its last "
                "checkpoint"
            )


def without_pair(batch: Batch, *, step: int, sources: Sequence[str]) -> str:
    """Of which sources the batch of a step was to be, and why no rank has a pair of them. Every rank calls it."""
    shares = dist.gather_object(([sources[number] for number in batch.source.tolist()], batch.skips))
    slots = Counter(source for share in shares for source in share[0])
    skips = [skip for share in shares for skip in share[1]]
    why = {source: Counter(skip.reason for skip in skips if skip.source == source) for source in slots}
    told = ", ".join(
        f"{source} ({', '.join(f'{reason} {n}' for reason, n in reasons.most_common()) or 'empty slots'})"
        for source, reasons in why.items()
    )
    example = f"; the first is {skips[0].shard}:{skips[0].key}" if skips else ""
    return (
        f"step {step}: none of its {slots.total()} slots has a pair, on any rank: {told}{example}; "
        "no loss is logged, and the update is left out"
    )


def explain(
    dual: Dual, batch: Batch, record: dict[str, Any], *, step: int, parts: Callable[[], Iterator[Batch]]
) -> str:
    """What was not finite in a step, and the samples of all ranks that made it so. Every rank calls it.

    parts: the micro-batches of the batch, the generator seeded for each as it was in the step. The features are made
    again, since a step does not keep them.
    """
    bad = not bool(torch.isfinite(record["loss"]))
    with leave_no_trace(dual), torch.no_grad():
        own = [line for part in parts() for line in culprits(dual(part), part)]
    shares = dist.gather_object((bad, own, sum(batch.valid.tolist()), [key for key in batch.keys if key]))
    ranks = ", ".join(str(rank) for rank, share in enumerate(shares) if share[0])
    terms = ", ".join(f"{name} {float(term):.4g}" for name, term in record["terms"].items())
    head = f"step {step}: not finite{f' (loss of rank {ranks})' if dist.world() > 1 and ranks else ''}"
    named = [line for share in shares for line in share[1]]
    if not named:
        why = f"the features of all samples are finite: {_listed([key for share in shares for key in share[3]])}"
    elif len(named) >= sum(share[2] for share in shares):
        why = f"no sample has finite features, so the weights are not: {_listed(named)}"
    else:
        why = _listed(named)
    return f"{head} (grad norm {float(record['grad_norm']):.4g}; {terms}): {why}; update left out"


def culprits(features: Features, batch: Batch) -> list[str]:
    """Key and fault of every sample whose features or columns are not finite, or whose features have norm 0."""
    wrong: dict[int, list[str]] = {}
    for what, mask in _wrong(features, batch):
        for slot in (mask & batch.valid).nonzero().flatten().tolist():
            wrong.setdefault(slot, []).append(what)
    return [
        f"{batch.keys[slot] if batch.keys else f'slot {slot}'} ({', '.join(wrong[slot])})" for slot in sorted(wrong)
    ]


def _wrong(features: Features, batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """What may be wrong with a sample, and [B] where it is."""
    for name, value in batch.extra.items():
        if value.is_floating_point():
            yield f"column {name} not finite", _infinite(value)
    yield "image not finite", _infinite(features.image)
    yield "image of norm 0", features.image.detach().norm(dim=-1) == 0
    yield "text not finite", _infinite(torch.where(batch.caption_mask[..., None], features.text, 0.0))
    yield "text of norm 0", ((features.text.detach().norm(dim=-1) == 0) & batch.caption_mask).any(1)


def _infinite(x: Tensor) -> Tensor:
    """Which rows have a value that is not finite, [B] of [B, ...]."""
    return ~x.detach().isfinite().unsqueeze(-1).flatten(1).all(1)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
