"""What losses with heads, views and a momentum copy are looked at with: columns, a real tiny model, common checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad
from torch.nn.parallel import DistributedDataParallel

from tests.conftest import random_batch
from tests.losses.compare import assert_equal
from tests.losses.extra import gradients, leaves, merged, one_rank, summed
from tests.models.tiny import NANO, make_dual
from vlp import gradcache
from vlp.losses.loss import Loss
from vlp.losses.objective import Objective
from vlp.types import Batch, Features

Q = 7


def drawn(*shape: int, seed: int) -> Tensor:
    """Unit rows, fp64."""
    rng = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*shape, generator=rng, dtype=torch.float64), dim=-1)


def with_momentum(batch: Batch, *, width: int, views: int = 2, patches: int = 4) -> Batch:
    """The batch with what the companions `momentum` and `queue` add; some labels of the queue are in the batch."""
    (B, K), filled = batch.caption_mask.shape, torch.arange(Q) < Q - 2
    label = torch.arange(1000, 1000 + Q)
    label[1], label[3] = batch.label[0], batch.label[1]
    return batch.plus(
        {
            "momentum/image": drawn(B, width, seed=11),
            "momentum/text": drawn(B, K, width, seed=12),
            "momentum/view_image": drawn(B, views, width, seed=13),
            "momentum/view_tokens": drawn(B, views, patches, width, seed=14),
        },
        {
            "queue/image": drawn(Q, width, seed=15),
            "queue/text": drawn(Q, width, seed=16),
            "queue/label": torch.where(filled, label, -1),
            "queue/filled": filled,
        },
    )


def with_extra(features: Features, **extra: Tensor) -> Features:
    """The features with made-up columns of heads ("simclr/views" is written simclr_views), floats as leaves."""
    named = {name.replace("_", "/", 1): x.clone() for name, x in extra.items()}
    return features._replace(
        extra={name: x.requires_grad_() if x.is_floating_point() else x for name, x in named.items()}
    )


def assert_equals(loss: Loss, reference: Callable[[Features], Tensor], features: Features, batch: Batch) -> None:
    """Value and gradient of the sum of the loss's terms are those of the reference."""
    assert_equal(gradients(summed(loss, batch), features), gradients(reference, features))


def assert_sound(loss: Loss, features: Features, batch: Batch, spawn: Callable[..., list[Any]]) -> None:
    """What every loss must keep: processes, empty slots, nothing valid, half precision at scale 100."""
    expected = gradients(summed(loss, batch), features)
    assert_equal(merged([rank[0] for rank in spawn(one_rank, 2, [loss], features, batch)], loss.batchless), expected)
    _assert_empty_slots_leave(loss, features, batch, expected)
    nothing = gradients(summed(loss, replace(batch, valid=torch.zeros_like(batch.valid))), features)
    assert all((x == 0).all() for x in nothing.values()), {name: x.abs().max() for name, x in nothing.items()}
    _assert_finite_in_half(loss, features, batch)


