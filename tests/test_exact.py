"""The real model, not a toy: DDP and GradCache give the loss and the gradient of one process and one whole batch."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.parallel import DistributedDataParallel

from tests.losses.compare import assert_equal
from vlp import gradcache
from vlp.losses.infonce import InfoNCE
from vlp.losses.objective import Objective
from vlp.losses.sigmoid import Sigmoid
from vlp.models.dual import Dual
from vlp.models.find import find
from vlp.models.freeze import lock
from vlp.models.model import Model
from vlp.types import Batch, Features

VOCAB = 500
OBJECTIVE = Objective([InfoNCE(label_smoothing=0.1, block=2), Sigmoid(weight=0.5)])
SETTINGS: dict[str, dict[str, Any]] = {
    "all of it": {"init_bias": -5.0},
    "locked image": {"init_bias": -5.0, "lock_image": True},
    "locked text": {"init_bias": -5.0, "lock_text": True},
    "recomputed blocks": {"init_bias": -5.0, "grad_checkpointing": True},
}
TEXT: dict[str, dict[str, Any]] = {
    "causal": {},
    "sees its padding": {"no_causal_mask": True, "pool_type": "last"},
    "class token": {"embed_cls": True},
}


@pytest.fixture(scope="module")
def archs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of vlp-nano with a small vocabulary (its gradient is most of what ranks exchange), by kind of text."""
    folder = tmp_path_factory.mktemp("archs")
    for kind, change in TEXT.items():
        config = copy.deepcopy(find("vlp-nano").config)
        config["text_cfg"].update(change, vocab_size=VOCAB)
        (folder / f"{kind}.json").write_text(json.dumps({**config, "custom_text": True}))
    return {kind: str(folder / f"{kind}.json") for kind in TEXT}


def build(arch: str, settings: dict[str, Any]) -> Dual:
    """The model in fp64, with the same random weights at every call, also in a locked tower."""
    torch.manual_seed(7)
    locked = settings.get("lock_image", False)
    dual = Model(arch=arch, **settings | {"lock_image": False}).build(needs=OBJECTIVE.needs)
    lock(dual, image=locked, text=settings.get("lock_text", False))
    return dual.double().train()


def gradients(dual: Dual) -> dict[str, Tensor]:
    """The gradient of every parameter that is trained; each must have one, and no other."""
    missing = [name for name, p in dual.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, f"no gradient: {missing}"
    stray = [name for name, p in dual.named_parameters() if not p.requires_grad and p.grad is not None]
    assert not stray, f"gradient of something locked: {stray}"
    return {name: p.grad.clone() for name, p in dual.named_parameters() if p.grad is not None}


def found(value: Objective.Value, dual: Dual) -> dict[str, Tensor]:
    return {"total": value.total.detach(), **value.terms, **gradients(dual)}


def halves(make_batch: Callable[..., Batch], kind: str) -> list[Batch]:
    """What two ranks get: labels that repeat across them, invalid slots, absent captions, another T on each."""
    if kind == "everywhere":
        masks = [[[1, 1], [1, 0], [1, 1], [0, 1]], [[1, 1], [0, 1], [1, 1], [1, 0]]]
        valid = [[True, True, False, True], [True, True, True, False]]
    elif kind == "none on one":
        masks = [[[1, 1], [1, 0], [1, 1], [0, 1]], [[0, 0]] * 4]
        valid = [[True, True, False, True], [False] * 4]
    else:  # readable pictures without a caption: they must leave the loss like the others
        masks = [[[0, 0]] * 4, [[1, 1], [0, 1], [1, 1], [1, 0]]]
        valid = [[True] * 4, [True, True, True, False]]
    labels = [[1, 2, 1, 9], [2, 1, 3, 1]]
    return [
        make_batch(
            4, captions=2, tokens=(8, 24)[rank], vocab=VOCAB, seed=rank, label=labels[rank], valid=valid[rank],
            caption_mask=[[bool(x) for x in row] for row in masks[rank]],
        )
        for rank in (0, 1)
    ]  # fmt: skip


def joined(parts: Sequence[Batch]) -> Batch:
    """The ranks' batches as one, as wide as the widest."""
    longest = max(part.text.shape[2] for part in parts)

    def cat(name: str) -> Tensor:
        tensors = [getattr(part, name) for part in parts]
        if name in ("text", "token_mask"):
            tensors = [pad(tensor, (0, longest - tensor.shape[2])) for tensor in tensors]
        return torch.cat(tensors)

    tensors = [f.name for f in dataclasses.fields(Batch) if isinstance(getattr(parts[0], f.name), Tensor)]
    return dataclasses.replace(parts[0], **{name: cat(name) for name in tensors}, keys=sum((p.keys for p in parts), ()))


def wrapped(dual: Dual) -> DistributedDataParallel:
    """As the trainer has it wrapped."""
    return DistributedDataParallel(dual, broadcast_buffers=False, gradient_as_bucket_view=True)


def one_rank(rank: int, world: int, parts: list[Batch], cases: list[tuple[Any, ...]]) -> list[dict[str, Tensor]]:
    """Run by `spawn`: for each (arch, settings, micro) two steps; what the second gives."""
    results = []
    for arch, settings, micro in cases:
        dual = build(arch, settings)
        model = wrapped(dual)
        for _ in range(2):  # in the second DDP has sorted its buckets anew
            dual.zero_grad(set_to_none=True)
            if micro is None:
                value = whole(model, parts[rank])
            else:
                value = gradcache.step(
                    model, OBJECTIVE, parts[rank], micro=micro, reseed=torch.manual_seed, no_sync=model.no_sync
                )
        results.append(found(value, dual))
    return results


def whole(model: nn.Module, batch: Batch) -> Objective.Value:
    value = OBJECTIVE(model(batch), batch)
    value.total.backward()
    return value


def alone(batch: Batch, arch: str, settings: dict[str, Any]) -> dict[str, Tensor]:
    dual = build(arch, settings)
    return found(whole(dual, batch), dual)


@pytest.mark.parametrize(
    "kind",
    [
        "everywhere",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("none on one", "pictures without captions")),
    ],
)
def test_two_processes_equal_one(spawn: Any, make_batch: Any, archs: dict[str, str], kind: str) -> None:
    parts = halves(make_batch, kind)
    assert parts[0].text.shape[2] != parts[1].text.shape[2]
    cases = [(archs["causal"], settings, None) for settings in SETTINGS.values()]
    cases += [(arch, SETTINGS["all of it"], None) for arch in list(archs.values())[1:]]
    cases += [(archs["causal"], SETTINGS["all of it"], 1), (archs["causal"], SETTINGS["locked image"], 3)]
    ranks = spawn(one_rank, 2, parts, cases)
    for case, *results in zip(cases, *ranks, strict=True):
        expected = alone(joined(parts), *case[:2])
        for name in ("total", "infonce", "sigmoid"):
            mean = torch.stack([result.pop(name) for result in results]).mean(0)
            torch.testing.assert_close(mean, expected.pop(name), atol=1e-10, rtol=1e-10)
        for result in results:
            assert_equal(result, expected, atol=1e-10)


