"""The optimizer's state by parameter name: it depends neither on the order of groups nor on that of parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vlp.checkpoint import CheckpointError


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name ("exp_avg/image.conv1.weight"), names as `Optim.groups` gave them.

    A parameter that never had a gradient has no state; "unmoved/NAME" says so.
    """
    flat: dict[str, Tensor] = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            state = optimizer.state.get(parameter) or {"unmoved": torch.zeros(1)}
            flat.update({f"{key}/{name}": torch.as_tensor(value) for key, value in state.items()})
    return flat


def load_optimizer(optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; CheckpointError naming parameters that the checkpoint lacks."""
    by_name: dict[str, dict[str, Tensor]] = {}
    for path, value in flat.items():
        key, _, name = path.partition("/")
        by_name.setdefault(name, {})[key] = value
    missing = []
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if name not in by_name:
                missing.append(name)
                continue
            state = by_name[name]
            if "unmoved" in state:
                optimizer.state.pop(parameter, None)
                continue
            optimizer.state[
                parameter
            ] = {  # copies: what was read is the file itself, and would hold its room on the disk
                key: value.to(parameter.device if key != "step" or group.get("fused") else "cpu", copy=True)
                for key, value in state.items()
            }
    if missing and by_name:
        raise CheckpointError(
            f"the checkpoint's optimizer has no state for {', '.join(missing[:5])} ({len(missing)}): they were locked "
            "then; keep the locks, or start a run of another name from its weights (model.pretrained)"
        )


def optimizer_room(optimizer: torch.optim.Optimizer, there: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors to read a state into that lies elsewhere: cut as the parameters are, where they have their shape.

    there: what lies there under the names of `optimizer_tensors`, as shapes and types.
    """
    parameters = {
        name: p for group in optimizer.param_groups for name, p in zip(group["names"], group["params"], strict=True)
    }
    room = {}
    for path, like in there.items():
        key, _, name = path.partition("/")
        parameter = parameters.get(name)
        if parameter is not None and key != "step" and parameter.shape == like.shape:
            room[path] = torch.zeros_like(parameter.detach(), dtype=like.dtype)
        elif parameter is not None:
            room[path] = torch.zeros(() if key == "step" else like.shape, dtype=like.dtype)
    return room
