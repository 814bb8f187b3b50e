"""How tests look at a loss: its value, and its gradient by every feature, by name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vlp.losses.loss import Loss
from vlp.types import Batch, Features


def value_and_gradients(fn: Callable[[Features], Tensor], features: Features) -> dict[str, Tensor]:
    """The value of fn(features) and its gradient by each leaf; zeros where it does not depend on one."""
    leaves = {name: x for name, x in features._asdict().items() if isinstance(x, Tensor)}
    value = fn(features)
    grads = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    found = {name: torch.zeros_like(x) if g is None else g for (name, x), g in zip(leaves.items(), grads, strict=True)}
    return {"value": value.detach(), **found}


def only_term(loss: Loss, batch: Batch) -> Callable[[Features], Tensor]:
    """The loss as a function of features alone; it must have one term."""

    def fn(features: Features) -> Tensor:
        (term,) = loss(features, batch).values()
        return term

    return fn


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], *, atol: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            found[name], expected[name], atol=atol, rtol=atol, msg=lambda m, name=name: f"{name}: {m}"
        )


# Eight slots: a label three times, one twice, two empty slots (one of them with the label of a real one), and captions
# missing here and there, so that a picture is in one slot's problem and not in the other's.
AWKWARD = {
    "num": 8,
    "captions": 2,
    "label": [5, 7, 5, 5, 9, 7, 11, 12],
    "valid": [True, True, True, False, True, True, False, True],
    "caption_mask": [[1, 1], [1, 0], [1, 1], [1, 1], [0, 1], [1, 1], [1, 0], [1, 0]],
}


def awkward(make_batch: Callable[..., Batch], make_features: Callable[..., Features]) -> tuple[Features, Batch]:
    """Features and batch with everything that can go wrong at once; the bias is there for losses that need it."""
    marks = AWKWARD | {"caption_mask": [[bool(x) for x in row] for row in AWKWARD["caption_mask"]]}
    return make_features(8, captions=2, bias=-2.0), make_batch(**marks)


def ours(features: Features, batch: Batch, rank: int, world: int) -> tuple[Features, Batch]:
    """One rank's share, as leaves of its own graph."""
    size = len(batch) // world
    rows = slice(rank * size, (rank + 1) * size)

    def leaf(x: Tensor | None, part: slice) -> Tensor | None:
        return None if x is None else x.detach()[part].clone().requires_grad_()

    share = features._replace(
        image=leaf(features.image, rows),
        text=leaf(features.text, rows),
        scale=leaf(features.scale, slice(None)),
        bias=leaf(features.bias, slice(None)),
    )
    return share, batch.rows(rows.start, rows.stop)


def one_rank(rank: int, world: int, losses: list[Loss], features: Features, batch: Batch) -> list[dict[str, Tensor]]:
    """Run by `spawn`: what one rank sees of each loss."""
    share, part = ours(features, batch, rank, world)
    return [value_and_gradients(only_term(loss, part), share) for loss in losses]


def merged(ranks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """What DDP makes of the ranks: means; gradients of features side by side, divided by W as the mean does."""
    return {
        name: torch.cat([rank[name] for rank in ranks]) / len(ranks)
        if name in ("image", "text")
        else torch.stack([rank[name] for rank in ranks]).mean(0)
        for name in ranks[0]
    }
