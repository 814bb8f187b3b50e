"""The one tuning loop: few learned vectors, a frozen model, SGD (the protocol of CoOp, 2109.01134, appendix A)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from vlp.adapters.adapter import Adapter
from vlp.adapters.task import Examples, Task
from vlp.progress import progress

T = TypeVar("T")


class Tuner(Adapter):
    """What is tuned by SGD: rates, batch and epochs. The state after the last epoch is kept; nothing is chosen.

    The first epoch runs at the constant `warm_lr`, epoch e of E (from 0) at lr (1 + cos(pi (e - 1) / E)) / 2, which is
    what the released loops do: warm-up does not shift the cosine, and its end is never reached. `epochs`: None is the
    paper's number for that many shots. The last batch of an epoch stays, where released loops drop what does not fill.
    `lr_for`: the scale of logits that the rates are meant for, 100 in papers about CLIP. With a model of scale s they
    are multiplied by (lr_for / s)^2, since a gradient has one factor s and what its step does to logits another; None:
    rates are as they stand.
    """

    lr: float = Field(0.002, gt=0)
    batch: int = Field(32, ge=1)
    epochs: int | None = Field(None, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    warm_lr: float = Field(1e-5, gt=0)
    lr_for: float | None = Field(None, gt=0)

    def usual_epochs(self, shots: int) -> int:
        """The paper's number of epochs for the largest number of pictures a class has."""
        raise NotImplementedError

    def epochs_for(self, support: Examples) -> int:
        """`epochs`, else the paper's."""
        return self.usual_epochs(int(support.known.bincount().max())) if self.epochs is None else self.epochs

    def rate(self, epoch: int, epochs: int) -> float:
        """The learning rate of an epoch, from 0."""
        return self.warm_lr if epoch == 0 else self.lr * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / epochs))

    def tune(
        self,
        encoder: Any,
        learned: nn.Module,
        shots: Callable[[int], Iterable[T]],
        loss: Callable[[T], Tensor],
        *,
        epochs: int,
        after_epoch: Callable[[int], None] | None = None,
    ) -> dict[str, Any]:
        """Moves the parameters of `learned` down the loss of the batches shots(epoch); what a record says of it.

        after_epoch(epoch) is called when an epoch is over. ValueError where the loss is no longer a number.
        """
        optimizer = torch.optim.SGD(
            learned.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        scaler = torch.amp.GradScaler(encoder.device.type, enabled=encoder.precision == "fp16")
        factor = 1.0 if self.lr_for is None else (self.lr_for / encoder.scale) ** 2
        mean, steps = math.nan, 0
        name = type(self).__name__
        for epoch in progress(range(epochs), total=epochs, size=lambda _: 1, what=name, quiet=encoder.quiet):
            for group in optimizer.param_groups:
                group["lr"] = factor * self.rate(epoch, epochs)
            values = []
            for batch in shots(epoch):
                optimizer.zero_grad()
                with torch.enable_grad(), autocast(encoder):
                    value = loss(batch)
                scaler.scale(value).backward()
                scaler.step(optimizer)
                scaler.update()
                values.append(value.detach())
            mean, steps = float(torch.stack(values).mean()), steps + len(values)
            if not math.isfinite(mean):
                raise ValueError(f"{name}: the loss was {mean} in epoch {epoch + 1}; try a smaller lr than {self.lr}")
            if after_epoch is not None:
                after_epoch(epoch)
        scaled = {} if self.lr_for is None else {"rate_factor": factor}
        return {"epochs": epochs, "steps": steps, **scaled, **({"loss": mean} if steps else {})}

    def about(self, encoder: Any, task: Task, **more: Any) -> dict[str, Any]:
        """What a saved classifier says of itself: adapter, settings, backbone, and that nothing was chosen."""
        return {
            "adapter": type(self).__name__.lower(),
            "settings": self.model_dump(mode="json"),
            "weights_hash": encoder.weights_hash,
            "seed": task.seed,
            "selection": {"split": "none"},
            **more,
        }


@contextmanager
def in_mode(dual: nn.Module, *, training: bool) -> Iterator[None]:
    """While open the model is in training mode or not, and its own tensors take no gradients; then all is as it was."""
    modes = [(module, module.training) for module in dual.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in dual.parameters()]
    dual.train(training).requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, own in wanted:
            parameter.requires_grad_(own)


def frozen(encoder: Any) -> AbstractContextManager[None]:
    """While open, the model is in evaluation mode and takes no gradients; then every part is as it was."""
    return in_mode(encoder.dual, training=False)


def autocast(encoder: Any) -> AbstractContextManager[Any]:
    """The precision that the encoder encodes in."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(encoder.precision)
    return torch.autocast(encoder.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def seeded_linear(inputs: int, outputs: int, rng: torch.Generator) -> nn.Linear:
    """A layer drawn as torch draws its own, from this generator: uniform within 1 / sqrt(inputs)."""
    layer: nn.Linear = torch.nn.utils.skip_init(nn.Linear, inputs, outputs)
    bound = 1 / math.sqrt(inputs)
    with torch.no_grad():
        for parameter in (layer.weight, layer.bias):
            parameter.uniform_(-bound, bound, generator=rng)
    return layer
