"""The same weights give the same features here and in plain open_clip."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from .tiny import NANO, make_dual, random_ids, reference

CONFIGS = Path(open_clip.__file__).parent / "model_configs"
VISION = {"image_size": 32, "layers": 1, "width": 16, "head_width": 16, "patch_size": 16}


def shrunk_families() -> dict[str, dict[str, Any]]:
    """Every open_clip configuration with its own text tower made tiny, one of each kind."""
    kinds: dict[str, dict[str, Any]] = {}
    for path in sorted(CONFIGS.glob("*.json")):
        config = json.loads(path.read_text())
        if "hf_model_name" in config["text_cfg"]:
            continue
        text = {k: v for k, v in config["text_cfg"].items() if not k.startswith(("hf_", "tokenizer_"))}
        text.pop("output_tokens", None)
        text.update(context_length=12, vocab_size=99, width=32, heads=2, layers=2)
        if text.get("proj_type") == "none":
            text["width"] = 32
        tiny = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": text}
        tiny |= {k: config[k] for k in ("custom_text", "quick_gelu", "init_logit_bias") if k in config}
        kinds.setdefault(json.dumps(tiny, sort_keys=True), {"name": path.stem, "config": tiny})
    return {kind["name"]: kind["config"] for kind in kinds.values()}


FAMILIES = shrunk_families()


@pytest.mark.parametrize("name", FAMILIES)
def test_text_of_every_family_equals_open_clip_whatever_its_length(name: str) -> None:
    dual = make_dual(FAMILIES[name])
    ids = random_ids(6, end=dual.config["text_cfg"].get("eos_id", 98))
    expected = reference(dual).encode_text(ids, normalize=True)
    mask = ids != 0
    longest = int(mask.sum(dim=1).max())
    assert longest < 12
    for got in (
        dual.encode_text(ids),
        dual.encode_text(ids, mask),
        dual.encode_text(ids[:, :longest], mask[:, :longest]),
    ):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_families_are_what_the_documentation_says() -> None:
    for name, config in FAMILIES.items():
        text = config["text_cfg"]
        sees_padding = text.get("no_causal_mask") or text.get("embed_cls") or text.get("pool_type") == "last"
        assert make_dual(config).trims is not bool(sees_padding), name
    assert any(make_dual(config).trims for config in FAMILIES.values())


@pytest.mark.parametrize("name", [n for n, c in FAMILIES.items() if c["text_cfg"].get("no_causal_mask")])
def test_trimming_the_others_would_change_features(name: str) -> None:
    dual = make_dual(FAMILIES[name])
    ids = random_ids(6)
    mask = ids != 0
    longest = int(mask.sum(dim=1).max())
    dual.text_tower.trims = True  # type: ignore[misc]
    cut = dual.encode_text(ids[:, :longest], mask[:, :longest])
    assert (cut - reference(dual).encode_text(ids, normalize=True)).abs().max() > 1e-3


@pytest.mark.parametrize("causal", [True, False])
def test_random_ids_without_an_end_token_equal_open_clip(causal: bool) -> None:
    config = copy.deepcopy(NANO)
    config["text_cfg"]["no_causal_mask"] = not causal
    config["custom_text"] = True
    dual = make_dual(config)
    ids = torch.randint(0, 99, (7, 12))
    torch.testing.assert_close(
        dual.encode_text(ids), reference(dual).encode_text(ids, normalize=True), atol=1e-5, rtol=0
    )


VIT = {
    "plain": {},
    "quick_gelu": {"quick_gelu": True},
    "clipa": {"vision_cfg": {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True}},
    "average": {"vision_cfg": {"pool_type": "avg"}},
    "attention pool": {"vision_cfg": {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 5}},
    "layer scale": {"vision_cfg": {"ls_init_value": 0.1}},
    "query norm": {"vision_cfg": {"qk_norm": True}},
    "oblong": {"vision_cfg": {"image_size": [32, 48]}},
}


def with_vision(change: dict[str, Any]) -> dict[str, Any]:
    config = copy.deepcopy(NANO)
    config["vision_cfg"].update(change.get("vision_cfg", {}))
    return {**config, **{k: v for k, v in change.items() if k != "vision_cfg"}}


@pytest.mark.parametrize("kind", VIT)
def test_vit_equals_open_clip(kind: str) -> None:
    dual = make_dual(with_vision(VIT[kind]))
    image = torch.randn(3, 3, *dual.transform.size)
    torch.testing.assert_close(
        dual.encode_image(image), reference(dual).encode_image(image, normalize=True), atol=1e-5, rtol=0
    )


def test_uint8_is_normalised_as_open_clip_does(dual: Any) -> None:
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (dual.transform.mean, dual.transform.std))
    torch.testing.assert_close(
        dual.encode_image(pixels), dual.encode_image((pixels / 255 - mean) / std), atol=1e-6, rtol=0
    )


RESNET = {"layers": [1, 1, 1, 1], "width": 16, "head_width": 32, "patch_size": None}


def test_resnet_equals_open_clip() -> None:
    dual = make_dual(with_vision({"vision_cfg": RESNET}))
    image = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(
        dual.encode_image(image), reference(dual).encode_image(image, normalize=True), atol=1e-5, rtol=0
    )


TIMM = {
    "test_vit": {"timm_pool": "token", "timm_proj": "linear", "image_size": 160},
    "test_convnext": {"timm_pool": "", "timm_proj": "linear", "image_size": 160},
    "test_resnet": {"timm_pool": "avg", "timm_proj": "linear", "image_size": 160},
    "test_vit3": {"timm_pool": "map", "timm_proj": "", "image_size": 160},
}


def timm_config(name: str) -> dict[str, Any]:
    return {**copy.deepcopy(NANO), "custom_text": True, "vision_cfg": {"timm_model_name": name, **TIMM[name]}}


@pytest.mark.parametrize("name", TIMM)
def test_timm_equals_open_clip(name: str) -> None:
    dual = make_dual(timm_config(name))
    image = torch.randn(2, 3, 160, 160)
    torch.testing.assert_close(
        dual.encode_image(image), reference(dual).encode_image(image, normalize=True), atol=1e-5, rtol=0
    )


def test_siglip_configuration_equals_open_clip() -> None:
    """SigLIP's text tower, map pooling, bias; its timm tower is the smallest that pools so."""
    config = timm_config("test_vit3") | {"init_logit_bias": -10}
    config["vision_cfg"].update(timm_pool="map", timm_proj="none")
    config["embed_dim"] = 96
    config["text_cfg"] |= {
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
        "act_kwargs": {"approximate": "tanh"},
    }
    dual = make_dual(config)
    image, ids = torch.randn(2, 3, 160, 160), torch.randint(0, 99, (5, 12))
    plain = reference(dual)
    torch.testing.assert_close(dual.encode_image(image), plain.encode_image(image, normalize=True), atol=1e-5, rtol=0)
    torch.testing.assert_close(dual.encode_text(ids), plain.encode_text(ids, normalize=True), atol=1e-5, rtol=0)
    assert dual.logit_bias is not None
    assert dual.logit_bias.shape == (1,)
    assert plain.logit_bias.shape == ()
    assert plain.logit_bias.item() == -10


