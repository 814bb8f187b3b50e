"""The only weighted sum in the house."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vlp.losses.loss import Loss
from vlp.types import Batch, Features


class Objective:
    """Weighted sum of losses.

    A term is called after its loss ("infonce"; "infonce.2" for the second of that name), or "infonce/part" if the loss
    returns several.
    """

    class Value(NamedTuple):
        """What an objective gives: the number to minimise, and every term without its weight."""

        total: Tensor  # scalar, with gradient
        terms: dict[str, Tensor]  # scalars without gradient

    def __init__(self, losses: Sequence[Loss]) -> None:
        if not losses:
            raise ValueError("an objective needs at least one loss; give `losses: [{name: infonce}]`")
        self.losses = tuple(losses)
        self.names = _numbered([loss.name for loss in losses])

    @property
    def needs(self) -> frozenset[str]:
        """Names of the features that any of the losses needs."""
        return frozenset[str]().union(*(loss.needs for loss in self.losses))

    @property
    def batchless(self) -> frozenset[str]:
        """Names in `features.extra` without a batch dimension."""
        return frozenset[str]().union(*(loss.batchless for loss in self.losses))

    def heads(self, dual: Any) -> dict[str, nn.Module]:
        """Heads of all losses by name; ValueError if two losses ask for the same name."""
        result: dict[str, nn.Module] = {}
        owner: dict[str, str] = {}
        for loss_name, loss in zip(self.names, self.losses, strict=True):
            for name, head in loss.heads(dual).items():
                if name in owner:
                    raise ValueError(
                        f'losses "{owner[name]}" and "{loss_name}" both ask for a head "{name}"; '
                        "keep one of them, or let one of them call its head something else"
                    )
                result[name], owner[name] = head, loss_name
        return result

    def __call__(self, features: Features, batch: Batch) -> Value:
        """Weighted sum and terms. Of W processes, each gives its share: the mean over ranks is the value."""
        terms: dict[str, Tensor] = {}
        total = _anchor(features)
        for name, loss in zip(self.names, self.losses, strict=True):
            found = loss(features, batch)
            total = total + loss.weight * torch.stack([value.reshape(()) for value in found.values()]).sum()
            for part, value in found.items():
                terms[name if len(found) == 1 else f"{name}/{part}"] = value.detach().reshape(())
        return Objective.Value(total, terms)


def _scalars(features: Features) -> dict[str, Tensor]:
    return {name: x for name in ("scale", "bias") if (x := getattr(features, name)) is not None}


def _anchor(features: Features) -> Tensor:
    """0 with a gradient of 0 for scale and bias: DDP waits for every parameter, also for those no loss uses."""
    return torch.stack([0.0 * x.sum() for x in _scalars(features).values()]).sum()


def _numbered(names: Sequence[str]) -> tuple[str, ...]:
    """Names with ".2", ".3" ... behind the second, third ... of a kind."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}.{seen[name]}")
    return tuple(result)