def test_these_batches_want_every_parameter(make_batch: Any, archs: dict[str, str]) -> None:
    """Or the test above would compare zeros."""
    batch = joined(halves(make_batch, "everywhere"))
    grads = alone(batch, archs["causal"], SETTINGS["all of it"])
    assert not [name for name, grad in grads.items() if float(grad.abs().max()) == 0]
    assert "logit_bias" in grads
    assert "visual.conv1.weight" not in alone(batch, archs["causal"], SETTINGS["locked image"])


@pytest.mark.parametrize("micro", [1, 3, 5])
@pytest.mark.parametrize("text", TEXT)
def test_gradcache_equals_the_whole_batch(make_batch: Any, archs: dict[str, str], micro: int, text: str) -> None:
    batch = joined(halves(make_batch, "everywhere"))
    dual = build(archs[text], SETTINGS["all of it"])
    value = gradcache.step(dual, OBJECTIVE, batch, micro=micro, reseed=torch.manual_seed)
    assert_equal(found(value, dual), alone(batch, archs[text], SETTINGS["all of it"]), atol=1e-10)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradcache_with_patch_dropout_equals_the_whole_batch(
    make_batch: Any, archs: dict[str, str], checkpointing: bool
) -> None:
    settings = {**SETTINGS["all of it"], "patch_dropout": 0.5, "grad_checkpointing": checkpointing}
    batch = joined(halves(make_batch, "everywhere"))
    cached, direct, other = (build(archs["causal"], settings) for _ in range(3))
    value = gradcache.step(cached, OBJECTIVE, batch, micro=3, reseed=_reseed)
    result = found(value, cached)
    assert_equal(result, found(_by_hand(direct, batch, 3), direct), atol=1e-10)
    gradcache.step(other, OBJECTIVE, batch, micro=3, reseed=lambda i: _reseed(i + 50))
    assert (gradients(other)["visual.conv1.weight"] - result["visual.conv1.weight"]).abs().max() > 1e-6


def _reseed(i: int) -> None:
    torch.manual_seed(100 + i)


def _by_hand(dual: Dual, batch: Batch, micro: int) -> Objective.Value:
    """Features of all micro-batches with their graphs, and one backward through all of them."""
    parts: list[Features] = []
    for i, start in enumerate(range(0, len(batch), micro)):
        _reseed(i)
        parts.append(dual(batch.rows(start, min(start + micro, len(batch)))))
    features = parts[0]._replace(
        image=torch.cat([part.image for part in parts]), text=torch.cat([part.text for part in parts])
    )
    value = OBJECTIVE(features, batch)
    value.total.backward()
    return value
