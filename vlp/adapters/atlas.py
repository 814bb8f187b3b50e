"""Task vectors with a learned coefficient for each parameter block (aTLAS, Zhang et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from vlp.adapters.fitting import PictureBatches, Recipe, minimise, picture_loss, seeded, steps_of
from vlp.adapters.ingredients import Line, Merges, judged
from vlp.adapters.selection import choose
from vlp.adapters.task import Task
from vlp.adapters.tuned import HEAD, SIDES, TunedClassifier, own_state
from vlp.adapters.tuning import frozen
from vlp.adapters.weights import State, task_vector
from vlp.data.augment import Augment

AT_LEAST = 10  # steps of a pass through a small support


class Atlas(Merges):
    """theta_0 + sum_i sum_b c_ib tau_ib, with tau = theta - theta_0 and one c for each vector and block (2407.02880).

    A block is a weight or bias of the image tower; c starts at zero, which is zero-shot, and only c is learned, by
    cross-entropy with zero-shot class weights, AdamW, cosine, gradients of norm 1 at most. With `masks` K above 1 each
    matrix is split at random into K parts with a coefficient each. The epoch is chosen on validation or by folds, the
    zero-shot start among them; the last one where nothing can be held out. Ours: with masks, tensors that are no
    matrices keep one coefficient (the code leaves them alone); a pass through a small support has 10 steps of its own
    size, in place of 10 batches of copies.
    """

    method: ClassVar[str] = "atlas"

    masks: int = Field(1, ge=1)
    lr: float = Field(0.1, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    epochs: int = Field(10, ge=0)
    batch_size: int = Field(128, ge=1)
    augment: Augment | None = Augment(scale=(0.5, 1.0), flip=0.5)

    def fit(self, encoder: Any, task: Task) -> TunedClassifier:
        """A classifier with the composed weights."""
        self.given(task, "support")
        same = None if self.of else self.composition(encoder, task)  # vectors of files are those of every fold

        def path(part: Task) -> Line[int]:
            vectors = same or self.composition(encoder, part)
            learned = self._learn(encoder, part, vectors)
            return Line(lambda epoch: vectors.at(learned[epoch]), vectors.inner)

        epochs = range(self.epochs + 1)
        found = judged(encoder, task, epochs, path, who=self.method)
        epoch, selection = self.epochs, None
        if found.scores:
            epoch, selection = choose(epochs, found.scores.__getitem__, split=found.split, unchosen=self.epochs)
        line = found.line
        return self.classifier(encoder, task, line.at(epoch), selection=selection, inner=line.inner, epoch=epoch)

    def composition(self, encoder: Any, task: Task) -> Composition:
        """The task vectors of the ingredients, ready to be weighted."""
        named = self.ingredients(encoder, task, heads=False)
        for ingredient in named:
            if any(name.startswith(SIDES["text"]) for name in ingredient.state):
                raise ValueError(
                    f"atlas composes the image tower, and {ingredient.name} changes the text tower too; "
                    "give ingredients tuned with towers: image"
                )
        blocks = _blocks(encoder.dual, [one.state for one in named])
        if not blocks:
            raise ValueError(f"atlas: none of {', '.join(one.name for one in named)} changes the image tower")
        return Composition(
            own_state(encoder, task, blocks),
            [one.state for one in named],
            masks=self.masks,
            rng=torch.Generator().manual_seed(task.seed),
            inner=[one.selection for one in named],
        )

    def _learn(self, encoder: Any, task: Task, vectors: Composition) -> list[Tensor]:
        """Coefficients after every epoch, those before the first among them."""
        support = self.given(task, "support")
        coefficients = vectors.start()
        seen = [coefficients.detach().clone()]
        per_epoch = steps_of(1, len(support), self.batch_size, at_least=AT_LEAST)

        def each(done: int) -> None:
            if done % per_epoch == 0:
                seen.append(coefficients.detach().clone())

        with seeded(encoder.device, task.seed) as rng, frozen(encoder):
            batches = PictureBatches(encoder, support, self.augment, rng, who=self.method)
            loss = picture_loss(encoder, batches, support.known, lambda: vectors.at(coefficients))
            self.descend(
                encoder, coefficients, loss, steps=self.epochs * per_epoch, rows=len(support), rng=rng, each=each
            )
        return seen

    def descend(
        self,
        encoder: Any,
        coefficients: Tensor,
        loss: Callable[[Int[Tensor, "b"], int], Tensor],
        *,
        steps: int,
        rows: int,
        rng: torch.Generator,
        each: Callable[[int], None] | None = None,
    ) -> None:
        """Moves the coefficients down the loss."""
        recipe = Recipe(steps, self.batch_size, self.lr, self.weight_decay, clip=1.0)
        groups = [{"params": [coefficients]}]
        minimise(groups, loss, rows=rows, recipe=recipe, rng=rng, what=self.method, quiet=encoder.quiet, each=each)


class Composition:
    """theta_0 + sum_i c_i,b,m tau_i,b over blocks b, and over parts m of a block where it is split by random masks.

    inner: how the settings of the tuned models were chosen, for records.
    """

    def __init__(
        self,
        base: State,
        states: Sequence[State],
        *,
        masks: int = 1,
        rng: torch.Generator,
        inner: Sequence[dict[str, Any]] = (),
    ) -> None:
        self.base, self.masks, self.vectors, self.inner = base, masks, len(states), list(inner)
        self.blocks = [name for name in base if name != HEAD]
        found = [task_vector(base, {name: state[name] for name in self.blocks if name in state}) for state in states]
        self.moves = [
            torch.stack([vector.get(name, torch.zeros_like(base[name])) for vector in found]) for name in self.blocks
        ]
        self.part: dict[str, Int[Tensor, "..."]] = {}  # which mask each weight of a matrix is under
        if masks > 1:
            for name in self.blocks:
                if base[name].ndim == 2:
                    drawn = torch.randint(masks, base[name].shape, generator=rng)
                    self.part[name] = drawn.to(base[name].device)

    def start(self) -> Float[Tensor, "K blocks masks"]:
        """Zeros, which take gradients."""
        device = self.moves[0].device
        return torch.zeros(self.vectors, len(self.blocks), self.masks, device=device, requires_grad=True)

    def at(self, coefficients: Float[Tensor, "K blocks masks"]) -> dict[str, Tensor]:
        """The composed state, with gradients to the coefficients."""
        state = dict(self.base)
        for place, (name, moves) in enumerate(zip(self.blocks, self.moves)):
            own = coefficients[:, place].to(moves.dtype)
            if name in self.part:
                move = (own[:, self.part[name]] * moves).sum(dim=0)
            else:
                move = torch.tensordot(own[:, 0], moves, dims=1)
            state[name] = self.base[name] + move
        return state


def _blocks(dual: Any, states: Sequence[State]) -> list[str]:
    """Parameters of the image tower that any of the states changes; statistics of BatchNorm stay the backbone's."""
    there = {name for state in states for name in state}
    return [
        name for name, parameter in dual.tower_parameters("image") if name in there and parameter.is_floating_point()
    ]
