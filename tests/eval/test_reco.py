"""ReCo against loops, and end to end with a model that knows colours."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from eval.reco import CONTEXT, ReCo, eliminated, reference_of, retrieved, seed_patches
from tests.eval.colours import colour_shard, write_shard
from tests.eval.test_fine import measure
from tests.eval.test_segment import HALVES, NAMES, striped
from tests.models.tiny import make_dual


def case(k=5, P=7, W=4, seed=0):
    rng = torch.Generator().manual_seed(seed)
    features = normalize(torch.randn(k, P, W, generator=rng, dtype=torch.float64), dim=-1)
    return features, torch.rand(k, P, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("numbers", [1, 500, 1 << 20])
def test_seeds_are_what_the_other_pictures_share(numbers):
    features, weights = case()
    expected = []
    for i, own in enumerate(features):
        scores = [
            sum(
                max(float(patch @ other) * float(w) for other, w in zip(features[j], weights[j], strict=True))
                for j in range(len(features))
                if j != i
            )
            for patch in own
        ]
        expected.append(scores.index(max(scores)))
    assert seed_patches(features, weights, numbers=numbers).tolist() == expected
    mean = sum(features[i, seed] for i, seed in enumerate(expected))
    torch.testing.assert_close(reference_of(features, weights), mean / mean.norm())


def test_a_common_patch_is_found_and_weights_keep_from_it():
    common, context = torch.eye(6)[0], torch.eye(6)[1]
    features = torch.eye(6)[2:].clone()[:, None].repeat(1, 3, 1)
    features[:, 1], features[:, 2] = common, context
    weights = torch.ones(4, 3)
    weights[:, 2] = eliminated(features, context[None])[:, 2]
    assert seed_patches(features, weights).tolist() == [1] * 4
    torch.testing.assert_close(reference_of(features, weights), common)
    assert seed_patches(features[:1], torch.tensor([[0.1, 0.2, 0.9]])).tolist() == [2]


def test_elimination_and_retrieval_by_hand():
    features = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    found = eliminated(features, torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    s = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    assert found[0].tolist() == pytest.approx([(1 - s(1)) * (1 - s(0)), (1 - s(0)) * (1 - s(-1))])
    archive = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    assert retrieved(torch.tensor([1.0, 0.0]), archive, k=3).tolist() == [1, 2, 3]
    assert len(retrieved(torch.tensor([1.0, 0.0]), archive, k=50)) == 4


@pytest.mark.parametrize("context", [(), ("blue",), ("blue", "red")])
def test_references_from_an_archive_segment(tmp_path, context):
    archive = colour_shard(tmp_path / "archive.tar")
    shard = write_shard(tmp_path / "a.tar", [striped(HALVES, [0] * 4 + [1] * 4)])
    part = ReCo(
        dataset="x", data=str(shard), archive=str(archive), names=NAMES, templates=("{}",), how="tokens",
        features="tokens", k=2, context=context,
    )  # fmt: skip
    found = measure(part, shard)
    assert found.metrics["mean_iou"] == 1.0
    assert found.selection["archive_images"] == 10
    assert found.selection["split"] == "none"
    assert set(found.files) == {"segmentation_reco.json"}
    assert part.others() == (part.archive,)


def test_reco_runs_on_a_model_of_open_clip_with_the_paper_s_defaults(tmp_path):
    archive = colour_shard(tmp_path / "archive.tar", per_colour=1)
    shard = write_shard(tmp_path / "a.tar", [striped(HALVES, [0] * 4 + [1] * 4)])
    part = ReCo(dataset="x", data=str(shard), archive=str(archive), names=NAMES, templates=("{}",), n_boot=5)
    assert (part.k, part.context, part.attention_scale, part.features) == (50, CONTEXT, 10.0, "hidden")
    found = measure(part, shard, make_dual())
    assert (found.n, found.head) == (1, "maskclip")
