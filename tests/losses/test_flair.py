"""FLAIR against loops, SigLIP, torch's attention, and itself in two processes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from tests.losses.compare import assert_equal, awkward
from tests.losses.extra import gradients, merged, one_rank, summed
from tests.models import tiny
from vlp import gradcache
from vlp.losses import LOSSES
from vlp.losses.flair import Flair, TextConditionedPooling, drawn
from vlp.losses.objective import Objective
from vlp.losses.sigmoid import Sigmoid

ROWS = ("image", "text", "flair/keys", "flair/values", "flair/queries")


def _with_head(features, *, patches=5, heads=2, seed=1):
    rng = torch.Generator().manual_seed(seed)
    (B, K, D), d = features.text.shape, features.text.shape[-1] // heads

    def made(*shape):
        drawn = torch.randn(*shape, generator=rng, dtype=torch.float64)
        return drawn.to(features.image.dtype).requires_grad_()

    extra = {
        "flair/keys": made(B, patches, heads, d),
        "flair/values": made(B, patches, heads, d),
        "flair/queries": made(B, K, heads, d),
        "flair/projection": made(D, D),
        "flair/offset": made(D),
        "flair/draw": torch.randint(1 << 31, (B,), generator=rng),
    }
    return features._replace(extra=extra)


def _pooled_by_loops(query, keys, values, projection, offset):
    """query [H, d], keys and values [P, H, d]."""
    seen = []
    for h in range(len(query)):
        weights = [(query[h] @ key[h] / math.sqrt(len(query[h]))).exp() for key in keys]
        seen.append(sum(w * v[h] for w, v in zip(weights, values, strict=True)) / (1 + sum(weights)))
    v = projection @ torch.cat(seen) + offset
    return v / (v @ v).sqrt()


def _by_loops(batch):
    def fn(features):
        x, s, b = features.extra, features.scale[0], features.bias[0]
        B, K = batch.caption_mask.shape
        captions = {
            i: [k for k in range(K) if batch.caption_mask[i, k]]
            for i in range(B)
            if batch.valid[i] and batch.caption_mask[i].any()
        }
        chosen = {i: ks[int(x["flair/draw"][i]) % len(ks)] for i, ks in captions.items()}
        result = 0
        for i, own in captions.items():
            texts = [(i, k) for k in own] + [(j, chosen[j]) for j in captions if j != i]
            for j, k in texts:
                v = _pooled_by_loops(
                    x["flair/queries"][j, k], x["flair/keys"][i], x["flair/values"][i], x["flair/projection"],
                    x["flair/offset"],
                )  # fmt: skip
                q = 1 if batch.label[i] == batch.label[j] else -1
                result = result + (1 + (-q * (s * (v @ features.text[j, k]) + b)).exp()).log() / len(texts) / 2
        total = sum(len(ks) for ks in captions.values())
        for i in captions:
            for j, ks in captions.items():
                for k in ks:
                    q = 1 if batch.label[i] == batch.label[j] else -1
                    z = s * (features.image[i] @ features.text[j, k]) + b
                    result = result + (1 + (-q * z).exp()).log() / total / 2
        return result

    return fn


@pytest.mark.parametrize("how", [{"impl": "reference"}, {"block": 3}, {"block": 1}, {}])
def test_equals_loops(make_batch, make_features, how):
    features, batch = awkward(make_batch, make_features)
    features = _with_head(features)
    found = gradients(summed(Flair(**how), batch), features)
    assert_equal(found, gradients(_by_loops(batch), features), atol=1e-11)


def test_pooling_that_ignores_the_query_is_siglip(make_batch, make_features):
    """One caption a picture and the same attention for all: each term is SigLIP, on its own picture features."""
    features, batch = _with_head(make_features(5, bias=-2.0)), make_batch(5, label=[1, 2, 3, 2, 4])
    features.extra["flair/keys"].data.zero_()
    terms = Flair()(features, batch)
    assert 2 * terms["global"].item() == pytest.approx(summed(Sigmoid(), batch)(features).item(), abs=1e-12)
    mean = features.extra["flair/values"].sum(1).flatten(1) / 6  # five patches and nothing
    pooled = normalize(mean @ features.extra["flair/projection"].T + features.extra["flair/offset"], dim=-1)
    expected = summed(Sigmoid(), batch)(features._replace(image=pooled)).item()
    assert 2 * terms["conditioned"].item() == pytest.approx(expected, abs=1e-12)


def test_logits_of_zero_give_ln_2_a_text(make_batch, make_features):
    features = _with_head(make_features(4, captions=3, bias=0.0, scale=0.0))
    terms = Flair()(features, make_batch(4, captions=3))
    assert 2 * terms["conditioned"].item() == pytest.approx(4 * math.log(2), abs=1e-12)
    assert 2 * terms["global"].item() == pytest.approx(4 * math.log(2), abs=1e-12)


def test_the_caption_drawn_is_a_real_one_and_each_is_drawn():
    real = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]]).bool()
    found = {tuple(drawn(real, torch.tensor([n, n, n])).tolist()) for n in range(9)}
    assert found == {(0, 1, 0), (2, 1, 0), (3, 1, 0)}


@pytest.mark.parametrize("garbage", [7.0, math.nan, math.inf])
def test_empty_slots_leave_exactly(make_batch, make_features, garbage):
    kept = _with_head(make_features(4, captions=2, bias=-1.0))
    mask = [[True, True], [True, False], [True, True], [False, True]]
    expected = gradients(summed(Flair(), make_batch(4, captions=2, caption_mask=mask)), kept)
    places = [0, 2, 3, 6]

    def wide(x, fill):
        out = torch.full((7, *x.shape[1:]), fill, dtype=x.dtype)
        out[places] = x.detach()
        return out

    extra = dict(kept.extra)
    for name in ROWS[2:]:
        extra[name] = wide(kept.extra[name], garbage)
    extra["flair/draw"] = wide(kept.extra["flair/draw"], 5)
    text = wide(kept.text, garbage)
    for rows in (text, extra["flair/queries"]):
        rows[2, 1] = rows[6, 0] = garbage  # absent captions
    extra = {name: x.requires_grad_() if name in ROWS else x for name, x in extra.items()}
    features = kept._replace(image=wide(kept.image, garbage).requires_grad_(), text=text.requires_grad_(), extra=extra)
    captions = [mask[places.index(i)] if i in places else [True, True] for i in range(7)]
    valid = [i in places for i in range(7)]
    batch = make_batch(7, captions=2, label=[1, 2, 3, 4, 4, 1, 5], valid=valid, caption_mask=captions)
    found = gradients(summed(Flair(block=2), batch), features)
    for name in ROWS:
        assert found[name][[1, 4, 5]].abs().max() == 0
        found[name] = found[name][places]
    assert_equal(found, expected)


def test_a_picture_without_captions_leaves(make_batch, make_features):
    features = _with_head(make_features(3, captions=2, bias=-1.0))
    mask = [[True, True], [False, False], [True, False]]
    batch = make_batch(3, captions=2, caption_mask=mask)
    gone = make_batch(3, captions=2, caption_mask=mask, valid=[True, False, True])
    assert summed(Flair(), batch)(features).item() == summed(Flair(), gone)(features).item()


def test_nothing_valid_is_zero_with_zero_gradient(make_batch, make_features):
    found = gradients(summed(Flair(), make_batch(3, valid=[False] * 3)), _with_head(make_features(3, bias=-2.0)))
    assert all((x == 0).all() for x in found.values())


def test_processes_equal_one(spawn, make_batch, make_features):
    features, batch = awkward(make_batch, make_features)
    features = _with_head(features)
    lonely = make_batch(8, captions=2, label=[1, 2, 1, 2, 3, 4, 5, 6], valid=[True] * 4 + [False] * 4)
    for given in (batch, lonely):
        ranks = spawn(one_rank, 2, [Flair(block=2)], features, given)
        expected = gradients(summed(Flair(), given), features)
        assert_equal(merged([rank[0] for rank in ranks], Flair.batchless), expected)
    assert ranks[1][0]["value"].item() == 0


def test_finite_under_autocast_at_scale_100(make_batch, make_features):
    features = make_features(6, captions=2, width=32, scale=100.0, bias=-10.0, dtype=torch.float32)
    features = _with_head(features)
    half = {name: x.detach().bfloat16().requires_grad_() if name in ROWS else x for name, x in features.extra.items()}
    with torch.autocast("cpu", torch.bfloat16):
        for given in (features, features._replace(extra=half)):
            found = gradients(summed(Flair(), make_batch(6, captions=2)), given)
            assert all(x.isfinite().all() for x in found.values())
            assert found["value"].dtype is torch.float32


# ---- the head


def test_the_layer_is_torchs_attention():
    torch.manual_seed(0)
    ours = TextConditionedPooling(8, num_heads=2)
    theirs = nn.MultiheadAttention(8, 2, add_zero_attn=True, batch_first=True)
    for layer in (ours.query, ours.key, ours.value, ours.out):
        nn.init.normal_(layer.bias)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    tokens, text = normalize(torch.randn(3, 5, 8), dim=-1), normalize(torch.randn(4, 8), dim=-1)
    norm = nn.LayerNorm(8)
    expected, _ = theirs(norm(text).expand(3, -1, -1), norm(tokens), norm(tokens))
    found = ours.condition(tokens, text)
    torch.testing.assert_close(found, normalize(expected, dim=-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.condition(tokens, text.expand(3, -1, -1)), found)
    assert not torch.allclose(found[:, 0], found[:, 1])


def test_heads_must_fit_the_width():
    with pytest.raises(ValueError, match="num_heads 5 does not divide the joint width 8"):
        TextConditionedPooling(8, num_heads=5)


OBJECTIVE = Objective([Flair(num_heads=4)])


def _model():
    dual = tiny.make_dual(seed=0, init_bias=-2.0)
    torch.manual_seed(1)
    dual.heads.update(OBJECTIVE.heads(dual))
    dual.set_needs(OBJECTIVE.needs)
    return dual.double()


def _grads(dual):
    return {name: p.grad.clone() for name, p in dual.named_parameters()}


def _batch():
    torch.manual_seed(3)
    return tiny.make_batch(4, 3)


def _reseed(i):
    torch.manual_seed(10 + i)


def _whole(dual, batch):
    """One backward through two micro-batches put together by hand, with the draws that each of them makes."""
    parts = []
    for i in range(2):
        _reseed(i)
        parts.append(dual(batch.rows(2 * i, 2 * i + 2)))
    joined = {name: torch.cat([part.extra[name] for part in parts]) for name in parts[0].extra}
    joined |= {name: parts[0].extra[name] for name in Flair.batchless}
    image, text = (torch.cat([getattr(part, name) for part in parts]) for name in ("image", "text"))
    value = OBJECTIVE(parts[0]._replace(image=image, text=text, image_tokens=None, extra=joined), batch)
    value.total.backward()
    return value


def _on_one_rank(rank, world, batch):
    dual = _model()
    parallel, part = DistributedDataParallel(dual), batch.rows(rank * 2, rank * 2 + 2)
    _reseed(rank)
    OBJECTIVE(parallel(part), part).total.backward()
    return _grads(dual)


def test_with_a_model_gradcache_and_ddp_equal_one_backward(spawn):
    batch, direct, cached = _batch(), _model(), _model()
    value = _whole(direct, batch)
    found = gradcache.step(cached, OBJECTIVE, batch, micro=2, reseed=_reseed)
    torch.testing.assert_close(found.total, value.total.detach(), atol=1e-10, rtol=0)
    assert_equal(_grads(cached), _grads(direct), atol=1e-10)
    for rank in spawn(_on_one_rank, 2, batch):
        assert_equal(rank, _grads(direct), atol=1e-10)


def test_a_few_steps_lower_the_terms_and_the_head_pools_as_the_loss_did():
    dual, batch = _model(), _batch()
    optimizer = torch.optim.AdamW(dual.parameters(), lr=3e-3)
    terms = []
    for _ in range(12):
        value = OBJECTIVE(dual(batch), batch)
        optimizer.zero_grad()
        value.total.backward()
        optimizer.step()
        terms.append(value.terms)
    for name in ("flair/conditioned", "flair/global"):
        assert terms[-1][name] < 0.9 * terms[0][name]
    features = dual(batch)
    pooled = dual.heads["flair"].condition(features.image_tokens, features.text)
    assert pooled.shape == features.text.shape
    torch.testing.assert_close(pooled.norm(dim=-1), torch.ones(4, 3, dtype=torch.float64))


def test_settings_and_what_is_missing(make_batch, make_features):
    assert LOSSES.build({"name": "flair", "num_heads": 4}).name == "flair"
    with pytest.raises(ValueError, match=r"features\.bias"):
        Flair()(_with_head(make_features(2)), make_batch(2))
    with pytest.raises(ValueError, match="its heads"):
        Flair()(make_features(2, bias=-1.0), make_batch(2))
