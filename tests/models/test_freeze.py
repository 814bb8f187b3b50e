"""Locked towers, held modules, patch dropout, recomputed blocks."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import nn

from vlp.models.dual import Dual
from vlp.models.freeze import image_groups, lock, text_groups
from vlp.models.model import Model

from .tiny import NANO, make_batch, make_dual

RESNET = copy.deepcopy(NANO)
RESNET["vision_cfg"] = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32, "patch_size": None}
TIMM = {
    **copy.deepcopy(NANO),
    "custom_text": True,
    "vision_cfg": {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 32},
}


def trained(dual: Dual, side: str) -> set[str]:
    return {name for name, p in dual.tower_parameters(side) if p.requires_grad}


@pytest.mark.parametrize("config", [NANO, RESNET, TIMM], ids=["vit", "resnet", "timm"])
def test_groups_hold_every_parameter_once(config: Any) -> None:
    dual = make_dual(config)
    for module, groups in ((dual.visual, image_groups(dual.visual)), (dual.text, text_groups(dual.text))):
        everything = sorted(name for name, _ in module.named_parameters())
        found = []
        for unlocked in range(len(groups) + 1):
            lock(
                dual,
                image=unlocked if module is dual.visual else False,
                text=unlocked if module is dual.text else False,
            )
            found.append({name for name, p in module.named_parameters() if p.requires_grad})
            module.requires_grad_(True)
        assert found[0] == set()
        assert all(smaller < larger for smaller, larger in itertools.pairwise(found))
        assert sorted(found[-1]) == everything


@pytest.mark.parametrize("lock_image", [True, 0])
def test_a_whole_tower_that_starts_at_random_is_not_locked(lock_image: Any) -> None:
    with pytest.raises(ValueError, match="starts at random: set pretrained"):
        Model(arch="vlp-nano", lock_image=lock_image)
    assert Model(arch="vlp-nano", pretrained="runs/out/clip", lock_image=lock_image).lock_image is lock_image
    assert not any(p.requires_grad for p in Model(arch="vlp-nano", lock_text=True).build().text.parameters())
    assert Model(arch="vlp-nano", lock_image=1).lock_image == 1


def test_partial_unlocking_follows_the_tower(dual: Dual) -> None:
    lock(dual, image=1, text=2)
    assert trained(dual, "image") == {"visual.proj"}
    assert trained(dual, "text") >= {
        "text.text_projection",
        "text.ln_final.weight",
        "text.transformer.resblocks.2.ln_1.bias",
    }
    assert not any(".resblocks.1." in name for name in trained(dual, "text"))
    with pytest.raises(ValueError, match="9 groups to leave unlocked"):
        lock(dual, image=9)


def test_true_is_not_one_group(dual: Dual) -> None:
    lock(dual, image=True)
    assert trained(dual, "image") == set()
    assert trained(dual, "text")


@pytest.mark.parametrize("how", [{"image": True}, {"batchnorm": True}], ids=["locked", "frozen statistics"])
@pytest.mark.parametrize("config", [RESNET, TIMM], ids=["resnet", "timm"])
def test_statistics_stand_still_in_train_mode(config: Any, how: Any) -> None:
    dual, batch = make_dual(config), make_batch()
    lock(dual, **how)
    dual.train()
    before = {n: b.clone() for n, b in dual.named_buffers()}
    dual(batch)
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(before[n], b) for n, b in dual.named_buffers())
    assert dual.text.training
    free = make_dual(config).train()
    free(batch)
    after = dict(free.named_buffers())
    assert not any(torch.equal(before[name], after[name]) for name in before if "running_mean" in name)


def test_partly_locked_batchnorm_stands_still_only_where_locked() -> None:
    dual = make_dual(RESNET)
    lock(dual, image=2)  # layer4 and the pool are trained
    dual.train()
    norms: Any = dual.visual
    assert not norms.bn1.training
    assert not norms.layer3[0].bn1.training
    assert norms.layer4[0].bn1.training


def test_batchnorm_without_parameters_moves_unless_its_tower_is_locked() -> None:
    dual = make_dual(RESNET)
    dual.visual.bn1 = nn.BatchNorm2d(dual.visual.bn1.num_features, affine=False)
    for how, moves in (({}, True), ({"text": True}, True), ({"image": True}, False), ({"batchnorm": True}, False)):
        lock(dual, **how)  # type: ignore[arg-type]
        dual.train()
        assert dual.visual.bn1.training is moves, how


def test_patch_dropout_repeats_with_the_seed_and_only_in_training() -> None:
    config = copy.deepcopy(NANO)
    config["vision_cfg"]["patch_dropout"] = 0.5
    dual, image = make_dual(config), make_batch().image
    still = dual.encode_image(image)
    assert torch.equal(still, make_dual().encode_image(image))
    dual.train()
    torch.manual_seed(3)
    first = dual.encode_image(image)
    other = dual.encode_image(image)
    torch.manual_seed(3)
    assert torch.equal(first, dual.encode_image(image))
    assert not torch.equal(first, other)
    _, tokens = dual.encode_image_tokens(image)
    assert tokens.shape[1] == 8


def test_patch_dropout_works_in_a_locked_tower() -> None:
    dual = make_dual(patch_dropout=0.5)
    lock(dual, image=True)
    dual.train()
    assert dual.encode_image_tokens(make_batch().image)[1].shape[1] == 8


def test_patch_dropout_keeps_each_patch_equally_often() -> None:
    from vlp.models.image import PatchDropout

    drop = PatchDropout(0.75).train()
    x = torch.arange(9.0).reshape(1, 9, 1).expand(4000, -1, -1)
    kept = drop(x)[..., 0]
    assert kept.shape == (4000, 3)
    assert (kept[:, 0] == 0).all()
    share = torch.stack([(kept[:, 1:] == p).float().mean() for p in range(1, 9)])
    torch.testing.assert_close(share, torch.full((8,), 1 / 8), atol=0.02, rtol=0)
    assert (kept[:, 1] != kept[:, 2]).all()


def test_a_resnet_has_no_patches_to_drop() -> None:
    with pytest.raises(ValueError, match="has no patches"):
        make_dual(RESNET, patch_dropout=0.5)


@pytest.mark.parametrize("custom", [False, True])
def test_recomputed_blocks_give_the_same_gradients(custom: bool) -> None:
    config = copy.deepcopy(NANO)
    config["vision_cfg"]["qk_norm"] = config["text_cfg"]["qk_norm"] = custom  # open_clip's own loop fails here
    batch, grads = make_batch(), []
    for recompute in (False, True):
        dual = make_dual(config)
        if recompute:
            dual.image_tower.checkpoint_blocks()
            dual.text_tower.checkpoint_blocks()
        features = dual.train()(batch)
        (features.image.sum() + features.text.sum()).backward()
        grads.append({n: p.grad for n, p in dual.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)


def test_a_resnet_refuses_to_recompute() -> None:
    with pytest.raises(ValueError, match="BatchNorm"):
        make_dual(RESNET).image_tower.checkpoint_blocks()


def test_a_timm_tower_recomputes_only_what_takes_no_statistics() -> None:
    dual = make_dual(TIMM).train()
    with pytest.raises(ValueError, match="statistics of this ResNet would be updated twice"):
        dual.image_tower.checkpoint_blocks()
    lock(dual, batchnorm=True)
    dual.image_tower.checkpoint_blocks()
