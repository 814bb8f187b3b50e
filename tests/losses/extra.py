"""Features whose `extra` are leaves too: value and gradient of each, in one process or in several."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vlp.losses.loss import Loss
from vlp.types import Batch, Features


def summed(loss: Loss, batch: Batch) -> Callable[[Features], Tensor]:
    """The loss as a function of features alone: the sum of its terms."""
    return lambda features: torch.stack([term.reshape(()) for term in loss(features, batch).values()]).sum()


def leaves(features: Features) -> dict[str, Tensor]:
    """Every float tensor by name; those in `extra` under their own."""
    fields = {name: x for name, x in features._asdict().items() if isinstance(x, Tensor)}
    return {name: x for name, x in (fields | dict(features.extra)).items() if x.is_floating_point()}


def gradients(fn: Callable[[Features], Tensor], features: Features) -> dict[str, Tensor]:
    """The value of fn(features) and its gradient by each leaf; zeros where it does not depend on one."""
    known = leaves(features)
    value = fn(features)
    grads = torch.autograd.grad(value, list(known.values()), allow_unused=True)
    found = {name: torch.zeros_like(x) if g is None else g for (name, x), g in zip(known.items(), grads, strict=True)}
    return {"value": value.detach(), **found}


def share(features: Features, batch: Batch, rank: int, world: int, once: frozenset[str]) -> tuple[Features, Batch]:
    """One rank's part, as leaves of its own graph; `once`: names without a batch dimension."""
    size = len(batch) // world
    rows = slice(rank * size, (rank + 1) * size)

    def part(name: str, x: Tensor) -> Tensor:
        x = x.detach() if name in once else x.detach()[rows]
        return x.clone().requires_grad_(x.is_floating_point())

    fields = {name: part(name, x) for name, x in features._asdict().items() if isinstance(x, Tensor)}
    extra = {name: part(name, x) for name, x in features.extra.items()}
    return Features(**fields, extra=extra), batch.rows(rows.start, rows.stop)


def one_rank(rank: int, world: int, losses: list[Loss], features: Features, batch: Batch) -> list[dict[str, Tensor]]:
    """Run by `spawn`: what one rank sees of each loss."""
    result = []
    for loss in losses:
        ours, part = share(features, batch, rank, world, loss.batchless | {"scale", "bias"})
        result.append(gradients(summed(loss, part), ours))
    return result


def merged(ranks: list[Mapping[str, Tensor]], once: frozenset[str]) -> dict[str, Tensor]:
    """What DDP makes of the ranks: means; gradients of rows side by side, divided by W as the mean does."""
    return {
        name: torch.stack([rank[name] for rank in ranks]).mean(0)
        if name in once | {"scale", "bias", "value"}
        else torch.cat([rank[name] for rank in ranks]) / len(ranks)
        for name in ranks[0]
    }
