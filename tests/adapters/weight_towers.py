"""A tiny model, coloured noise to tune it on, and what must never change of it."""

from __future__ import annotations

import copy
from typing import Any

import torch

from tests.models.tiny import NANO, make_dual
from vlp.adapters.task import Examples, Task
from vlp.adapters.zeroshot import ZeroShot
from vlp.embed import Encoder

NAMES = ("red", "green", "blue")
RESNET: dict[str, Any] = copy.deepcopy(NANO)
RESNET["vision_cfg"] = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64}


def make_encoder(config: Any = NANO, *, seed: int = 0, **settings: Any) -> Encoder:
    return Encoder(make_dual(config, seed=seed, **settings), batch_size=8, quiet=True)


def examples(encoder: Any, per_class: int, *, seed: int, classes: int = 3) -> Examples:
    """Noise with more of the channel of its class."""
    rng = torch.Generator().manual_seed(seed)
    label = torch.arange(classes).repeat_interleave(per_class)
    image = torch.randint(0, 120, (len(label), 3, 32, 32), generator=rng)
    image[torch.arange(len(label)), label] += 110
    pictures = list(image.to(torch.uint8))
    keys = tuple(f"{seed}-{row}" for row in range(len(label)))
    return Examples(encoder.images(pictures).features, label, keys, pictures)


def make_task(encoder: Any, *, shots: int = 3, held: int = 2, seed: int = 0, **more: Any) -> Task:
    validation = examples(encoder, held, seed=91) if held else None
    support = examples(encoder, shots, seed=90)
    return Task(NAMES, ("{}", "a {}."), support=support, validation=validation, seed=seed, **more)


def batch(examples: Examples) -> torch.Tensor:
    return torch.stack(examples.pictures)


def zero_shot_logits(encoder: Any, task: Task, given: Examples) -> torch.Tensor:
    return ZeroShot().fit(encoder, task)(encoder.images(given.pictures).features)


def trace(dual: Any) -> dict[str, Any]:
    """All of a model that an adapter must leave as it was."""
    return {
        "state": {name: tensor.clone() for name, tensor in dual.state_dict().items()},
        "modes": [module.training for module in dual.modules()],
        "wanted": [parameter.requires_grad for parameter in dual.parameters()],
        "grads": [parameter.grad is None for parameter in dual.parameters()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in dual.modules()],
        "momentum": [getattr(m, "momentum", None) for m in dual.modules()],
    }


def assert_untouched(dual: Any, before: dict[str, Any]) -> None:
    now = trace(dual)
    for name, tensor in before["state"].items():
        assert torch.equal(tensor, now["state"][name]), name
    assert {key: value for key, value in now.items() if key != "state"} == {
        key: value for key, value in before.items() if key != "state"
    }
