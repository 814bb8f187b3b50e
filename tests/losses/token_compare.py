"""Made-up tokens, FILIP as its paper writes it, and what one or several processes see of a loss on tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlp.losses.loss import Loss
from vlp.types import Batch, Features


def token_features(
    batch: Batch,
    *,
    patches: int = 5,
    width: int = 6,
    scale: float = 10.0,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    extra: tuple[str, ...] = (),
) -> Features:
    """Unit rows of noise, text tokens zero where masked; every tensor is a leaf. `extra` names more [B, R, D]."""
    rng = torch.Generator().manual_seed(seed)

    def unit(*shape: int) -> Tensor:
        return normalize(torch.randn(*shape, width, generator=rng, dtype=torch.float64), dim=-1).to(dtype)

    B, K, T = batch.token_mask.shape
    return Features(
        image=unit(B).requires_grad_(),
        text=unit(B, K).requires_grad_(),
        scale=torch.tensor([scale], dtype=dtype, requires_grad=True),
        image_tokens=unit(B, patches).requires_grad_(),
        text_tokens=(unit(B, K, T) * batch.token_mask[..., None]).requires_grad_(),
        extra={name: unit(B, 3).requires_grad_() for name in extra},
    )


def leaves(features: Features) -> dict[str, Tensor]:
    """Every tensor by name; those in `extra` as "extra.NAME"."""
    fields = {name: x for name, x in features._asdict().items() if isinstance(x, Tensor)}
    return fields | {f"extra.{name}": x for name, x in features.extra.items()}


def with_leaves(named: Mapping[str, Tensor]) -> Features:
    """The features that have these tensors."""
    extra = {name.removeprefix("extra."): x for name, x in named.items() if name.startswith("extra.")}
    return Features(**{name: x for name, x in named.items() if not name.startswith("extra.")}, extra=extra)


def seen(fn: Callable[[Features, Batch], Any], features: Features, batch: Batch) -> dict[str, Tensor]:
    """Value, and gradient by every leaf; zeros where it does not depend on one."""
    value = fn(features, batch)
    value = next(iter(value.values())) if isinstance(value, dict) else value
    named = leaves(features)
    grads = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    found = {name: torch.zeros_like(x) if g is None else g for (name, x), g in zip(named.items(), grads, strict=True)}
    return {"value": value.detach(), **found}


def one_rank(rank: int, world: int, losses: list[Loss], features: Features, batch: Batch) -> list[dict[str, Tensor]]:
    """Run by `spawn`: what one rank sees of each loss; its texts are as long as its own longest."""
    size = len(batch) // world
    part = batch.rows(rank * size, (rank + 1) * size)
    longest = max(1, int(part.token_mask.sum(-1).max()))
    own = {}
    for name, x in leaves(features).items():
        x = x.detach() if name in ONCE else x.detach()[rank * size : (rank + 1) * size]
        own[name] = (x[:, :, :longest] if name == "text_tokens" else x).clone().requires_grad_()
    return [seen(loss, with_leaves(own), part) for loss in losses]


ONCE = ("scale", "extra.filip/scale", "extra.wukong/scale", "extra.filip/room")


def merged(ranks: list[dict[str, Tensor]], like: Features) -> dict[str, Tensor]:
    """What DDP makes of the ranks: means; gradients of features side by side, divided by W as the mean does."""
    result = {}
    for name in ranks[0]:
        found = [rank[name] for rank in ranks]
        if name == "value" or name in ONCE:
            result[name] = torch.stack(found).mean(0)
            continue
        whole = torch.zeros_like(leaves(like)[name])
        for i, grad in enumerate(found):
            whole[(slice(i * len(grad), (i + 1) * len(grad)), *(slice(n) for n in grad.shape[1:]))] = grad
        result[name] = whole / len(ranks)
    return result


def filip(
    features: Features,
    batch: Batch,
    *,
    image: str = "image_tokens",
    image_keep: float = 1.0,
    text_keep: float = 1.0,
    group: int = 1,
    label_smoothing: float = 0.0,
    temperature: float | None = None,
    clip_logits: float | None = None,
    pad_max: str = "exclude",
    positives: str = "label",
) -> Tensor:
    """One pair at a time, with lists of real tokens in place of masks."""
    places = math.ceil(round(text_keep * float(features.extra["filip/room"].detach()), 6)) if pad_max == "zero" else 0
    x, y = _chosen(features, batch, image, image_keep, text_keep, group)
    s = features.scale[0] if temperature is None else 1 / temperature

    def by_image(i: int, j: int, k: int) -> Tensor:
        nearest = (x[i] @ y[j, k].T).amax(1)
        return bounded(nearest.clamp(min=0) if len(y[j, k]) < places else nearest)

    def by_text(i: int, j: int, k: int) -> Tensor:
        return bounded((x[i] @ y[j, k].T).amax(0))

    def bounded(nearest: Tensor) -> Tensor:
        logit = s * nearest.mean()
        return logit if clip_logits is None else logit.clamp(-clip_logits, clip_logits)

    result, count = torch.zeros((), dtype=features.image.dtype), 0
    for k in range(batch.text.shape[1]):
        real = [i for i in range(len(batch)) if (i, k) in y]
        count += len(real)
        for i in real:
            rows = torch.stack([by_image(i, j, k) for j in real]).log_softmax(0)
            columns = torch.stack([by_text(j, i, k) for j in real]).log_softmax(0)
            same = [i == j if positives == "own" else bool(batch.label[i] == batch.label[j]) for j in real]
            positive = torch.tensor(same).double()
            target = (1 - label_smoothing) * positive / positive.sum() + label_smoothing / len(real)
            result = result - (target * (rows + columns)).sum() / 2
    return result / max(1, count)


def _chosen(features: Features, batch: Batch, image: str, image_keep: float, text_keep: float, group: int) -> Any:
    """Tokens of valid images by slot, of real captions by slot and caption, in each as many as are kept."""
    patches = leaves(features)[image]
    x = {i: patches[i] for i in range(len(batch)) if batch.valid[i]}
    y = {
        (i, k): features.text_tokens[i, k][batch.token_mask[i, k, : features.text_tokens.shape[2]]]  # type: ignore[index]
        for i in x
        for k in range(batch.text.shape[1])
        if batch.caption_mask[i, k]
    }
    kept_x, kept_y = {}, {}
    for i in x:
        words = [row for (j, _), rows in y.items() if j // group == i // group for row in rows]
        kept_x[i] = x[i][_nearest(x[i], words, image_keep)]
    for (i, k), rows in y.items():
        others = [row for j, found in x.items() if j // group == i // group for row in found]
        kept_y[i, k] = rows[_nearest(rows, others, text_keep)]
    return kept_x, kept_y


def _nearest(tokens: Tensor, others: list[Tensor], share: float) -> list[int]:
    scores = [max((float(token.detach() @ other.detach()) for other in others), default=-math.inf) for token in tokens]
    order = sorted(range(len(scores)), key=lambda p: (-scores[p], p))
    return order[: math.ceil(round(share * len(scores), 6))]
