"""To disk and back, here and in plain open_clip."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from vlp import checkpoint
from vlp.models import pretrained
from vlp.models.arch import OURS_FILE
from vlp.models.find import names
from vlp.models.model import Model
from vlp.models.state import read_weights, to_open_clip

from .test_freeze import RESNET, TIMM
from .tiny import NANO, make_dual, random_ids, reference

SIGLIP = copy.deepcopy(TIMM) | {"init_logit_bias": -10}
SIGLIP["text_cfg"] |= {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
KINDS = {"clip": NANO, "resnet": RESNET, "timm": TIMM, "siglip": SIGLIP, "quick": NANO | {"quick_gelu": True}}


def features(dual: Any, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return dual.encode_image(torch.randn(2, 3, size, size)), dual.encode_text(random_ids(3))


def saved(tmp_path: Path, config: Any = NANO, **kwargs: Any) -> tuple[Any, Path]:
    dual = make_dual(config, **kwargs)
    pretrained.save(dual, tmp_path / "model")
    return dual, tmp_path / "model"


@pytest.mark.parametrize("kind", KINDS)
def test_plain_open_clip_reads_what_we_write(tmp_path: Path, kind: str) -> None:
    dual, folder = saved(tmp_path, KINDS[kind])
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    torch.manual_seed(1)
    image, text = torch.randn(2, 3, 32, 32), random_ids(3)
    ours = features(dual)
    torch.testing.assert_close(model.encode_image(image, normalize=True), ours[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(model.encode_text(text, normalize=True), ours[1], atol=1e-5, rtol=0)
    assert model.logit_scale.shape == ()
    assert model.logit_scale.item() == dual.logit_scale.item()
    assert tuple(transform.transforms[-1].mean) == dual.transform.mean


@pytest.mark.parametrize("kind", KINDS)
def test_what_we_write_comes_back(tmp_path: Path, kind: str) -> None:
    dual, folder = saved(tmp_path, KINDS[kind])
    again = pretrained.load(folder)
    assert not again.training
    assert all(torch.equal(a, b) for a, b in zip(features(again), features(dual)))
    assert pretrained.weights_hash(again) == pretrained.weights_hash(dual)
    assert again.transform == dual.transform
    assert (again.logit_bias is None) == (dual.logit_bias is None)
    again.logit_scale.data += 1
    assert pretrained.weights_hash(again) != pretrained.weights_hash(dual)


@pytest.mark.parametrize("kind", ["checkpoint", "plain", "module", "safetensors"])
def test_weight_files_of_open_clip(tmp_path: Path, kind: str) -> None:
    dual = make_dual()
    model = reference(dual)
    file, config = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt"), tmp_path / "nano.json"
    config.write_text(json.dumps(NANO))
    state = model.state_dict()
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file(state, file)
    elif kind == "checkpoint":
        torch.save({"epoch": 3, "name": "x", "state_dict": state, "optimizer": {"lr": 0.1}}, file)
    else:
        torch.save({("module." if kind == "module" else "") + k: v for k, v in state.items()}, file)
    again = pretrained.load(str(config), weights=file)
    for got, expected in zip(features(again), features(dual)):
        assert torch.equal(got, expected)


def test_the_newest_checkpoint_of_a_run_is_taken(tmp_path: Path) -> None:
    for step, seed in ((5, 1), (12, 2)):
        dual = make_dual(seed=seed)
        checkpoint.write(
            tmp_path / "run" / "checkpoints", step, lambda f, dual=dual: pretrained.save(dual, f / "model")
        )
    (tmp_path / "run" / "checkpoints" / "step-00000020" / "model").mkdir(parents=True)  # cut off while it was written
    found = features(pretrained.load(tmp_path / "run"))
    assert torch.equal(found[0], features(make_dual(seed=2))[0])
    assert torch.equal(
        features(pretrained.load(tmp_path / "run/checkpoints/step-00000005"))[0], features(make_dual(seed=1))[0]
    )


def test_heads_have_a_file_of_their_own(tmp_path: Path) -> None:
    dual = make_dual()
    dual.heads["extra"] = torch.nn.Linear(3, 2)
    pretrained.save(dual, tmp_path)
    assert json.loads((tmp_path / OURS_FILE).read_text())["heads"] == ["extra"]
    open_clip.create_model(f"local-dir:{tmp_path}")
    assert not pretrained.load(tmp_path).heads
    other = make_dual(seed=5)
    other.heads["extra"] = torch.nn.Linear(3, 2)
    pretrained.load_weights(other, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(other.state_dict().values(), dual.state_dict().values()))
    with pytest.raises(ValueError, match="2 not known here: extra"):
        pretrained.load_weights(make_dual(), tmp_path)


def test_faults_are_named(tmp_path: Path) -> None:
    _dual, folder = saved(tmp_path)
    wider = copy.deepcopy(NANO)
    wider["vision_cfg"] |= {"layers": 4, "width": 48}
    (tmp_path / "wider.json").write_text(json.dumps(wider))
    weights = folder / pretrained.WEIGHTS_FILE
    with pytest.raises(
        ValueError,
        match=r"12 missing: visual\.transformer\.resblocks\.3.* and 8 more; .* shape: .*\(32, 3, 8, 8\) for \(48",
    ):
        pretrained.load(tmp_path / "wider.json", weights=weights)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no model here"):
        pretrained.load(tmp_path / "empty")
    with pytest.raises(ValueError, match='did you mean "ViT-B-32"'):
        pretrained.load("ViT-B-23", weights=weights)
    with pytest.raises(ValueError, match=r"^model.pretrained: .*nothing\.pt: no such file or folder \(in [^;]*\)$"):
        Model(arch="vlp-nano", pretrained=str(tmp_path / "nothing.pt")).build()
    with pytest.raises(ValueError, match='did you mean "wider.json"'):
        Model(arch="vlp-nano", pretrained=str(tmp_path / "widder.json")).build()
    (tmp_path / "evil.pt").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="without running code"):
        pretrained.load(tmp_path / "wider.json", weights=tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="set arch"):
        Model()


OPENAI, LAION = "timm/vit_base_patch32_clip_224.openai", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"


@pytest.mark.parametrize(
    ("name", "model"),
    [("openai", OPENAI), ("laion2b_s34b_b79k", LAION), (f"hf-hub:{LAION}", LAION), (LAION, LAION)],
)
def test_weights_that_open_clip_or_the_hub_would_fetch_are_said_to_be_fetched_first(name: str, model: str) -> None:
    with pytest.raises(ValueError, match="not downloaded here") as caught:
        pretrained.load("ViT-B-32", weights=name)
    remedy = f"`hf download {model} --local-dir models/{model.split('/')[1]}`, and give that folder"
    assert str(caught.value) == f"weights: {name}: no such file or folder (in {Path.cwd()}); " + (
        f"models of the hub are not downloaded here: {remedy}"
        if "/" in name
        else f"open_clip calls weights so, and they are not downloaded here: {remedy}"
    )


@pytest.mark.parametrize("name", [f"hf-hub:{LAION}", LAION, f"https://huggingface.co/{LAION}/tree/main"])
def test_a_model_of_the_hub_is_said_to_be_fetched_first(name: str) -> None:
    for read in (pretrained.load, lambda source: Model(pretrained=source).find_arch()):
        with pytest.raises(
            ValueError, match=rf"not downloaded here: `hf download {LAION} --local-dir models/CLIP-ViT-"
        ):
            read(name)
    dual = make_dual()
    with pytest.raises(ValueError, match=f"model.pretrained: .* `hf download {LAION} "):
        pretrained.start(dual, name)
    with pytest.raises(ValueError, match="not downloaded here: `hf download timm/vit_base_patch32_clip_224.openai "):
        pretrained.start(dual, "openai", arch="ViT-B-32")


def test_paths_are_not_taken_for_models_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("runs/demo", "other/weights.pt", "a/b/c", "demo"):
        with pytest.raises(ValueError, match=r"no such file or folder \(in .*\); a model is a run") as caught:
            pretrained.load(name)
        assert "hub" not in str(caught.value)
    with pytest.raises(ValueError, match=r"; a model is a run, .*; models of the hub are not downloaded here"):
        pretrained.load("gone/demo")
    for kind in ("safetensors", "pt"):
        with pytest.raises(ValueError, match=rf"^none.{kind}: no such file or folder \(in {tmp_path}\)$"):
            read_weights(Path(f"none.{kind}"))


def test_quick_gelu_mismatch_is_said(tmp_path: Path) -> None:
    _, folder = saved(tmp_path, NANO | {"quick_gelu": True})
    (tmp_path / "gelu.json").write_text(json.dumps(NANO))
    with pytest.warns(UserWarning, match="was trained with QuickGELU, but this architecture uses GELU"):
        Model(arch=str(tmp_path / "gelu.json"), pretrained=str(folder)).build()
    state = to_open_clip(make_dual()) | {"input_resolution": torch.tensor(32)}
    torch.save(state, tmp_path / "openai.pt")
    with pytest.warns(UserWarning, match="QuickGELU"):
        pretrained.load(tmp_path / "gelu.json", weights=tmp_path / "openai.pt")


def test_model_starts_from_a_folder(tmp_path: Path) -> None:
    dual, folder = saved(tmp_path)
    started = Model(pretrained=str(folder)).build().eval()
    assert all(torch.equal(a, b) for a, b in zip(features(started), features(dual)))
    biased = Model(pretrained=str(folder)).build(needs={"bias"})
    assert biased.logit_bias is not None
    assert biased.logit_bias.item() == -10


def test_another_picture_size_and_context(tmp_path: Path) -> None:
    dual, folder = saved(tmp_path)
    started = Model(pretrained=str(folder), image_size=48, context=20).build()
    visual: Any = started.visual
    old: Any = dual.visual
    assert visual.positional_embedding.shape == (37, 32)
    assert torch.equal(visual.positional_embedding[0], old.positional_embedding[0])
    model = open_clip.create_model(f"local-dir:{folder}", force_image_size=48, force_context_length=20)
    assert torch.equal(visual.positional_embedding, model.visual.positional_embedding)
    text: Any = started.text
    assert torch.equal(text.positional_embedding, model.positional_embedding)
    assert started.transform.size == (48, 48)


def test_another_vocabulary_leaves_embeddings_at_random(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, folder = saved(tmp_path)
    other = copy.deepcopy(NANO)
    other["text_cfg"]["vocab_size"] = 120
    (tmp_path / "other.json").write_text(json.dumps(other))
    dual = Model(arch=str(tmp_path / "other.json"), pretrained=str(folder)).build()
    assert "text.token_embedding.weight: left at random, the vocabulary has 120 entries, the weights 99" in caplog.text
    image = torch.ones(1, 3, 32, 32)
    assert torch.equal(dual.eval().encode_image(image), make_dual().encode_image(image))


def test_the_tokenizer_comes_back(tmp_path: Path) -> None:
    model = Model(arch="vlp-nano")
    dual = model.build()
    pretrained.save(dual, tmp_path)
    again = pretrained.load(tmp_path)
    assert again.tokenizer.fingerprint == dual.tokenizer.fingerprint
    assert again.tokenizer.context == dual.context == 32


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("vlp-tiny-64", "vlp-tiny-96", "vlp-tiny-112")]


@pytest.mark.parametrize("arch", ["vlp-nano", "resnet-tiny", *SLOW])
def test_small_configurations_are_open_clips_too(arch: str) -> None:
    assert arch in names()
    dual = Model(arch=arch).build().eval()
    model = reference(dual)
    size = dual.transform.size
    image = torch.randn(1, 3, *size)
    torch.testing.assert_close(dual.encode_image(image), model.encode_image(image, normalize=True), atol=1e-5, rtol=0)


def test_published_normalisation_of_siglip_is_known() -> None:
    from vlp.models.find import find

    assert find("ViT-B-16-SigLIP").preprocess["resize_mode"] == "squash"
    assert find("ViT-B-32").preprocess == {} or "mean" in find("ViT-B-32").preprocess


def test_scale_and_bias_that_are_asked_for_go_before_those_of_the_weights(tmp_path: Path) -> None:
    _, folder = saved(tmp_path, init_bias=-3.0)
    kept = Model(pretrained=str(folder)).build(needs={"bias"})
    asked = Model(pretrained=str(folder), init_scale=1.5, init_bias=-5.0).build(needs={"bias"})
    assert kept.logit_bias is not None
    assert asked.logit_bias is not None
    assert [kept.logit_scale.item(), kept.logit_bias.item()] == pytest.approx([math.log(1 / 0.07), -3])
    assert [asked.logit_scale.item(), asked.logit_bias.item()] == [1.5, -5]
    assert asked.logit_scale.requires_grad
    with pytest.raises(ValueError, match="init_scale"):
        Model(arch="vlp-nano", init_scale=14.3)  # 1 / 0.07, not its logarithm


def test_a_bias_of_the_weights_alone_goes_on_to_open_clip(tmp_path: Path) -> None:
    dual, folder = saved(tmp_path, init_bias=-3.0)
    (tmp_path / "plain.json").write_text(json.dumps(NANO))
    pretrained.save(pretrained.load(tmp_path / "plain.json", weights=folder), tmp_path / "again")
    peer: Any = open_clip.create_model(f"local-dir:{tmp_path / 'again'}")
    assert peer.logit_bias.item() == dual.logit_bias.item()


def test_words_that_nobody_knows_are_named_with_the_nearest(tmp_path: Path) -> None:
    odd = copy.deepcopy(NANO)
    odd["vision_cfg"]["pach_dropout"] = 0.5
    with pytest.raises(ValueError, match=r'vision_cfg .*no "pach_dropout"; did you mean "patch_dropout"'):
        make_dual(odd)
    odd = copy.deepcopy(TIMM)
    odd["vision_cfg"]["timm_model_name"] = "test_resnt"
    with pytest.raises(ValueError, match=r'timm has no "test_resnt"; did you mean "test_resnet"'):
        make_dual(odd)
    odd["vision_cfg"] |= {"timm_model_name": "test_resnet", "timm_proj": ""}
    with pytest.raises(ValueError, match=r"timm's test_resnet does not take what it is told \(model\.patch_dropout"):
        make_dual(odd, patch_dropout=0.5)


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    state = {name: (10 * tensor).to(torch.int8) for name, tensor in to_open_clip(make_dual()).items()}
    torch.save(state, tmp_path / "small.pt")
    (tmp_path / "arch.json").write_text(json.dumps(NANO))
    with pytest.raises(ValueError, match=r"no floats: .* torch\.int8"):
        pretrained.load(tmp_path / "arch.json", weights=tmp_path / "small.pt")
