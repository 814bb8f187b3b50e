"""The loop behind adapters that tune weights: parameters, a loss over rows, AdamW with warm-up and cosine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from vlp.adapters.task import Examples
from vlp.adapters.tuned import Prompts, features_and_weights
from vlp.adapters.weights import State
from vlp.data.augment import Augment
from vlp.duration import Clock, Span
from vlp.optim import Cosine, set_rate
from vlp.pictures import read_picture
from vlp.progress import progress


class Recipe(NamedTuple):
    """How parameters are moved; `warmup` counts steps, of which at most a tenth of all are used."""

    steps: int
    batch_size: int
    lr: float
    weight_decay: float
    warmup: int = 0
    final: float = 0.0  # part of the rate that is left at the end
    clip: float | None = None  # largest norm of a gradient


def minimise(
    groups: Sequence[Mapping[str, Any]],
    loss: Callable[[Int[Tensor, "b"], int], Tensor],
    *,
    rows: int,
    recipe: Recipe,
    rng: torch.Generator,
    what: str,
    quiet: bool,
    each: Callable[[int], None] | None = None,
) -> None:
    """Moves the parameters in `groups` to make loss(rows, step) smaller, over shuffled passes through `rows` rows.

    groups: AdamW's; `lr_scale` (1) multiplies the rate of a group. what: its name, for progress and messages. each:
    called with the number of steps done.
    """
    if not recipe.steps:
        return
    given = [{"lr_scale": 1.0, **group} for group in groups]
    optimizer = torch.optim.AdamW(given, lr=recipe.lr, weight_decay=recipe.weight_decay)
    warmup = Span(min(recipe.warmup, recipe.steps // 10), "steps")
    rate = Cosine(warmup=warmup, final=recipe.final).bind(Clock(recipe.batch_size, rows, recipe.steps))
    parameters = [parameter for group in given for parameter in group["params"]]
    order = zip(range(recipe.steps), passes(rows, recipe.batch_size, rng))
    for step, batch in progress(order, total=recipe.steps, size=lambda _: 1, what=what, quiet=quiet):
        set_rate(optimizer, recipe.lr * rate(step))
        optimizer.zero_grad()
        value = loss(batch, step)
        if not value.isfinite():
            raise ValueError(f"{what}: the loss is {value.item()} at step {step} of {recipe.steps}; set a smaller lr")
        value.backward()
        if recipe.clip is not None:
            clip_grad_norm_(parameters, recipe.clip)
        optimizer.step()
        if each is not None:
            each(step + 1)


def passes(rows: int, batch_size: int, rng: torch.Generator) -> Iterator[Int[Tensor, "b"]]:
    """Batches of row numbers without end, of nearly equal size, each pass in another order.

    A small last batch would have the weight of a whole one, and a single picture has no statistics for BatchNorm.
    """
    while True:
        yield from torch.randperm(rows, generator=rng).tensor_split(-(-rows // batch_size))


def steps_of(epochs: int, rows: int, batch_size: int, *, at_least: int = 1) -> int:
    """Steps of so many passes; a pass has `at_least` some."""
    return epochs * max(at_least, -(-rows // batch_size))


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[torch.Generator]:
    """A generator of the seed; while open the default generators (dropout) begin there too, then go on as before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield torch.Generator().manual_seed(seed)


def pixels(encoder: Any, examples: Examples, *, who: str) -> UInt8[Tensor, "n 3 H W"]:
    """The pictures as evaluation sees them, on the CPU; ValueError saying who needs them where there are none."""
    if examples.pictures is None:
        raise ValueError(
            f"{who} runs the image tower over pictures, and only features were given; give shards or folders of them"
        )
    transform = encoder.dual.transform
    return torch.stack([transform(read_picture(picture)) for picture in examples.pictures])


class PictureBatches:
    """Pictures of examples by row, on the encoder's device: as evaluation sees them (decoded once), or augmented."""

    def __init__(
        self, encoder: Any, examples: Examples, augment: Augment | None, rng: torch.Generator, *, who: str
    ) -> None:
        self.encoder, self.pictures, self.augment = encoder, examples.pictures, augment
        self.seed = int(torch.randint(2**62, (1,), generator=rng))
        self.plain = pixels(encoder, examples, who=who) if augment is None or self.pictures is None else None

    def __call__(self, rows: Int[Tensor, "b"], step: int) -> UInt8[Tensor, "b 3 H W"]:
        """The batch of these rows; what is drawn follows from seed, step and row."""
        if self.plain is not None:
            return self.plain[rows].to(self.encoder.device)
        assert self.augment is not None
        transform = self.encoder.dual.transform
        made = []
        for row in rows.tolist():
            drawn = np.random.default_rng((self.seed, step, row))
            made.append(self.augment.apply(read_picture(self.pictures[row]), transform, drawn))
        return torch.stack(made).to(self.encoder.device)


def picture_loss(
    encoder: Any,
    batches: PictureBatches,
    label: Int[Tensor, "n"],
    compose: Callable[[], State],
    *,
    words: Prompts | None = None,
) -> Callable[[Int[Tensor, "b"], int], Tensor]:
    """Loss(rows, step): cross-entropy of the model with the tensors of compose(), at the model's own temperature."""
    if encoder.precision == "fp16":
        raise ValueError("weights are not tuned in fp16, whose gradients vanish; make the encoder with bf16 or fp32")
    for tower in (encoder.dual.image_tower, encoder.dual.text_tower):
        if getattr(tower, "checkpointing", False):  # recomputed in backward, when the model has its own weights again
            raise ValueError("weights are not tuned with grad_checkpointing on; load the model without it")
    scale, known = encoder.scale, label.to(encoder.device)

    def loss(rows: Tensor, step: int) -> Tensor:
        features, weight = features_and_weights(encoder, compose(), batches(rows, step), words)
        return cross_entropy(scale * features @ weight.T, known[rows.to(known.device)])

    return loss
