from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from vlp import checkpoint
from vlp.api import VLP, load
from vlp.models import pretrained
from vlp.models.model import Model
from vlp.types import BadSampleError

NAMES = ["red square", "blue ball", "green leaf", "dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights, as a run would save it."""
    torch.manual_seed(0)
    run, dual = tmp_path_factory.mktemp("run"), Model(arch="vlp-nano").build()
    checkpoint.write(run / "checkpoints", 10, lambda folder: pretrained.save(dual, folder / "model"))
    return run


@pytest.fixture(scope="module")
def model(folder: Path) -> VLP:
    return load(folder, device="cpu")


def picture(colour: str) -> Image.Image:
    return Image.new("RGB", (40, 50), colour)


def encoded(colour: str) -> bytes:
    out = io.BytesIO()
    picture(colour).save(out, "PNG")
    return out.getvalue()


def test_paths_bytes_and_pil_give_the_same_features(model: VLP, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded("red"))
    found = model.embed_images(
        [tmp_path / "a.png", str(tmp_path / "a.png"), encoded("red"), picture("red"), picture("blue")]
    )
    assert found.shape == (5, model.embed_texts("x").shape[1])
    assert torch.allclose(found[:4], found[:1].expand(4, -1), atol=1e-6)
    assert not torch.allclose(found[4], found[0], atol=1e-4)
    assert torch.allclose(found.norm(dim=1), torch.ones(5), atol=1e-5)
    assert model.embed_images(picture("red")).shape[0] == 1


def test_nothing_in_gives_no_rows_of_the_models_width(model: VLP) -> None:
    assert model.embed_images([]).shape == model.embed_texts([]).shape == (0, model.dual.dim)
    assert model.similarity([], ["a", "b"]).shape == (0, 2)
    assert model.similarity(picture("red"), []).shape == (1, 0)


def test_what_users_of_open_clip_look_for(model: VLP, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded("red"))
    for one in (picture("red"), encoded("red"), tmp_path / "a.png", str(tmp_path / "a.png")):
        with torch.no_grad():
            found = model.dual.encode_image(model.preprocess(one)[None])
        assert torch.allclose(found, model.embed_images(picture("red")), atol=1e-6)
    ids = model.tokenizer(["a dog", "red"])
    assert ids.shape == (2, model.dual.context)
    with torch.no_grad():
        assert torch.allclose(model.dual.encode_text(ids), model.embed_texts(["a dog", "red"]), atol=1e-5)


def test_words_that_load_does_not_know(folder: Path) -> None:
    with pytest.raises(TypeError, match=r"load\(\) has no \"pretrained\"; weights=FILE is what .* pretrained='openai'"):
        load(folder, pretrained="openai")
    with pytest.raises(TypeError, match='load\\(\\) has no "devise"; did you mean "device"'):
        load(folder, devise="cpu")
    with pytest.raises(ValueError, match="without weights; give them too .*in Python weights=FILE"):
        load("ViT-B-32")


def test_features_equal_the_towers(model: VLP) -> None:
    image = model.dual.transform(picture("red"))[None]
    ids = model.dual.tokenizer(["a dog"])
    with torch.inference_mode():
        assert torch.allclose(
            model.embed_images(picture("red")), normalize(model.dual.encode_image(image), dim=-1), atol=1e-5
        )
        assert torch.allclose(model.embed_texts("a dog"), normalize(model.dual.encode_text(ids), dim=-1), atol=1e-5)


def test_classify_equals_the_formula(model: VLP) -> None:
    templates = ["a photo of a {}.", "{c}, drawn"]
    rows = []
    for name in NAMES:  # eq. of CLIP's prompt ensembling, one class after another
        prompts = [template.replace("{}", name).replace("{c}", name) for template in templates]
        mean = sum(model.embed_texts(prompt)[0] for prompt in prompts) / len(prompts)
        rows.append(mean / mean.norm())
    logits = model.dual.logit_scale.detach().exp() * model.embed_images(picture("red")) @ torch.stack(rows).T
    expected = dict(zip(NAMES, logits.softmax(-1)[0].tolist(), strict=True))
    (found,) = model.classify(picture("red"), NAMES, templates, top=None)
    assert found == pytest.approx(expected, abs=1e-6)
    assert sum(found.values()) == pytest.approx(1.0)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_classify_gives_the_top_of_each_picture(model: VLP) -> None:
    found = model.classify([picture("red"), picture("blue"), picture("green")], NAMES, top=2)
    whole = model.classify([picture("red"), picture("blue"), picture("green")], NAMES, top=None)
    assert [list(one) for one in found] == [list(one)[:2] for one in whole]
    assert len(model.classify(picture("red"), ["a", "b"], top=5)[0]) == 2


def test_similarity_is_the_cosine(model: VLP) -> None:
    found = model.similarity([picture("red"), picture("blue")], ["a", "b", "c"])
    expected = model.embed_images([picture("red"), picture("blue")]) @ model.embed_texts(["a", "b", "c"]).T
    assert torch.equal(found, expected)


def test_a_bad_picture_is_named(model: VLP, tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes(encoded("red")[:30])
    with pytest.raises(BadSampleError, match=r"torn\.png cannot be read"):
        model.embed_images([picture("red"), tmp_path / "torn.png"])
    with pytest.raises(BadSampleError, match="picture 1 cannot be read"):
        model.embed_images([picture("red"), b"nothing"])
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        model.embed_images(tmp_path / "none.png")


def test_names_and_templates_are_checked(model: VLP) -> None:
    with pytest.raises(ValueError, match="stands already"):
        model.classify(picture("red"), ["dog", "dog"])
    with pytest.raises(ValueError, match="no slot"):
        model.classify(picture("red"), ["dog"], ["a photo"])


def test_weights_hash_follows_the_weights(folder: Path, model: VLP) -> None:
    other = load(folder, device="cpu")
    assert other.weights_hash == model.weights_hash
    with torch.no_grad():
        other.dual.logit_scale += 0.5
    assert other.weights_hash != model.weights_hash
