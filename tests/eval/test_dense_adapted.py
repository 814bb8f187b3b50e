"""Adapters of patches in the benchmarks of pixels and anomalies, on pictures of known colours."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from data_tools.scenes.tool import Scenes
from eval.anomaly import Anomaly
from eval.data import Data, open_data
from eval.dense_adapted import WindowMaker, patch_maps, split_maps
from eval.masks import IGNORED, Masks
from eval.pixel_words import words_of
from eval.segment import Segmentation
from eval.view import View
from eval.windows import layout
from tests.adapters.prompt_towers import clip
from tests.eval.colours import write_shard
from tests.eval.test_fine import PatchDual, measure
from tests.eval.test_segment import HALVES, PLAIN, png, striped
from vlp.data.schema import DataError
from vlp.embed import Encoder
from vlp.models.dense import DenseTower

TURNED = [0] * 4 + [1] * 4  # what words call red and green


def shards(tmp_path):
    """Pictures where words are right but for a swap: red is called green, which only masks tell."""
    names = {"train": 4, "held": 2, "test": 3}
    made = {}
    for number, (name, count) in enumerate(names.items()):
        width = [*HALVES, *["red"] * (number + 1)]
        mask = [1 - value for value in TURNED] + [1] * (number + 1)
        made[name] = write_shard(tmp_path / f"{name}.tar", [striped(width, mask) for _ in range(count)])
    return made


LINEAR = {"name": "linear_patches", "lr": 1.0, "epochs": 20, "batch": 2}


def test_without_learning_it_measures_what_the_plain_benchmark_does(tmp_path):
    shard = shards(tmp_path)["test"]
    plain = measure(Segmentation(data=str(shard), **PLAIN), shard)
    same = measure(Segmentation(data=str(shard), adapter={"name": "zeroshot_mask"}, **PLAIN), shard)
    assert plain.metrics == same.metrics
    assert plain.ci95 == same.ci95
    assert (plain.head, same.head) == ("tokens", "zeroshot_mask on tokens")
    assert (set(plain.files), set(same.files)) == ({"segmentation_tokens.json"}, {"segmentation_zeroshot_mask.json"})
    assert same.selection == {"split": "none"}


def test_a_linear_layer_learns_what_words_do_not_say(tmp_path):
    made = shards(tmp_path)
    part = Segmentation(
        data=str(made["test"]), train=str(made["train"]), validation=str(made["held"]), adapter=LINEAR, **PLAIN
    )
    view = View(Encoder(PatchDual(), quiet=True), open_data(part.data), dataset="x")
    found = part.measure(view)
    assert measure(Segmentation(data=str(made["test"]), **PLAIN), made["test"]).metrics["mean_iou"] < 0.1
    assert found.metrics["mean_iou"] > 0.8
    assert dict(view.label_reads) == {"scoring": 1}
    assert dict(view.beside(part.train).label_reads) == {"learning": 1}
    assert found.selection["split"] == "validation"
    assert found.selection["train_windows"] == 8
    assert {"train_hash", "validation_hash", "epoch", "mean_iou"} <= set(found.selection)


@pytest.mark.parametrize("adapter", ["denseclip", "linear_patches"])
def test_adapters_run_on_a_model_of_open_clip_by_windows(tmp_path, adapter):
    rng = np.random.default_rng(0)
    noise = [
        {"png": png(rng.integers(0, 255, (40, 48, 3))), "mask.png": png(rng.integers(0, 2, (40, 48)))} for _ in range(6)
    ]
    made = [write_shard(tmp_path / f"{n}.tar", noise[3 * n : 3 * n + 3]) for n in range(2)]
    settings = {"name": adapter, "epochs": 1, "batch": 4}
    settings |= {"width": 8, "heads": 2, "head_width": 8} if adapter == "denseclip" else {"reads": "hidden"}
    part = Segmentation(
        **{**PLAIN, "how": "maskclip"}, data=str(made[0]), train=str(made[1]), adapter=settings, n_boot=10
    )
    found = measure(part, made[0], clip())
    label = adapter if adapter == "denseclip" else "linear_patches_hidden"
    assert (found.n, found.head) == (3, f"{label} on maskclip")
    assert set(found.files) == {f"segmentation_{label}.json"}
    assert 0 <= found.metrics["mean_iou"] <= 1


def test_windows_bring_their_part_of_the_mask(tmp_path):
    values = [0] * 8 + [1] * 4 + [255] * 4
    shard = write_shard(tmp_path / "a.tar", [striped(["red"] * 16, values)] * 2 + [striped(HALVES)])
    view = View(Encoder(PatchDual(), quiet=True), open_data(Segmentation(data=str(shard), **PLAIN).data), dataset="x")
    words = words_of(("a", "b"), ("{}",), None, by_threshold=False, dataset="x")
    tower = DenseTower(view.encoder.dual, "tokens")
    told = Counter()
    windows = WindowMaker(tower, Masks(), lambda shape: layout(shape, (8, 8), resize="slide", overlap=0), words, 1)
    found = windows.examples(view, told=told)
    assert (len(found), found.maps.grid, told) == (4, (2, 2), {"no_mask": 1})
    assert found.mask[:, 0].tolist() == [[0] * 8, [1] * 4 + [IGNORED] * 4] * 2
    assert found.keys == ("s0000000", "s0000000", "s0000001", "s0000001")
    view.encoder.token_gb = 6e-8  # more than one picture, less than two
    with pytest.raises(DataError, match="give fewer pictures"):
        windows.examples(view, told=told)


def test_patches_and_what_lies_before_the_projection_are_told_apart(tmp_path):
    rng = np.random.default_rng(0)
    shard = write_shard(tmp_path / "a.tar", [{"png": png(rng.integers(0, 255, (32, 32, 3)))} for _ in range(2)])
    view = View(Encoder(clip(), quiet=True), open_data(Segmentation(data=str(shard), **PLAIN).data), dataset="x")
    found = patch_maps(view, "maskclip", hidden=True)
    assert torch.equal(found.image, view.image)
    assert (found.grid, found.patches.shape, found.hidden.shape) == ((4, 4), (2, 16, 32), (2, 16, 32))
    for own in (found.patches, found.hidden):
        torch.testing.assert_close(own.float().norm(dim=-1), torch.ones(2, 16), atol=1e-3, rtol=0)
    plain = patch_maps(view, "tokens", hidden=False)
    torch.testing.assert_close(plain.patches.float(), view.image_tokens().tokens.float(), atol=1e-3, rtol=0)
    assert split_maps(torch.randn(1, 4, 8), 8, (8, 8)).hidden is None


def test_what_cannot_be_is_refused(tmp_path):
    made = shards(tmp_path)
    data = {"data": str(made["test"]), **PLAIN}
    with pytest.raises(
        ValidationError, match="adapter: adaptclip scores anomalies; of pixels are denseclip, linear_pa"
    ):
        Segmentation(**data, adapter="adaptclip", train=str(made["train"]))
    with pytest.raises(ValidationError, match="denseclip learns from pictures with masks; give `train`"):
        Segmentation(**data, adapter="denseclip")
    with pytest.raises(ValidationError, match="zeroshot_mask learns nothing; leave `train` out"):
        Segmentation(**data, adapter="zeroshot_mask", train=str(made["train"]))
    with pytest.raises(ValidationError, match="train teaches an adapter"):
        Segmentation(**data, train=str(made["train"]))
    with pytest.raises(ValidationError, match="scores every class by itself"):
        Segmentation(**data, train=str(made["train"]), adapter=LINEAR, key_smoothing=1.0)
    with pytest.raises(DataError, match="train are the pictures of data"):
        measure(Segmentation(**data, train=str(made["test"]), adapter=LINEAR), made["test"])
    held = Segmentation(**data, train=str(made["train"]), validation=str(made["train"]), adapter=LINEAR)
    with pytest.raises(DataError, match="validation are the pictures of train"):
        measure(held, made["test"])
    with pytest.raises(ValidationError, match='unknown dense adapter "denseclp"; did you mean "denseclip"'):
        Segmentation(**data, adapter="denseclp", train=str(made["train"]))


ANOMALY = {
    "dataset": "flawed",
    "label": "condition",
    "mask": "defect.png",
    "n_boot": 10,
    "templates": ("{}",),
    "how": "maskclip",
}
ADAPTCLIP = {"name": "adaptclip", "epochs": 1, "context": 2, "middle": 4}


@pytest.fixture(scope="module")
def flawed(tmp_path_factory):
    """Scenes with defects: to learn from, to measure, and normal ones beside these."""
    out = tmp_path_factory.mktemp("flawed")
    for seed, (split, share) in enumerate({"auxiliary": 0.5, "test": 0.5, "normal": 0.0}.items()):
        settings = {"split": split, "count": 24, "seed": seed, "size": 32, "styles": ("flat",)}
        Scenes(**settings, defects=share, variant="labelled").run([], out)
    return {split: str(out / split) for split in ("auxiliary", "test", "normal")}


def measured(part, dual=None):
    view = View(Encoder(dual or clip(), quiet=True), open_data(part.data), dataset="flawed")
    return part.measure(view), view


def test_adaptclip_learns_on_scenes_with_defects_and_looks_at_others(flawed):
    part = Anomaly(data=flawed["test"], auxiliary=flawed["auxiliary"], adapter=ADAPTCLIP, **ANOMALY)
    found, view = measured(part)
    assert set(found.metrics) >= {"image_auroc", "image_average_precision", "image_f1_max", "pixel_auroc"}
    assert "pixel_aupro" in found.metrics
    assert found.head == "adaptclip"
    assert found.selection["auxiliary_images"] == 24
    assert dict(view.label_reads) == {"scoring": 1}
    assert dict(view.beside(part.auxiliary).label_reads) == {"learning": 1}
    file = found.files["anomaly_adaptclip.json"]
    assert file["grid"] == [4, 4]
    beside, _ = measured(part.model_copy(update={"normal": Data(path=flawed["normal"])}))
    assert beside.head == "adaptclip beside normal pictures"
    assert beside.files["anomaly_adaptclip_reference.json"]["grid"] == [16, 16]
    assert {"normal_hash", "auxiliary_hash"} <= set(beside.selection)
    again, _ = measured(part)
    assert again.metrics == found.metrics
    words, _ = measured(Anomaly(data=flawed["test"], **ANOMALY))
    assert set(words.files) == {"anomaly_maskclip.json"}


def test_what_anomalies_can_not_be_learned_from_is_refused(flawed):
    given = {"data": flawed["test"], **ANOMALY}
    with pytest.raises(ValidationError, match="adaptclip learns from pictures with masks; give `auxiliary`"):
        Anomaly(**given, adapter="adaptclip")
    with pytest.raises(ValidationError, match="denseclip scores pixels; of anomalies are adaptclip"):
        Anomaly(**given, adapter="denseclip", auxiliary=flawed["auxiliary"])
    with pytest.raises(ValidationError, match="give `mask`"):
        Anomaly(**{**given, "mask": None}, adapter="adaptclip", auxiliary=flawed["auxiliary"])
    with pytest.raises(ValidationError, match="auxiliary teaches an adapter"):
        Anomaly(**given, auxiliary=flawed["auxiliary"])
    with pytest.raises(DataError, match="auxiliary are the pictures of data"):
        measured(Anomaly(**given, adapter=ADAPTCLIP, auxiliary=flawed["test"]))
    alone = Anomaly(
        **given, object_field="class", adapter=ADAPTCLIP, auxiliary=flawed["auxiliary"], normal=flawed["normal"]
    )
    with pytest.raises(ValueError, match="no other normal picture of"):
        measured(alone)