def _assert_empty_slots_leave(loss: Loss, features: Features, batch: Batch, expected: dict[str, Tensor]) -> None:
    def spoilt(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        return torch.where(batch.valid.reshape(-1, *[1] * (x.ndim - 1)), x, math.nan).detach().requires_grad_()

    absent = ~(batch.valid[:, None] & batch.caption_mask)[..., None]
    bad = features._replace(
        image=spoilt(features.image),
        text=torch.where(absent, math.nan, features.text).detach().requires_grad_(),
        extra={name: spoilt(x) for name, x in features.extra.items()},
    )
    extra = {name: spoilt(x).detach() for name, x in batch.extra.items()}
    found = gradients(summed(loss, replace(batch, extra=extra)), bad)
    assert_equal(found, expected)
    for name, x in leaves(features).items():
        if len(x) == len(batch):
            assert (found[name][~batch.valid] == 0).all()


def _assert_finite_in_half(loss: Loss, features: Features, batch: Batch) -> None:
    def half(x: Tensor | None) -> Any:
        return x if x is None or not x.is_floating_point() else x.detach().bfloat16().requires_grad_()

    small = features._replace(
        image=half(features.image),
        text=half(features.text),
        scale=torch.tensor([100.0], requires_grad=True),
        bias=None,
        extra={name: half(x) for name, x in features.extra.items()},
    )
    batch = replace(batch, extra={n: x.float() if x.is_floating_point() else x for n, x in batch.extra.items()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients(summed(loss, batch), small)
    assert found["value"].dtype is torch.float32
    assert all(x.isfinite().all() for x in found.values())


# ------------------------------------------------------------------------------------------------ a real tiny model


def headed(losses: Sequence[Loss], config: Any = NANO, **settings: Any) -> Any:
    """A tiny Dual in fp64 with the heads of the losses, in train mode."""
    dual = make_dual(config, **settings)
    if losses:
        objective = Objective(losses)
        dual.set_needs(objective.needs)
        torch.manual_seed(3)
        dual.heads.update(objective.heads(dual))
    with torch.no_grad():
        for head in dual.heads.parameters():
            if (head == head.flatten()[0]).all():
                head.add_(torch.randn_like(head) * 0.1)
    return dual.double().train()


def real_batch(num: int = 6, *, views: int = 2, momentum: bool = True, patches: int = 16) -> Batch:
    """Pairs that the tiny Dual can read, with two captions (some absent), an empty slot, views and momentum columns."""
    mask = [[k == 0 or i % 3 != 0 for k in range(2)] for i in range(num)]
    valid = [i != 1 for i in range(num)]
    label = [5 + (i % 4) for i in range(num)]
    batch = random_batch(num, captions=2, vocab=97, label=label, valid=valid, caption_mask=mask, tokens=9)
    rng = torch.Generator().manual_seed(8)
    batch = batch.plus(
        {"views": torch.randint(0, 256, (num, views, 3, 32, 32), generator=rng, dtype=torch.uint8)} if views else {}
    )
    return with_momentum(batch, width=32, views=views, patches=patches) if momentum else batch


def seeded(number: int) -> None:
    torch.manual_seed(1000 + number)


def parameters_gradients(model: nn.Module) -> dict[str, Tensor]:
    """By name; every parameter that learns must have one: DDP waits for all of them."""
    lacking = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not lacking, lacking
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def piecewise(model: Any, losses: Sequence[Loss], batch: Batch, micro: int) -> dict[str, Tensor]:
    """Terms and gradients of one backward through features that were made piece by piece, each from its own seed."""
    parts = []
    for i, start in enumerate(range(0, len(batch), micro)):
        seeded(i)
        parts.append(model(batch.rows(start, min(start + micro, len(batch)))))
    fields = {name: [getattr(p, name) for p in parts] for name in Features._fields if name not in ("scale", "extra")}
    made = {name: _joined(found) for name, found in fields.items() if found[0] is not None}
    extra = {name: _joined([part.extra[name] for part in parts]) for name in parts[0].extra}
    value = Objective(losses)(Features(**made, scale=parts[0].scale, extra=extra), batch)
    value.total.backward()
    return {"total": value.total.detach(), **value.terms, **parameters_gradients(model)}


def _joined(parts: list[Tensor]) -> Tensor:
    longest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    widths = [[w for d in range(p.ndim - 1, 0, -1) for w in (0, longest[d - 1] - p.shape[d])] for p in parts]
    return torch.cat([pad(part, width) for part, width in zip(parts, widths, strict=True)])


def assert_gradcache_exact(losses: Sequence[Loss], batch: Batch, *, micro: int = 4, **settings: Any) -> None:
    cached, direct = headed(losses, **settings), headed(losses, **settings)
    value = gradcache.step(cached, Objective(losses), batch, micro=micro, reseed=seeded)
    found = {"total": value.total.detach(), **value.terms, **parameters_gradients(cached)}
    assert_equal(found, piecewise(direct, losses, batch, micro), atol=1e-9)


def ddp_rank(rank: int, world: int, losses: list[Loss], batches: list[Batch]) -> list[dict[str, Tensor]]:
    """Run by `spawn`: what one rank of DDP sees of each batch."""
    found = []
    for batch in batches:
        half = len(batch) // world
        model = headed(losses)
        parallel = DistributedDataParallel(model)
        part = batch.rows(rank * half, (rank + 1) * half)
        seeded(rank)
        value = Objective(losses)(parallel(part), part)
        value.total.backward()
        found.append({"total": value.total.detach(), **value.terms, **parameters_gradients(model)})
    return found


def assert_ddp_exact(losses: list[Loss], batches: list[Batch], spawn: Callable[..., list[Any]]) -> None:
    """Two processes under DDP have the value and the gradients of one; no parameter goes without."""
    ranks = spawn(ddp_rank, 2, losses, batches)
    for i, batch in enumerate(batches):
        for name, x in piecewise(headed(losses), losses, batch, len(batch) // 2).items():
            everyones = "." in name or name.startswith("logit")  # DDP leaves the same gradient on every rank
            found = ranks[0][i][name] if everyones else (ranks[0][i][name] + ranks[1][i][name]) / 2
            torch.testing.assert_close(found, x, atol=1e-9, rtol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


def assert_learns(
    losses: Sequence[Loss], batch: Batch, *, steps: int = 12, least: float = 0.05, **settings: Any
) -> None:
    """A few steps on one batch lower the total."""
    model = headed(losses, **settings)
    objective, adam = Objective(losses), torch.optim.Adam(model.parameters(), lr=3e-3)
    seen = []
    for _ in range(steps):
        seeded(0)
        value = objective(model(batch), batch)
        adam.zero_grad()
        value.total.backward()
        adam.step()
        seen.append(value.total.item())
    assert seen[-1] < seen[0] - least, seen
