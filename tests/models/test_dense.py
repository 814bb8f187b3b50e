"""Dense features against the formulas of MaskCLIP, and on towers where the answer is known."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import linear, normalize

from vlp.embed import Encoder
from vlp.models.dense import DenseTower, denoised, dense_tokens, grid_of, halves, key_smoothed

from .test_parity import RESNET, timm_config, with_vision
from .tiny import NANO, make_dual


def one_block():
    config = copy.deepcopy(NANO)
    config["vision_cfg"]["layers"] = 1
    return make_dual(config)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("change", [{}, {"vision_cfg": {"pool_type": "avg", "final_ln_after_pool": True}}])
def test_vit_by_hand(residual, change):
    dual = make_dual(with_vision(change))
    image = torch.randn(2, 3, 32, 32)
    visual = dual.visual
    x = dual.image_tower.embed(image)
    for block in visual.transformer.resblocks[:-1]:
        x = block(x)
    last = visual.transformer.resblocks[-1]
    h = last.ln_1(x)
    _, k, v = linear(h, last.attn.in_proj_weight, last.attn.in_proj_bias).chunk(3, dim=-1)
    y = last.attn.out_proj(v)
    if residual:
        y = x + y
        y = y + last.mlp(last.ln_2(y))
    expected = normalize(visual.ln_post(y[:, 1:]) @ visual.proj, dim=-1)
    found = dense_tokens(dual, image, residual=residual, keys=True)
    assert found.grid == (4, 4)
    torch.testing.assert_close(found.tokens, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.keys, normalize(k[:, 1:], dim=-1), atol=1e-5, rtol=0)
    assert not last._forward_hooks
    pooled, plain = dual.encode_image_tokens(image)
    assert (found.tokens - plain).abs().max() > 1e-3
    kept = dense_tokens(dual, image, how="tokens", keys=True)
    torch.testing.assert_close(kept.tokens, plain)
    torch.testing.assert_close(kept.keys, found.keys)
    torch.testing.assert_close(dual.encode_image(image), pooled, atol=1e-5, rtol=0)  # nothing of it stays behind


def test_an_identity_as_value_gives_the_patch_itself():
    dual = one_block()
    block = dual.visual.transformer.resblocks[0]
    with torch.no_grad():
        block.attn.in_proj_weight[64:] = torch.eye(32)
        block.attn.in_proj_bias[64:] = 0
        block.attn.out_proj.weight.copy_(torch.eye(32))
        block.attn.out_proj.bias.zero_()
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    patches = block.ln_1(dual.image_tower.embed(dual.pixels(image)))[:, 1:]
    expected = normalize(dual.visual.ln_post(patches) @ dual.visual.proj, dim=-1)
    torch.testing.assert_close(dense_tokens(dual, image, residual=False).tokens, expected, atol=1e-5, rtol=0)
    moved = image.clone()
    moved[..., :8, :8] = 255 - moved[..., :8, :8]  # the first patch; with attention all others would see it
    change = (dense_tokens(dual, moved).tokens - dense_tokens(dual, image).tokens).abs().amax(dim=-1)[0]
    assert change[0] > 1e-3
    assert change[1:].max() < 1e-6


def test_where_all_tokens_are_equal_patches_pooled_and_dense_agree():
    dual = one_block()
    image = torch.full((1, 3, 32, 32), 90, dtype=torch.uint8)
    with torch.no_grad():
        dual.visual.positional_embedding.zero_()
        dual.visual.class_embedding.copy_(dual.visual.conv1(dual.pixels(image))[0, :, 0, 0])
    pooled, plain = dual.encode_image_tokens(image)
    found = dense_tokens(dual, image).tokens
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(found, pooled[:, None].expand_as(found), atol=1e-5, rtol=0)


def test_a_resnet_has_its_value_path_in_the_pool():
    dual = make_dual(with_vision({"vision_cfg": RESNET | {"image_size": 64}}))
    image = torch.randn(1, 3, 64, 64)
    found = dense_tokens(dual, image, keys=True)
    torch.testing.assert_close(found.tokens, dual.encode_image_tokens(image)[1], atol=1e-6, rtol=0)
    hidden = dual.image_tower.run(image, tokens=True).hidden
    expected = dual.visual.attnpool.c_proj(dual.visual.attnpool.v_proj(hidden))
    torch.testing.assert_close(found.tokens, normalize(expected, dim=-1), atol=1e-6, rtol=0)
    keys = normalize(dual.visual.attnpool.k_proj(hidden), dim=-1)
    torch.testing.assert_close(found.keys, keys, atol=1e-6, rtol=0)
    assert found.grid == (2, 2)


@pytest.mark.parametrize("residual", [True, False])
def test_timm_vit_by_hand(residual):
    dual = make_dual(timm_config("test_vit"))
    trunk, image = dual.visual.trunk, torch.randn(1, 3, 160, 160)
    inputs = []
    last = trunk.blocks[-1]
    handle = last.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    found = dense_tokens(dual, image, residual=residual, keys=True)
    handle.remove()
    x = inputs[0]
    _, k, v = last.attn.qkv(last.norm1(x)).chunk(3, dim=-1)
    y = last.ls1(last.attn.proj(v))
    if residual:
        y = x + y
        y = y + last.ls2(last.mlp(last.norm2(y)))
    patches = trunk.norm(y)[:, trunk.num_prefix_tokens :]
    torch.testing.assert_close(found.tokens, normalize(dual.visual.head(patches), dim=-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.keys, normalize(k[:, trunk.num_prefix_tokens :], dim=-1), atol=1e-5, rtol=0)


def test_a_map_pool_has_its_value_path_there_and_other_towers_are_refused():
    dual, image = make_dual(timm_config("test_vit3")), torch.randn(1, 3, 160, 160)
    found = dense_tokens(dual, image, keys=True)
    torch.testing.assert_close(found.tokens, dual.encode_image_tokens(image)[1], atol=1e-6, rtol=0)
    assert found.keys.shape[:2] == found.tokens.shape[:2]
    conv = make_dual(timm_config("test_convnext"))
    with pytest.raises(ValueError, match=r"no value path is known; known are VisionTransformer, ModifiedResNet"):
        dense_tokens(conv, image)
    assert dense_tokens(conv, image, how="tokens").tokens.shape[-1] == 32
    coca = make_dual(with_vision({"vision_cfg": {"attentional_pool": True, "attn_pooler_heads": 2}}))
    with pytest.raises(ValueError, match="CoCa"):
        dense_tokens(coca, torch.randn(1, 3, 32, 32), how="tokens")
    with pytest.raises(ValueError, match='did you mean "maskclip"'):
        dense_tokens(dual, image, how="maskclp")


def test_grids():
    assert grid_of(8, (32, 64)) == (2, 4)
    assert grid_of(49, (224, 224)) == (7, 7)
    with pytest.raises(ValueError, match="do not tile"):
        grid_of(255, (224, 224))


@pytest.mark.parametrize("beside", [None, "keys", "hidden", "tokens"])
def test_an_encoder_of_dense_features_gives_both_halves(beside):
    dual = make_dual()
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    made = Encoder(DenseTower(dual, "maskclip", beside=beside), batch_size=2, quiet=True).image_tokens(
        list(pixels), reduce=False
    )
    tokens, second = halves(made.tokens, 32)
    with torch.no_grad():
        first = dense_tokens(dual, pixels, keys=True)
        other = first.keys if beside == "keys" else dense_tokens(dual, pixels, how=beside or "maskclip").tokens
    torch.testing.assert_close(tokens, first.tokens, atol=2e-3, rtol=0)
    if beside is None:
        assert second.shape[-1] == 0
    else:
        torch.testing.assert_close(second, other, atol=2e-3, rtol=0)


def test_prompt_denoising_leaves_out_classes_that_no_patch_believes_in():
    logits = torch.tensor([[2.0, 0.0, 1.9], [0.0, 3.0, 2.9]])
    shares = logits.softmax(dim=-1)
    assert shares.amax(dim=0).tolist() == pytest.approx([0.49, 0.51, 0.47], abs=0.02)
    found = denoised(logits, threshold=0.5)
    assert (found < -1000).any(dim=0).tolist() == [True, False, True]
    torch.testing.assert_close(denoised(logits, threshold=0.9), logits)  # none would be left


def test_key_smoothing_is_a_mean_by_cosine_of_keys():
    shares = torch.tensor([[0.6, 0.4], [0.4, 0.6], [0.9, 0.1]])
    keys = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    found = key_smoothed(shares, keys, threshold=1.0)
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.9, 0.1]]))
    torch.testing.assert_close(key_smoothed(shares, keys, threshold=0.3), shares)
