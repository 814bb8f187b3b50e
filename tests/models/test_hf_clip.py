"""CLIP and SigLIP folders of transformers, made from tiny configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from vlp.models import pretrained

transformers = pytest.importorskip("transformers")

TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def randomised(model: Any) -> Any:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    return model.eval()


def clip_folder(folder: Path, *, act: str, eos: int) -> Any:
    text = TOWER | {
        "vocab_size": 99,
        "max_position_embeddings": 12,
        "hidden_act": act,
        "eos_token_id": eos,
        "bos_token_id": 97,
        "pad_token_id": 0,
    }
    vision = TOWER | {"image_size": 32, "patch_size": 8, "hidden_act": act}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    model = randomised(transformers.CLIPModel(config))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(("act", "eos"), [("quick_gelu", 2), ("gelu", 2), ("quick_gelu", 98), ("quick_gelu", 5)])
def test_clip(tmp_path: Path, act: str, eos: int) -> None:
    hf = clip_folder(tmp_path, act=act, eos=eos)
    dual = pretrained.load(tmp_path)
    image, ids = torch.randn(2, 3, 32, 32), torch.randint(6, 97, (5, 12))
    for row, end in enumerate((3, 11, 7, 5, 2)):
        ids[row, end], ids[row, end + 1 :] = 98 if eos == 2 else eos, 0
    with torch.no_grad():
        out = hf(input_ids=ids, pixel_values=image)
    torch.testing.assert_close(dual.encode_image(image), out.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(dual.encode_text(ids), out.text_embeds, atol=1e-5, rtol=0)
    assert dual.logit_scale.item() == hf.logit_scale.item()
    assert dual.config["quick_gelu"] is (act == "quick_gelu")
    pretrained.save(dual, tmp_path / "ours")
    again = pretrained.load(tmp_path / "ours")
    assert torch.equal(again.encode_text(ids), dual.encode_text(ids))


def test_clip_goes_on_to_open_clip(tmp_path: Path) -> None:
    import open_clip

    hf = clip_folder(tmp_path / "hf", act="quick_gelu", eos=2)
    pretrained.save(pretrained.load(tmp_path / "hf"), tmp_path / "ours")
    model = open_clip.create_model(f"local-dir:{tmp_path / 'ours'}").eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = normalize(hf.visual_projection(hf.vision_model(pixel_values=image).pooler_output), dim=-1)
    torch.testing.assert_close(model.encode_image(image, normalize=True), expected, atol=1e-5, rtol=0)


def siglip_folder(folder: Path) -> Any:
    text = TOWER | {"vocab_size": 99, "max_position_embeddings": 12, "projection_size": 32}
    vision = TOWER | {"image_size": 32, "patch_size": 8}
    model = randomised(transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision)))
    model.save_pretrained(folder)
    return model


def test_siglip(tmp_path: Path) -> None:
    hf = siglip_folder(tmp_path)
    dual = pretrained.load(tmp_path)
    assert not dual.trims
    image, ids = torch.randn(2, 3, 32, 32), torch.randint(0, 99, (5, 12))
    with torch.no_grad():
        out = hf(input_ids=ids, pixel_values=image)
    torch.testing.assert_close(dual.encode_image(image), out.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(dual.encode_text(ids), out.text_embeds, atol=1e-5, rtol=0)
    assert dual.logit_bias is not None
    assert dual.logit_bias.item() == hf.logit_bias.item()
    assert dual.transform.mean == (0.5, 0.5, 0.5)
    assert dual.transform.resize_mode == "squash"
    pretrained.save(dual, tmp_path / "ours")
    again = pretrained.load(tmp_path / "ours")
    assert torch.equal(again.encode_image(image), dual.encode_image(image))


def test_other_models_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clap"}')
    with pytest.raises(ValueError, match='model_type "clap" of transformers is not known here; did you mean "clip"'):
        pretrained.load(tmp_path)


@pytest.mark.parametrize(("resample", "interpolation"), [(2, "bilinear"), (3, "bicubic"), (None, "bicubic")])
def test_pictures_are_resized_as_the_folder_says(tmp_path: Path, resample: Any, interpolation: str) -> None:
    clip_folder(tmp_path, act="quick_gelu", eos=98)
    said = {"crop_size": {"height": 32, "width": 32}} | ({} if resample is None else {"resample": resample})
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert pretrained.load(tmp_path).transform.interpolation == interpolation
