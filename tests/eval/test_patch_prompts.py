"""Patches as prompts, with a model that knows colours and against loops."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from eval.data import open_data
from eval.patch_pairs import Region, owners, pair_cosines
from eval.patch_prompts import PatchPrompts, coverage, prompt_patch, threshold_iou
from eval.view import View
from tests.eval.colours import write_shard
from tests.eval.test_fine import PatchDual, measure, scene
from tests.eval.test_segment import HALVES, striped
from tests.models.tiny import make_dual
from vlp.data.schema import DataError
from vlp.embed import Encoder

OBJECTS = {"masks": {"objects": "objects", "object_class": "{color}"}, "how": "tokens", "dataset": "x"}


def quarters(colours=("red", "green", "red", "green"), mask=(1, 2, 1, 2)):
    return scene(colours, mask=mask, objects=[{"color": colours[0]}, {"color": colours[1]}])


def test_a_patch_finds_its_object_and_the_threshold_is_chosen_on_validation(tmp_path):
    shard = write_shard(tmp_path / "a.tar", [quarters(), quarters(mask=(1, 0, 1, 0))])
    held = write_shard(tmp_path / "v.tar", [quarters(("blue", "red", "blue", "red"))])
    part = PatchPrompts(data=str(shard), validation=str(held), thresholds=(-0.5, 0.5), **OBJECTS)
    view = View(Encoder(PatchDual(), quiet=True), open_data(part.data), dataset="x")
    found = part.measure(view)
    assert found.metrics["prompt_iou"] == 1.0
    assert found.metrics["intra_similarity"] == pytest.approx(1.0, abs=1e-3)
    assert found.metrics["inter_similarity"] == pytest.approx(0.02, abs=1e-2)
    assert found.metrics["similarity_overlap"] == 0.0
    assert found.chance == {"prompt_iou": 0.5, "similarity_overlap": 1.0}
    assert (found.n, found.counts["regions"], found.skips) == (2, 3, {})
    assert found.selection["threshold"] == "0.5"
    assert dict(view.label_reads) == {"scoring": 1}
    file = found.files["prompting_patch.json"]
    assert file["validation"] == {"thresholds": [-0.5, 0.5], "iou": [0.5, 1.0]}
    assert file["iou"] == [1.0] * 3
    with pytest.raises(DataError, match="same pictures"):
        measure(PatchPrompts(data=str(shard), validation=str(shard), **OBJECTS), shard)
    for wrong in ({}, {"validation": str(held), "threshold": 0.5}):
        with pytest.raises(ValidationError, match="not both"):
            PatchPrompts(data=str(shard), **wrong, **OBJECTS)


def test_prompts_from_other_pictures(tmp_path):
    shard = write_shard(tmp_path / "a.tar", [quarters(), quarters(("blue", "green", "blue", "green"))])
    support = write_shard(tmp_path / "s.tar", [quarters(("green", "red", "green", "red"))])
    part = PatchPrompts(data=str(shard), support=str(support), threshold=0.5, **OBJECTS)
    found = measure(part, shard)
    assert found.metrics["prompt_iou"] == 1.0
    assert (found.counts["regions"], found.skips) == (3, {"class_not_in_support": 1})
    assert "support_hash" in found.selection


def test_small_regions_are_counted_and_masks_of_classes_will_do(tmp_path):
    shard = write_shard(tmp_path / "a.tar", [striped(HALVES, [1, 2, 2, 2, 0, 0, 0, 0])])
    found = measure(PatchPrompts(dataset="x", data=str(shard), how="tokens", threshold=0.5), shard)
    assert (found.counts["regions"], found.skips) == (1, {"region_smaller_than_patch": 1})
    assert found.metrics["prompt_iou"] == pytest.approx(3 / 4)
    hidden = measure(PatchPrompts(dataset="x", data=str(shard), threshold=0.5, n_boot=5), shard, make_dual())
    assert hidden.head == "hidden"


def test_the_prompt_is_the_most_covered_patch_nearest_to_the_centre():
    pixels = torch.zeros(8, 8, dtype=torch.bool)
    pixels[:4, :6] = True
    cover = coverage(pixels, (4, 4))
    assert cover.reshape(4, 4)[:2].tolist() == [[1, 1, 1, 0]] * 2
    assert prompt_patch(cover, (4, 4)) in (1, 5)
    pixels[0, :] = True
    assert prompt_patch(coverage(pixels, (4, 4)), (4, 4)) == 1


def test_iou_above_thresholds_and_pairs_by_loops():
    rng = torch.Generator().manual_seed(0)
    scores, inside = torch.rand(30, generator=rng), torch.rand(30, generator=rng) < 0.4
    for threshold, found in zip((0.2, 0.9), threshold_iou(scores, inside, (0.2, 0.9)).tolist(), strict=True):
        flagged = scores > threshold
        assert found == pytest.approx(float((flagged & inside).sum() / (flagged | inside).sum()))
    tokens = torch.randn(6, 3, generator=rng)
    cover = torch.tensor([[1.0, 0.8, 0.4, 0.0, 0.0, 0.0], [0.0, 0.1, 0.4, 0.0, 0.6, 0.2]])
    owner = owners([Region(str(n), torch.zeros(1, 1, dtype=torch.bool), one) for n, one in enumerate(cover)])
    assert owner.tolist() == [0, 0, -1, 2, 1, 2]
    intra, inter = [], []
    for i in range(6):
        for j in range(i + 1, 6):
            a, b = int(owner[i]), int(owner[j])
            if min(a, b) >= 0 and (a, b) != (2, 2):
                (intra if a == b else inter).append(float(tokens[i] @ tokens[j]))
    found = pair_cosines(tokens, owner, 2)
    assert found[0].tolist() == pytest.approx(intra, abs=1e-5)
    assert found[1].tolist() == pytest.approx(inter, abs=1e-5)
