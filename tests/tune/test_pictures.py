"""Data sets of pictures in YAML: what is read of them, what towers are handed, what is encoded once."""

from __future__ import annotations

import json
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from eval.tuning import TuneSet, load_tuning, open_stock, resized
from eval.tuning_run import Words, targets
from eval.tuning_views import Augmented, ViewFeatures
from tests.eval.colours import COLOURS, ColourDual, colour_shard, jpeg, write_shard
from tests.tune.doubles import SEEN, Means, Tower, methods
from vlp.adapters.zeroshot import ZeroShot
from vlp.data.schema import DataError
from vlp.data.sources import open_records
from vlp.embed import Encoder
from vlp.models import pretrained
from vlp.pictures import read_picture
from vlp.tune.protocols import FewShot, Trial
from vlp.tune.scoring import logits_of
from vlp.tune.support import make_draws

__all__ = ["methods"]

NAMES = list(COLOURS)


@pytest.fixture
def encoder(monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "weights_hash", lambda dual: "colours")
    return Encoder(ColourDual(), quiet=True, cache=tmp_path / "cache")


@pytest.fixture
def file(tmp_path):
    """train has 4 of each colour and one that cannot be read, test has 2 of each and one without a class."""
    colour_shard(tmp_path / "data" / "train.tar", per_colour=4, broken=1)
    samples = [
        {"jpg": jpeg(colour, size=16 + copy), "cls": str(NAMES.index(colour)).encode()}
        for colour in NAMES
        for copy in range(2)
    ]
    write_shard(tmp_path / "data" / "test.tar", [*samples, {"jpg": jpeg("red", size=10)}])
    path = tmp_path / "t.yaml"
    path.write_text(
        "name: t\ndata: data\nsets:\n"
        f"  - {{dataset: colours, train: train.tar, test: test.tar, names: [{', '.join(NAMES)}]}}\n"
    )
    return path


def stock_of(file, encoder, *overrides):
    tuning = load_tuning(file, overrides)
    return open_stock(tuning.sets[0], tuning, encoder, model="dual")


def test_pictures_are_read_with_their_labels_shut(file, encoder):
    stock = stock_of(file, encoder)
    assert (stock.names, stock.templates, stock.model) == (tuple(NAMES), ("a photo of a {}.",), "dual")
    assert stock.train.known.tolist() == [label for label in range(5) for _ in range(4)]
    assert len(stock.test.pictures) == 11
    assert stock.test.pictures.label is None
    assert sum(stock.skips.values()) == 1
    assert all(reason.startswith("train_") for reason in stock.skips)
    found = FewShot().measure(Trial(ZeroShot(), stock))
    assert (found.metrics["acc1"], found.n, found.skips["no_usable_label"]) == (1.0, 10, 1)
    assert set(stock.hashes) == {"train", "test"}


def test_towers_get_pictures_in_order_and_classifiers_get_uint8(file, encoder, methods):
    stock = stock_of(file, encoder)
    drawn = make_draws(stock, shots=[2], seeds=[1]).draws[0]
    found = FewShot().measure(Trial(Tower(), stock, 2, 1, drawn))
    support = SEEN[0].support
    assert len(support.pictures) == len(support) == 10
    for row, picture in enumerate(support.pictures):
        image = encoder.images([read_picture(picture)]).features[0]
        torch.testing.assert_close(image, support.image[row])
    by_pixels, by_features = found.classifier, ZeroShot().fit(encoder, stock.task(seed=0))
    for one in (by_pixels, by_features):
        assert logits_of(one, encoder, stock.test.pictures).argmax(dim=1).tolist()[:10] == sorted([*range(5)] * 2)
    with pytest.raises(ValueError, match="ByPixels needs pictures, and of the test pictures only features are there"):
        logits_of(by_pixels, encoder, replace(stock.test.pictures, pictures=None))


def test_prompts_take_the_place_of_templates(file, encoder, tmp_path):
    sentences = {name: [name, f"a {name}"] for name in NAMES}
    (tmp_path / "s.json").write_text(json.dumps(sentences))
    text = stock_of(file, encoder, "sets.0.prompts=s.json").text
    torch.testing.assert_close(text[1], encoder.texts(sentences["green"]))
    sentences["red"].append("red red")
    (tmp_path / "s.json").write_text(json.dumps(sentences))
    assert stock_of(file, encoder, "sets.0.prompts=s.json").text.shape == (5, 1, 3)
    (tmp_path / "s.json").write_text(json.dumps({**sentences, "red": []}))
    with pytest.raises(ValueError, match=r's.json: no sentence for 1 of 5 classes: "red"'):
        stock_of(file, encoder, "sets.0.prompts=s.json")


