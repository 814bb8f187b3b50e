"""Arithmetic of weights: states (name -> tensor) in, a state out; no model is needed.

Floating tensors are computed in at least fp32 and come back in their own type. Integer tensors (counters) are copied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

State = Mapping[str, Tensor]

_STRAIGHT = 1e-4  # sine of an angle below which the arc is a line to fp32


def lerp(first: State, second: State, alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) first + alpha second, tensor by tensor; at 0 and 1 the ends bit for bit (WiSE-FT, 2109.01903).

    Integer tensors are those of the nearer end.
    """
    return _between(first, second, alpha, lambda a, b: (1 - alpha) * a + alpha * b)


def slerp(first: State, second: State, alpha: float) -> dict[str, Tensor]:
    """The same along the arc between the two directions of each tensor (Shoemake 1985), the ends bit for bit.

    sin((1 - alpha) w) / sin w first + sin(alpha w) / sin w second, with w the angle between the flattened tensors;
    tensors of one direction, opposite ones and those without one (zero) are interpolated straight.
    """

    def arc(a: Tensor, b: Tensor) -> Tensor:
        x, y = a.flatten().double(), b.flatten().double()
        cosine = (x @ y) / (x.norm() * y.norm()).clamp_min(torch.finfo(torch.float64).tiny)
        angle = cosine.clamp(-1, 1).acos()
        if angle.sin() < _STRAIGHT or not (x.any() and y.any()):
            return (1 - alpha) * a + alpha * b
        parts = ((1 - alpha) * angle).sin() * x + (alpha * angle).sin() * y
        made: Tensor = (parts / angle.sin()).reshape(a.shape).to(a.dtype)
        return made

    return _between(first, second, alpha, arc)


def mean(states: Sequence[State]) -> dict[str, Tensor]:
    """The mean of the states, tensor by tensor (model soups, 2203.05482); integer tensors are those of the first.

    Sums are in fp64, so that the mean of equal states is that state bit for bit.
    """
    check_alike(states)
    return {
        name: tensor
        if not tensor.is_floating_point()
        else (sum((state[name].double() for state in states[1:]), tensor.double()) / len(states)).to(tensor.dtype)
        for name, tensor in states[0].items()
    }


def task_vector(base: State, tuned: State) -> dict[str, Tensor]:
    """The difference tuned - base of all floating tensors of `tuned` (2212.04089, section 2); `base` may hold more."""
    check_alike([{name: base[name] for name in tuned if name in base}, tuned])
    return {name: tensor - base[name] for name, tensor in tuned.items() if tensor.is_floating_point()}


def moved(base: State, vectors: Sequence[State], coefficients: Sequence[float]) -> dict[str, Tensor]:
    """The state base + sum_i c_i tau_i; a vector without a tensor leaves it alone (2212.04089, section 2)."""
    found = dict(base)
    for vector, coefficient in zip(vectors, coefficients, strict=True):
        for name, tensor in vector.items():
            found[name] = found[name] + coefficient * tensor
    return found


def check_alike(states: Sequence[State]) -> None:
    """ValueError naming tensors that are not in all states, or not of one shape."""
    if not states:
        raise ValueError("no weights to merge: give at least one ingredient")
    for other in states[1:]:
        odd = sorted(states[0].keys() ^ other.keys())
        if odd:
            raise ValueError(
                f"{len(odd)} tensors are not in all ingredients, such as {', '.join(odd[:3])}; ingredients are tuned "
                "from one model, in the same towers"
            )
        for name, tensor in states[0].items():
            if tensor.shape != other[name].shape:
                raise ValueError(
                    f"{name} is {list(tensor.shape)} in one ingredient and {list(other[name].shape)} in another; "
                    "ingredients are tuned from one model"
                )


def _between(first: State, second: State, alpha: float, at: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    check_alike([first, second])
    if alpha in (0, 1):
        return dict(second if alpha else first)
    near = second if alpha > 0.5 else first
    found = {}
    for name, tensor in first.items():
        if not tensor.is_floating_point():
            found[name] = near[name]
            continue
        wide = torch.promote_types(tensor.dtype, torch.float32)
        found[name] = at(tensor.to(wide), second[name].to(wide)).to(tensor.dtype)
    return found
