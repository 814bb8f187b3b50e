"""The masked autoencoder against pictures run one at a time."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.losses.compare import awkward
from tests.losses.heads import (
    assert_gradcache_exact,
    assert_learns,
    assert_sound,
    drawn,
    headed,
    real_batch,
    with_extra,
)
from tests.models.tiny import NANO
from vlp.losses import LOSSES
from vlp.losses.masked_image import MaskedImage, normalised, patch_pixels

SMALL = {"width": 32, "layers": 1}
MEAN_POOLED = copy.deepcopy(NANO)
MEAN_POOLED["vision_cfg"] |= {"pool_type": "avg", "final_ln_after_pool": True}
CONVOLUTIONS = copy.deepcopy(NANO)
CONVOLUTIONS["vision_cfg"] = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "patch_size": None}


@pytest.fixture
def batch():
    return real_batch(views=0, momentum=False)


def _one_at_a_time(model, batch):
    head, v = model.heads["mae"], model.visual
    order = torch.rand(len(batch), 16).argsort(dim=1)
    found = []
    for picture, places in zip(model.pixels(batch.image), order.tolist(), strict=True):
        away, kept = places[: head.hidden], places[head.hidden :]
        x = model.image_tower.embed(picture[None])
        x = torch.cat([x[:, :1]] + [x[:, 1 + p : 2 + p] for p in kept], 1)
        for block in model.image_blocks:
            x = block(x)
        seen = head.enter(v.ln_post(x))[0, 1:]
        rows = [seen[kept.index(p)] if p in kept else head.mask for p in range(16)]
        drawn_patches = head.draw(head.decoder((torch.stack(rows) + head.position)[None]))[0]
        errors = []
        for p in away:
            top, left = 8 * (p // 4), 8 * (p % 4)
            target = picture[:, top : top + 8, left : left + 8].reshape(-1)
            target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            errors.append(((drawn_patches[p] - target) ** 2).mean())
        found.append(sum(errors) / len(errors))
    return torch.stack(found)


@pytest.mark.parametrize("config", [NANO, MEAN_POOLED])
@pytest.mark.parametrize("share", [0.75, 0.5])
def test_equals_pictures_one_at_a_time(batch, config, share):
    loss = LOSSES.build({"name": "mae", "share": share, **SMALL})
    model = headed([loss], config)
    torch.manual_seed(5)
    features = model(batch)
    torch.manual_seed(5)
    expected = _one_at_a_time(model, batch)
    torch.testing.assert_close(features.extra["mae/error"], expected, atol=1e-9, rtol=1e-9)
    kept = expected[batch.valid].mean()
    torch.testing.assert_close(loss(features, batch)["mae"], kept, atol=1e-9, rtol=1e-9)


def test_is_sound(make_batch, make_features, spawn):
    features, batch = awkward(make_batch, make_features)
    assert_sound(MaskedImage(), with_extra(features, mae_error=drawn(8, seed=1).abs()), batch, spawn)


@pytest.mark.parametrize("config", [NANO, MEAN_POOLED])
def test_with_a_real_model(batch, config):
    assert_gradcache_exact([MaskedImage(**SMALL)], batch, config=config)
    assert_learns([MaskedImage(**SMALL)], batch, config=config, least=0.02)


def test_the_features_of_the_run_are_not_touched(batch):
    model, plain = headed([MaskedImage(**SMALL)]), headed([])
    torch.testing.assert_close(model(batch).image, plain(batch).image, atol=1e-12, rtol=0)
    assert not model.visual.ln_pre._forward_pre_hooks


def test_recomputed_blocks_give_the_same(batch):
    loss, found = MaskedImage(**SMALL), []
    for again in (False, True):
        model = headed([loss])
        if again:
            model.image_tower.checkpoint_blocks()
        torch.manual_seed(1)
        term = loss(model(batch), batch)["mae"]
        found.append([term, torch.autograd.grad(term, model.visual.conv1.weight)[0]])
    torch.testing.assert_close(found[0], found[1], atol=1e-12, rtol=1e-12)


def test_a_patch_is_cut_as_the_tower_cuts_it(batch):
    """The tower's convolution is a product with the patch's numbers, in this order."""
    model = headed([])
    pixels, conv = model.pixels(batch.image), model.visual.conv1
    expected = conv(pixels).flatten(2).transpose(1, 2)
    found = patch_pixels(pixels, conv.kernel_size) @ conv.weight.flatten(1).T
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_a_patch_of_one_colour_has_a_finite_target():
    assert (normalised(torch.full((1, 1, 12), 3.0)) == 0).all()


def test_other_towers_are_refused():
    with pytest.raises(ValueError, match=r"mae masks the patches of an open_clip ViT.*ModifiedResNet"):
        headed([MaskedImage()], CONVOLUTIONS)
    dropping = copy.deepcopy(NANO)
    dropping["vision_cfg"]["patch_dropout"] = 0.5
    with pytest.raises(ValueError, match="patch dropout off"):
        headed([MaskedImage()], dropping)
    pooling = copy.deepcopy(NANO)
    pooling["vision_cfg"] |= {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4}
    with pytest.raises(ValueError, match="attentional pooling"):
        headed([MaskedImage()], pooling)
