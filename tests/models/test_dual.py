"""The one forward: captions in length groups, absent captions, tokens, heads, needs."""

from __future__ import annotations

import itertools
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vlp import dist
from vlp.models.dual import Dual
from vlp.models.groups import plan
from vlp.types import Batch

from .tiny import NANO, make_batch, make_dual


def one_by_one(dual: Dual, batch: Batch) -> Tensor:
    """Every caption alone and uncut, through the public call."""
    B, K, _ = batch.text.shape
    rows = []
    for b, k in itertools.product(range(B), range(K)):
        text = dual.encode_text(batch.text[b, k][None])[0]
        rows.append(text if batch.caption_mask[b, k] else torch.zeros_like(text))
    return torch.stack(rows).reshape(B, K, -1)


@pytest.mark.parametrize("groups", [1, 2, 4, 64])
def test_features_do_not_depend_on_the_groups(groups: int) -> None:
    dual, batch = make_dual(text_groups=groups), make_batch()
    features = dual(batch)
    torch.testing.assert_close(features.text, one_by_one(dual, batch), atol=1e-6, rtol=0)
    torch.testing.assert_close(features.image, dual.encode_image(batch.image), atol=1e-6, rtol=0)
    assert features.image_tokens is None
    assert features.text_tokens is None
    assert features.scale.shape == (1,)
    assert features.scale.item() == pytest.approx(1 / 0.07)


