"""Fitted adapters in the API, `vlp embed`, `vlp search` and `vlp classify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize
from typer.testing import CliRunner

from tests.test_search import COUNT, draw, place
from vlp.adapters import saved
from vlp.adapters.adapted import class_vectors
from vlp.adapters.clip_lora import ClipLora
from vlp.adapters.coop import CoOp
from vlp.adapters.linear_patches import PatchClassifier, ZeroShotMask
from vlp.adapters.maple import MaPLe
from vlp.adapters.ncm import NearestMean
from vlp.adapters.task import Examples, Task
from vlp.adapters.tip import Tip
from vlp.adapters.vpt import VPT
from vlp.api import VLP, load
from vlp.search import Index, SearchError, build_index
from vlp.search_cli import app
from vlp.types import BadSampleError

__all__ = ["place"]
NAMES = ("red", "green", "blue")
TOWERS: dict[str, Any] = {
    "vpt": VPT(tokens=2, depth=1, epochs=2, lr=0.5),
    "maple": MaPLe(epochs=1, lr=0.5),
    "clip_lora": ClipLora(steps=3, lr=0.05),
}
FEATURES: dict[str, Any] = {"ncm": NearestMean(), "tip": Tip(), "coop": CoOp(tokens=2, epochs=1)}
PICTURES = [draw(number) for number in (0, 1, 2, 3, 4, 6)]


@pytest.fixture(scope="module")
def model(place: Path) -> VLP:
    return load(place / "model", device="cpu")


@pytest.fixture(scope="module")
def fitted(place: Path, model: VLP) -> dict[str, Any]:
    """Every adapter fitted to six pictures and saved under its name."""
    found = {}
    label = torch.arange(6) % 3
    support = Examples(model.embed_images(PICTURES), label, tuple("abcdef"), PICTURES)
    for name, adapter in {**TOWERS, **FEATURES}.items():
        found[name] = adapter.fit(model.encoder, Task(NAMES, ("a photo of a {}.",), support=support))
        saved.save(found[name], place / "fitted" / name, adapter=adapter, encoder=model.encoder)
    return found


def test_classify_says_what_the_fitted_classifier_says(place: Path, fitted: dict[str, Any]) -> None:
    for name, classifier in fitted.items():
        model = load(place / "model", device="cpu", adapter=place / "fitted" / name)
        if classifier.needs == "features":
            inputs = model.plain.images(PICTURES).features
        else:
            inputs = torch.stack([model.dual.transform(picture) for picture in map(opened, PICTURES)])
        want = classifier(inputs).double().softmax(dim=1)
        got = model.classify(PICTURES, top=None)
        assert [list(map(NAMES.index, one)) for one in got] == want.argsort(dim=1, descending=True).tolist()
        for row, one in enumerate(got):
            assert [one[word] for word in NAMES] == pytest.approx(want[row].tolist(), abs=1e-6)
        some = model.classify(PICTURES[:1], ["blue", "red"])[0]
        assert set(some) == {"blue", "red"}
        assert sum(some.values()) == pytest.approx(1.0)
        assert model.classify([]) == []


@pytest.mark.parametrize("name", ["ncm", "vpt"])
def test_beside_a_bad_picture_the_others_are_classified(name: str, place: Path, fitted: dict[str, Any]) -> None:
    model = load(place / "model", device="cpu", adapter=place / "fitted" / name)
    assert fitted[name].needs == {"ncm": "features", "vpt": "pictures"}[name]
    pictures = [b"none", PICTURES[0], PICTURES[1][:40], PICTURES[2]]
    found = model.classify_readable(pictures, top=None)
    assert (found.kept, [skip.key for skip in found.skips]) == ([1, 3], ["0", "2"])
    for got, want in zip(found.classes, model.classify([PICTURES[0], PICTURES[2]], top=None), strict=True):
        assert got == pytest.approx(want, abs=1e-6)
    with pytest.raises(BadSampleError, match="picture 0, picture 2 cannot be read"):
        model.classify(pictures)
    assert model.classify_readable([b"none"]).classes == []


def opened(content: bytes) -> Any:
    from io import BytesIO

    from PIL import Image

    return Image.open(BytesIO(content)).convert("RGB")


def test_an_adapter_of_the_image_tower_changes_features_and_hash_and_the_model_stays(
    place: Path, model: VLP, fitted: dict[str, Any]
) -> None:
    before = model.embed_images(PICTURES)
    hashes = {model.weights_hash}
    for name in TOWERS:
        own = model.adapted(place / "fitted" / name)
        found = own.embed_images(PICTURES)
        assert not torch.allclose(found, before, atol=1e-4)
        assert own.embed_images([]).shape == (0, found.shape[1])
        torch.testing.assert_close(found.norm(dim=1), torch.ones(6))
        logits = fitted[name].scale * found @ class_vectors(fitted[name]).T
        pixels = torch.stack([own.dual.transform(one) for one in map(opened, PICTURES)])
        torch.testing.assert_close(logits, fitted[name](pixels), atol=1e-3, rtol=1e-3)
        hashes.add(own.weights_hash)
        assert torch.equal(own.embed_texts("red"), model.embed_texts("red")) == (name != "clip_lora")
    assert len(hashes) == 4
    assert torch.equal(model.embed_images(PICTURES), before)
    assert torch.equal(model.adapted(place / "fitted" / "ncm").embed_images(PICTURES), before)


def test_an_index_of_the_adapted_tower_is_searched_by_class(
    place: Path, tmp_path: Path, fitted: dict[str, Any]
) -> None:
    for name in TOWERS:
        own = load(place / "model", device="cpu", adapter=place / "fitted" / name)
        index = build_index(own, str(place / "pairs-*.tar"), tmp_path / name, quiet=True)
        assert len(index) == COUNT - 1
        again = Index.open(tmp_path / name)  # which finds model and adapter from where it lies
        assert again.model.adapter is not None
        vector = normalize(class_vectors(fitted[name])[2], dim=0)
        want = (index.features @ vector).sort(descending=True).values
        hits = again.nearest(again.model.embed_class("blue"), top=COUNT)
        assert [hit.score for hit in hits] == pytest.approx(want.tolist(), abs=1e-5)
        with pytest.raises(SearchError, match="their features do not compare"):
            Index.open(tmp_path / name, model=load(place / "model", device="cpu"))


def test_what_cannot_be_had_says_why(place: Path, model: VLP, fitted: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fitted on a model whose weights have the hash .* use that model"):
        load(place / "other", device="cpu", adapter=place / "fitted" / "vpt")
    for name in FEATURES:
        with pytest.raises(ValueError, match="changes nothing in the image tower; embed with the model without it"):
            build_index(model.adapted(place / "fitted" / name), str(place / "pairs-*.tar"), tmp_path / "no")
    with pytest.raises(ValueError, match="a fitted tip has no vector for each class"):
        model.adapted(place / "fitted" / "tip").embed_class("red")
    with pytest.raises(ValueError, match='not fitted to class "rad"; did you mean "red"'):
        model.adapted(place / "fitted" / "vpt").embed_class("rad")
    with pytest.raises(ValueError, match="asked of a fitted adapter, and there is none"):
        model.embed_class("red")
    with pytest.raises(ValueError, match="leave templates out"):
        model.adapted(place / "fitted" / "ncm").classify(PICTURES, templates=["a {}"])
    with pytest.raises(ValueError, match="which classes"):
        model.classify(PICTURES)
    with pytest.raises(ValueError, match="holds no fitted adapter"):
        load(place / "model", device="cpu", adapter=place)


def test_dense_classifiers_are_saved_and_refused_for_whole_pictures(tmp_path: Path, model: VLP) -> None:
    weight = normalize(torch.randn(3, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    made = PatchClassifier(weight, names=NAMES, scale=10.0)
    saved.save(made, tmp_path, adapter=ZeroShotMask(), encoder=model.encoder)
    assert saved.read_about(tmp_path)["adapter"]["name"] == "zeroshot_mask"
    assert torch.equal(saved.load(tmp_path, model.encoder).weight, weight)
    with pytest.raises(ValueError, match="a patches scores patches"):
        model.adapted(tmp_path)
    with pytest.raises(ValueError, match="scores patches, and here pictures are classified"):
        saved.Saved(folder=str(tmp_path)).fit(model.encoder, Task(NAMES))


def test_commands(place: Path, tmp_path: Path, fitted: dict[str, Any]) -> None:
    run, own, ncm = CliRunner(), str(place / "fitted" / "vpt"), str(place / "fitted" / "ncm")
    data = str(place / "pairs-*.tar")
    made = run.invoke(app, ["embed", str(place / "model"), data, "--out", str(tmp_path / "own"), "--adapter", own])
    assert made.exit_code == 0, made.output
    found = run.invoke(app, ["search", str(tmp_path / "own"), "--class", "red", "--top", "3", "--json"])
    assert found.exit_code == 0, found.output
    assert len(json.loads(found.stdout)["hits"]) == 3
    assert "red" in (tmp_path / "own" / "search.html").read_text()

    plain = run.invoke(app, ["embed", str(place / "model"), data, "--out", str(tmp_path / "plain")])
    assert plain.exit_code == 0, plain.output
    search = ["search", str(tmp_path / "plain"), "a ball", "--class", "red", "--top", "2"]
    assert run.invoke(app, [*search, "--adapter", ncm]).exit_code == 0
    assert run.invoke(app, [*search, "--adapter", ncm, "--model", str(place / "model")]).exit_code == 0
    wrong = run.invoke(app, [*search, "--adapter", own])
    assert isinstance(wrong.exception, SearchError)

    (tmp_path / "q.png").write_bytes(draw(7))
    classify = ["classify", str(tmp_path / "q.png"), "--model", str(place / "model"), "--json"]
    classes = run.invoke(app, [*classify, "--adapter", ncm])
    assert classes.exit_code == 0, classes.output
    assert set(json.loads(classes.stdout)[0]["classes"]) == set(NAMES)
    assert run.invoke(app, classify).exit_code == 2
