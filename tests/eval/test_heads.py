"""Retrieval and pairs by FLAIR's text-conditioned pooling, against loops and as benchmarks."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.functional import normalize

from eval.data import open_data
from eval.heads import Conditioned, file_name
from eval.retrieve import Retrieval
from eval.score import scores
from eval.suite import Suite, run_suite
from eval.two_stage import TwoStage
from eval.view import View
from tests.eval.colours import colour_shard
from vlp.embed import Encoder
from vlp.losses.flair import TextConditionedPooling
from vlp.models.model import Model


def sides(n=5, m=7, *, dim=8):
    torch.manual_seed(0)
    pooling = TextConditionedPooling(dim, num_heads=2)
    return pooling, normalize(torch.randn(n, 4, dim), dim=-1).half(), normalize(torch.randn(m, dim), dim=-1)


@torch.no_grad()
def loop(pooling, image, text):
    """[n, m], one pair at a time."""
    rows = []
    for patches in image.float():
        rows.append([float(pooling.condition(patches[None], y[None])[0, 0] @ y) for y in text])
    return torch.tensor(rows)


@pytest.mark.parametrize("numbers", [1, 300, 1 << 22])
def test_every_way_to_ask_gives_the_scores_of_single_pairs(numbers, monkeypatch):
    monkeypatch.setattr("eval.heads._NUMBERS", numbers)
    pooling, image, text = sides()
    expected, pairs = loop(pooling, image, text), Conditioned(image, text, pooling)
    torch.testing.assert_close(pairs.all("image", torch.tensor([3, 0])), expected[[3, 0]])
    torch.testing.assert_close(pairs.all("text", torch.tensor([6, 2])), expected.T[[6, 2]])
    torch.testing.assert_close(pairs.one("image", 2, torch.tensor([5, 1])), expected[2, [5, 1]])
    torch.testing.assert_close(pairs.one("text", 4, torch.tensor([0, 3])), expected[[0, 3], 4])
    torch.testing.assert_close(pairs.given([4, 0, 0, 2, 1, 3, 3]), expected[[4, 0, 0, 2, 1, 3, 3], torch.arange(7)])


def test_ranks_of_all_pairs_are_those_of_the_loop():
    pooling, image, text = sides(7, 7)
    found = TwoStage(
        normalize(torch.randn(7, 8), dim=-1), text, torch.arange(7), Conditioned(image, text, pooling), rerank=0
    ).ranks()
    table = loop(pooling, image, text)
    better = table > table.diag()
    assert found.text_to_image.tolist() == (1 + better.sum(0)).tolist()
    assert found.image_to_text.tolist() == (1 + (table > table.diag()[:, None]).sum(1)).tolist()


@pytest.fixture
def dual():
    torch.manual_seed(0)
    made = Model(arch="vlp-nano").build().eval()
    made.heads["flair"] = TextConditionedPooling(made.dim, num_heads=2)
    return made


def test_a_suite_by_the_pooling_the_run_has_trained(dual, tmp_path):
    shard = tmp_path / "one.tar"
    colour_shard(shard, per_colour=2)
    part = {"name": "retrieval", "dataset": "d", "data": str(shard), "captions": {"fields": ["captions"]}}
    suite = Suite(name="s", benchmarks=[part, {**part, "head": "conditioned", "rerank": 0}])
    pooled, conditioned = run_suite(Encoder(dual, quiet=True), suite, out=tmp_path / "out")
    assert (pooled.head, conditioned.head) == ("global", "conditioned")
    assert conditioned.counts["reranked"] == 20
    folder = tmp_path / "out" / "eval" / "d"
    for stem in ("ranks", "retrieval"):
        assert (folder / file_name(stem, "conditioned")).is_file()
    first, second = (json.loads((folder / name).read_text()) for name in ("ranks.json", "ranks_conditioned.json"))
    assert first["keys"] == second["keys"]
    assert first != second


def test_given_pairs_and_a_model_without_the_layer(dual, tmp_path):
    shard = tmp_path / "one.tar"
    colour_shard(shard, per_colour=2)
    part = Retrieval(dataset="d", data=str(shard), head="conditioned")
    view = View(Encoder(dual, quiet=True), open_data(part.data), dataset="d")
    texts = ["a red square", "a blue square", "a green square"]
    found = scores(view, [2, 0, 2], texts, head="conditioned")
    pooling, image = dual.heads["flair"], view.image_tokens().tokens
    expected = loop(pooling, image[[2, 0]], view.text_features(texts))
    torch.testing.assert_close(found, expected[[0, 1, 0], [0, 1, 2]])
    del dual.heads["flair"]
    with pytest.raises(ValueError, match="trained the loss flair"):
        part.measure(view)