def test_copies_are_encoded_once_whatever_the_draw(file, encoder, methods, tmp_path):
    stock = stock_of(file, encoder)
    encoder.dual.calls.clear()
    draws = {count: make_draws(stock, shots=[count], seeds=[1]).draws[0] for count in (2, 3)}
    found = {count: FewShot().measure(Trial(Means(), stock, count, 1, one)) for count, one in draws.items()}
    assert found[2].counts["support"] == 10
    assert SEEN[0].support.views.shape == (10, 2, 3)
    encoded = [shape[0] for kind, shape in encoder.dual.calls if kind == "image"]
    assert encoded == [20, 10]  # two copies of ten pictures, then of the five new ones
    rows = dict(zip(SEEN[0].support.keys, SEEN[0].support.views))
    again = dict(zip(SEEN[1].support.keys, SEEN[1].support.views))
    assert all(torch.equal(again[key], view) for key, view in rows.items())
    encoder.dual.calls.clear()
    fresh = stock_of(file, encoder)  # another process finds them on disk
    torch.testing.assert_close(fresh.augment(SEEN[1].support, 2), SEEN[1].support.views)
    assert not encoder.dual.calls
    other = stock_of(file, encoder, "augmentation_seed=1")
    other.augment(SEEN[1].support, 2)
    assert encoder.dual.calls


def test_copies_are_crops_that_follow_from_seed_and_place(tmp_path):
    rng = np.random.default_rng(0)
    data = BytesIO()
    Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(data, "PNG")
    records = open_records(str(write_shard(tmp_path / "one.tar", [{"png": data.getvalue()}] * 3)))
    dual = ColourDual()
    crops = Augmented(records, [1, 2], dual.transform, views=2, seed=0)
    assert len(crops) == 4
    assert crops[0].shape == (3, 8, 8)
    assert not torch.equal(crops[0], crops[1])
    assert not torch.equal(crops[0], crops[2])
    assert torch.equal(Augmented(records, [2], dual.transform, views=2, seed=0)[1], crops[3])
    assert torch.equal(dual.transform(crops[0]), crops[0])  # encoded as they are
    assert ViewFeatures(Encoder(dual, quiet=True)).seed == 0


def test_resize_mode_holds_for_everything_that_is_read(file, encoder):
    own = encoder.dual.transform
    squash = "sets.0.train={path: train.tar, resize_mode: squash}", "sets.0.test={path: test.tar, resize_mode: squash}"
    with resized(encoder, load_tuning(file, squash).sets[0]):
        assert encoder.dual.transform.resize_mode == "squash"
    assert encoder.dual.transform is own
    with pytest.raises(ValueError, match="resize_mode differs between splits"):
        load_tuning(file, squash[:1])
    other = file.with_name("other.yaml")
    other.write_text(file.read_text().replace("test: test.tar", "test: {path: test.tar, resize_mode: squash}"))
    other.write_text(other.read_text().replace("train: train.tar, ", ""))
    given = Words([], "model", load_tuning(file))
    with pytest.raises(ValueError, match=r"other.yaml: resize_mode differs from that of the sets"):
        list(targets(given, [str(other)], encoder))


def test_other_words_and_other_copies_are_another_data_set(file, encoder, tmp_path):
    def identity(*overrides):
        return stock_of(file, encoder, *overrides).identity

    (tmp_path / "s.json").write_text(json.dumps({name: [name] for name in NAMES}))
    plain, said = identity(), identity("sets.0.prompts=s.json")
    assert plain == identity() != said == identity("sets.0.prompts=s.json")
    (tmp_path / "s.json").write_text(json.dumps({name: [f"a {name}"] for name in NAMES}))
    assert identity("sets.0.prompts=s.json") not in (plain, said)
    assert identity("augmentation_seed=1") != plain
    encoder.precision = "bf16"
    assert identity() != plain


def test_faults_of_a_file_say_where(file, encoder, tmp_path):
    with pytest.raises(ValueError, match="give either `features`"):
        TuneSet(dataset="x")
    with pytest.raises(ValueError, match="train and test are the same pictures"):
        stock_of(file, encoder, "sets.0.train=test.tar")
    with pytest.raises(ValueError, match="these are pictures: give a model"):
        stock_of(file, None)
    with pytest.raises(DataError, match='no data at "nowhere.tar"'):
        stock_of(file, encoder, "sets.0.train=nowhere.tar")
    with pytest.raises(ValueError, match="no class names"):
        stock_of(file, encoder, "sets.0.names=null")


def test_splits_of_coop_are_read(encoder, tmp_path):
    root = tmp_path / "data" / "dtd"
    (root / "images").mkdir(parents=True)
    split = {}
    for number, part in enumerate(("train", "val", "test")):
        split[part] = []
        for label, colour in enumerate(("red", "blue")):
            for copy in range(2):
                name = f"{colour}/{part}{copy}.jpg"
                (root / "images" / colour).mkdir(exist_ok=True)
                (root / "images" / name).write_bytes(jpeg(colour, size=10 + 3 * number + copy))
                split[part].append([name, label, colour])
    (root / "split_zhou_DescribableTextures.json").write_text(json.dumps(split))
    (tmp_path / "t.yaml").write_text(
        "name: t\ndata: data\nsets:\n  - dataset: dtd\n    train: {set: coop/dtd, split: train}\n"
        "    validation: {set: coop/dtd, split: val}\n    test: {set: coop/dtd}\n"
    )
    stock = stock_of(tmp_path / "t.yaml", encoder)
    assert (stock.names, stock.templates) == (("red", "blue"), ("{} texture.",))
    assert [len(part) for part in (stock.train, stock.validation, stock.test.pictures)] == [4, 4, 4]
    assert FewShot().measure(Trial(ZeroShot(), stock)).metrics["acc1"] == 1.0