@pytest.mark.parametrize("kind", ["plain", "clipa", "average"])
def test_image_tokens_are_projected_patches(kind: str) -> None:
    """Pooling and projecting open_clip's own tokens by hand gives ours."""
    dual = make_dual(with_vision(VIT[kind]))
    image = torch.randn(2, 3, 32, 32)
    visual = reference(dual).visual
    visual.output_tokens = True
    _, raw = visual(image)
    if kind == "clipa":
        raw = visual.ln_post(raw)
    pooled, tokens = dual.encode_image_tokens(image)
    assert tokens.shape == (2, 16, 32)
    torch.testing.assert_close(tokens, normalize(raw @ visual.proj, dim=-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(pooled, dual.encode_image(image), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", TIMM)
def test_timm_tokens_are_the_head_at_one_place(name: str) -> None:
    dual = make_dual(timm_config(name))
    image = torch.randn(1, 3, 160, 160)
    pooled, tokens = dual.encode_image_tokens(image)
    torch.testing.assert_close(pooled, dual.encode_image(image), atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(tokens.shape[:2]))
    assert tokens.shape[1] > 1
    assert (tokens[:, 0] - tokens[:, 1]).abs().max() > 1e-4
    if name == "test_resnet":  # nothing but a mean and a linear map stand behind: the mean of places is the picture
        plain = dual.image_tower.run(image, tokens=True)
        torch.testing.assert_close(plain.tokens.mean(dim=1), plain.pooled, atol=1e-5, rtol=0)  # type: ignore[union-attr]


def test_tokens_of_a_tower_with_channels_last() -> None:
    """Swin's maps are [B, h, w, C]; behind its norm stand a mean and a linear map: a token is that map at one place."""
    vision = {"timm_model_name": "swin_tiny_patch4_window7_224", "timm_pool": "avg", "timm_proj": "linear"}
    dual = make_dual({**copy.deepcopy(NANO), "custom_text": True, "vision_cfg": vision | {"image_size": 224}})
    image = torch.randn(1, 3, 224, 224)
    visual: Any = dual.visual
    out = dual.image_tower.run(image, tokens=True)
    maps = visual.trunk.forward_features(image)
    assert out.tokens is not None
    torch.testing.assert_close(out.tokens, visual.head(maps).flatten(1, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.pooled, dual.image_tower.run(image, tokens=False).pooled)


def test_towers_whose_patches_are_not_known_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    dual = make_dual(timm_config("test_vit"))
    trunk: Any = dual.visual.trunk
    image = torch.randn(1, 3, 160, 160)
    trunk.forward_head = lambda x: torch.randn(1, trunk.num_features)
    trunk.forward_features = lambda image: torch.randn(1, 101, trunk.num_features)
    with monkeypatch.context() as patched:
        patched.setattr(trunk, "num_prefix_tokens", None)
        with pytest.raises(ValueError, match="VisionTransformer does not say which of its tokens are patches"):
            dual.encode_image_tokens(image)
    for given, said in (([image], "a list"), (torch.randn(1, 5, 3, 3), r"a map of shape \(1, 5, 3, 3\)")):
        trunk.forward_features = lambda image, given=given: given
        with pytest.raises(ValueError, match=f"VisionTransformer gives {said}"):
            dual.encode_image_tokens(image)


def test_stages_of_a_timm_resnet_are_its_blocks() -> None:
    dual = make_dual(timm_config("test_resnet"))
    assert [type(block) for block in dual.image_blocks] == [nn.Sequential] * 4


def test_resnet_tokens_are_the_value_path() -> None:
    """With a picture of one colour inside, no position and uniform attention, pooled and token agree."""
    dual = make_dual(with_vision({"vision_cfg": RESNET | {"image_size": 64}}))
    pool: Any = dual.visual.attnpool
    with torch.no_grad():
        for p in (pool.positional_embedding, pool.q_proj.weight, pool.q_proj.bias):
            p.zero_()
    out = dual.image_tower.run(torch.randn(2, 3, 64, 64), tokens=True)
    assert out.tokens is not None
    assert out.tokens.shape == (2, 4, 32)
    torch.testing.assert_close(out.tokens.mean(dim=1), out.pooled, atol=1e-5, rtol=0)


def test_text_tokens_end_with_the_pooled_token(dual: Any) -> None:
    """A causal tower's end token, projected like the others, is the pooled text."""
    ids = random_ids(5)
    pooled, tokens, mask = dual.encode_text_tokens(ids)
    end = mask.sum(dim=1) - 1
    torch.testing.assert_close(tokens[torch.arange(5), end], pooled, atol=1e-6, rtol=0)
    torch.testing.assert_close(pooled, dual.encode_text(ids), atol=1e-6, rtol=0)
    assert (tokens[~mask] == 0).all()
    assert (ids.argmax(dim=1) == end).all()
