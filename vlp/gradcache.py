"""A large batch in little memory: the gradient of the whole batch, at the memory of one micro-batch of the towers.

GradCache (arXiv 2101.06983): all features without a graph; the objective once, on features that are leaves; then each
micro-batch again, with the gradient of its features sent back. Exact, for any objective. BatchNorm in training mode is
the exception: its statistics would be those of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vlp.losses.objective import Objective
from vlp.types import Batch, Features

_ONCE = frozenset({"scale", "bias"})  # without a batch dimension, beside those in a loss's `batchless`


def step(
    model: Callable[[Batch], Features],
    objective: Objective,
    batch: Batch,
    *,
    micro: int,
    reseed: Callable[[int], None],
    backward: Callable[[Tensor], None] = Tensor.backward,
    no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Objective.Value:
    """Value of the objective on `batch`, with the gradients of the model's parameters added to what they hold.

    `micro` is the number of slots of a micro-batch (the last may be smaller). `reseed(i)` is called before each forward
    of micro-batch i, so that dropout draws alike in both passes. `backward` takes the place of `Tensor.backward` (a
    gradient scaler's, Accelerate's).

    With DDP give its `no_sync`: only the last micro-batch is reduced, with the sum of all of them. The objective's own
    gathers have added up what other ranks' terms want of our features, and DDP's mean divides by W: the same numbers
    as one backward through the whole batch, so nothing is to be scaled here.
    """
    bounds = [slice(start, min(start + micro, len(batch))) for start in range(0, len(batch), micro)]
    parts = [batch.rows(rows.start, rows.stop) for rows in bounds]
    if len(parts) == 1:
        reseed(0)
        value = objective(model(batch), batch)
        backward(value.total)
        return Objective.Value(value.total.detach(), value.terms)
    once = _ONCE | {f"extra.{name}" for name in objective.batchless}
    leaves = _leaves([_cached(model, part, reseed, i, once) for i, part in enumerate(parts)], once)
    value, grads = _ask(objective, leaves, batch)
    for i, (part, rows) in enumerate(zip(parts, bounds, strict=True)):
        last = i == len(parts) - 1
        wanted = {name: g if name in once else g[rows] for name, g in grads.items() if last or name not in once}
        with nullcontext() if last else no_sync():
            reseed(i)
            surrogate = _surrogate(_named(model(part)), wanted)
            if surrogate.requires_grad:  # with both towers locked only the last has: it carries scale and bias
                backward(surrogate)
    return value


def _named(features: Features) -> dict[str, Tensor]:
    """Every tensor in `features` by name; those in `extra` as "extra.NAME"."""
    fields = {name: x for name, x in features._asdict().items() if isinstance(x, Tensor)}
    return fields | {f"extra.{name}": x for name, x in features.extra.items()}


def _features(named: Mapping[str, Tensor]) -> Features:
    extra = {name.removeprefix("extra."): x for name, x in named.items() if name.startswith("extra.")}
    return Features(**{name: x for name, x in named.items() if not name.startswith("extra.")}, extra=extra)


def _cached(
    model: Callable[[Batch], Features], part: Batch, reseed: Callable[[int], None], i: int, once: frozenset[str]
) -> dict[str, Tensor]:
    """Features of micro-batch i without a graph; ValueError if one that is taken for batch-sized is not."""
    reseed(i)
    with torch.no_grad():
        named = _named(model(part))
    for name, x in named.items():
        if name not in once and (x.ndim == 0 or len(x) != len(part)):
            raise ValueError(
                f"features.{name} has shape {tuple(x.shape)} for a micro-batch of {len(part)} slots; "
                "if it has no batch dimension, the loss that asks for it must list it in `batchless`"
            )
    return named


def _leaves(cached: Sequence[Mapping[str, Tensor]], once: frozenset[str]) -> dict[str, Tensor]:
    """The whole batch's features as leaves of a new graph; what has no batch dimension is taken from the first."""
    whole = {
        name: first.clone() if name in once else _joined([part[name] for part in cached])
        for name, first in cached[0].items()
    }
    return {name: x.requires_grad_(x.is_floating_point()) for name, x in whole.items()}


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Parts one after the other; with zeros (False) at the end where another part is longer, as captions may be."""
    longest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    return torch.cat([pad(part, _widths(part.shape[1:], longest)) for part in parts])


def _widths(sizes: Sequence[int], longest: Sequence[int]) -> list[int]:
    """What torch's `pad` wants: (before, after) of each dimension, the last one first."""
    return [width for size, most in zip(reversed(sizes), reversed(longest), strict=True) for width in (0, most - size)]


def _ask(objective: Objective, leaves: dict[str, Tensor], batch: Batch) -> tuple[Objective.Value, dict[str, Tensor]]:
    """Value on the whole batch, and what it wants of each of the features."""
    value = objective(_features(leaves), batch)
    floats = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    found = torch.autograd.grad(value.total, list(floats.values()), allow_unused=True)
    grads = {name: grad for name, grad in zip(floats, found, strict=True) if grad is not None}
    return Objective.Value(value.total.detach(), value.terms), grads


def _surrogate(made: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
    """Number whose gradient with respect to each of the features is what is wanted of it."""
    result = torch.zeros((), device=made["image"].device)
    for name, grad in wanted.items():
        x = made[name]
        result = result + (x * grad[tuple(slice(size) for size in x.shape)]).sum()  # without the padding
    return result