def test_gradients_do_not_depend_on_the_groups() -> None:
    batch = make_batch()
    weight = torch.randn(4, 2, 32)
    grads = []
    for groups in (1, 4):
        dual = make_dual(text_groups=groups)
        (dual(batch).text * weight).sum().backward()
        grads.append({n: p.grad for n, p in dual.named_parameters() if p.grad is not None})
    reference = make_dual()
    (one_by_one(reference, batch) * weight).sum().backward()
    expected = {n: p.grad for n, p in reference.named_parameters() if p.grad is not None}
    for got in grads:
        assert got.keys() == expected.keys()
        for name, grad in got.items():
            torch.testing.assert_close(grad, expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_a_tower_that_sees_padding_gets_its_full_context() -> None:
    config = NANO | {"custom_text": True, "text_cfg": NANO["text_cfg"] | {"no_causal_mask": True, "pool_type": "last"}}
    dual, batch = make_dual(config), make_batch()
    expected = dual(batch).text
    cut = int(batch.token_mask.sum(dim=-1).max())
    assert cut < 12
    short = replace(batch, text=batch.text[..., :cut], token_mask=batch.token_mask[..., :cut])
    torch.testing.assert_close(dual(short).text, expected, atol=1e-6, rtol=0)


def test_a_batch_without_captions_still_reaches_every_text_parameter() -> None:
    dual, batch = make_dual(), make_batch()
    dual.set_needs({"text_tokens", "image_tokens"})
    features = dual(replace(batch, caption_mask=torch.zeros(4, 2, dtype=torch.bool)))
    assert features.text.shape == (4, 2, 32)
    assert features.text_tokens.shape == (4, 2, 12, 32)
    assert not features.text.any()
    (features.text.sum() + features.image.sum()).backward()
    missing = [n for n, p in dual.named_parameters() if p.grad is None and n not in ("logit_scale",)]
    assert not missing
    assert all(not p.grad.any() for n, p in dual.named_parameters() if n.startswith("text.") and p.grad is not None)


@pytest.mark.parametrize("groups", [1, 4])
def test_tokens_lie_where_the_batch_has_them(groups: int) -> None:
    dual, batch = make_dual(text_groups=groups), make_batch()
    plain = dual(batch)
    dual.set_needs({"text_tokens", "image_tokens"})
    features = dual(batch)
    torch.testing.assert_close(features.text, plain.text, atol=1e-6, rtol=0)
    torch.testing.assert_close(features.image, plain.image, atol=1e-6, rtol=0)
    for b, k in itertools.product(range(4), range(2)):
        tokens, here = features.text_tokens[b, k], batch.token_mask[b, k] & batch.caption_mask[b, k]
        assert (tokens[~here] == 0).all()
        if here.any():
            _, expected, _ = dual.encode_text_tokens(batch.text[b, k][None], batch.token_mask[b, k][None])
            torch.testing.assert_close(tokens, expected[0], atol=1e-6, rtol=0)
    _, patches = dual.encode_image_tokens(batch.image)
    torch.testing.assert_close(features.image_tokens, patches, atol=1e-6, rtol=0)


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(32, 5)

    def forward(self, batch: Batch, towers: Any) -> dict[str, Tensor]:
        assert towers.image_hidden.shape == (4, 16, 32)
        assert towers.text_hidden.shape == (4, 2, 12, 32)
        return {"mean": self.map(towers.image_hidden.mean(dim=1)), "width": towers.dual.logit_scale}


def test_heads_run_inside_the_forward() -> None:
    dual, batch = make_dual(), make_batch()
    dual.heads["mean"] = Mean()
    dual.set_needs({"image_hidden", "text_hidden"})
    features = dual(batch)
    assert features.extra["mean"].shape == (4, 5)
    assert features.image_tokens is None
    assert features.text_tokens is None
    features.extra["mean"].sum().backward()
    assert dual.heads["mean"].map.weight.grad is not None


def test_needs() -> None:
    dual = make_dual()
    with pytest.raises(ValueError, match='did you mean "image_tokens"'):
        dual.set_needs({"image_token"})
    with pytest.raises(ValueError, match=r"model\.init_bias"):
        dual.set_needs({"bias"})
    biased = make_dual(init_bias=-10.0)
    biased.set_needs({"bias"})
    assert biased(make_batch()).bias.item() == -10
    assert biased.logit_bias is not None
    assert biased.logit_bias.requires_grad
    biased.set_needs(())
    assert not biased.logit_bias.requires_grad


def test_the_scale_stays_between_1_and_100() -> None:
    dual = make_dual()
    for start, end in ((9.0, 100.0), (-1.0, 1.0), (2.0, torch.e**2)):
        dual.logit_scale.data.fill_(start)
        dual.clamp_scale()
        assert dual.logit_scale.exp().item() == pytest.approx(end)


def test_a_copy_is_independent() -> None:
    dual, batch = make_dual(), make_batch()
    before = dual(batch).text
    again = pickle.loads(pickle.dumps(dual))
    with torch.no_grad():
        for p in dual.parameters():
            p.zero_()
    torch.testing.assert_close(again(batch).text, before)


def brute_force(lengths: list[int], groups: int) -> int:
    lengths = sorted(length for length in lengths if length)
    best = len(lengths) * max(lengths)
    for count in range(1, groups):
        for cuts in itertools.combinations(range(1, len(lengths)), count):
            edges = [0, *cuts, len(lengths)]
            best = min(best, sum((b - a) * lengths[b - 1] for a, b in itertools.pairwise(edges)))
    return best


@pytest.mark.parametrize("groups", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_the_plan_has_the_fewest_positions(groups: int, seed: int) -> None:
    lengths = torch.randint(0, 20, (11,), generator=torch.Generator().manual_seed(seed)).tolist()
    made = plan(lengths, groups)
    assert len(made) == groups
    assert sorted(row for group in made for row in group.rows) == [i for i, n in enumerate(lengths) if n]
    assert all(max(lengths[row] for row in group.rows) == group.length for group in made if group.rows)
    assert sum(len(group.rows) * group.length for group in made) == brute_force(lengths, groups)


def test_every_rank_calls_the_tower_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "world", lambda: 2)
    dual, batch = make_dual(), make_batch()
    calls = []
    run = dual.text_tower.run
    dual.text_tower.run = lambda *a, **k: calls.append(1) or run(*a, **k)  # type: ignore[method-assign]
    for captions in (batch.caption_mask, torch.zeros_like(batch.caption_mask), torch.eye(4, 2, dtype=torch.bool)):
        calls.clear()
        dual(replace(batch, caption_mask=captions))
        assert len(calls) == 4


def test_pictures_of_whole_numbers_that_are_no_bytes_are_refused(dual: Dual) -> None:
    image = make_batch().image
    with pytest.raises(TypeError, match=r"uint8, or floats that are normalised already, not torch\.int64"):
        dual.encode_image(image.long())
