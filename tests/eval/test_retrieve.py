"""Retrieval by pooled features: numbers that count every caption of a picture, against loops."""

from __future__ import annotations

import pytest
import torch

from eval.data import open_data
from eval.retrieve import Retrieval
from eval.view import Texts, View
from tests.eval.colours import colour_shard
from vlp.embed import Encoder
from vlp.models.model import Model


def test_all_captions_of_a_picture_and_average_precision_equal_loops(tmp_path):
    torch.manual_seed(0)
    colour_shard(tmp_path / "a.tar", per_colour=4)
    dual = Model(arch="vlp-nano").build().eval()
    asked = {"dataset": "d", "data": str(tmp_path / "a.tar"), "captions": {"fields": ["captions"]}, "k": (1, 3, 7)}
    part = Retrieval(**asked, all_captions=True, n_boot=20)
    view = View(Encoder(dual, quiet=True), open_data(part.data), dataset="d")
    # pictures of one colour have equal captions, which tie, so each gets words of its own
    texts = [f"{a} {b} picture {i}" for i in range(20) for a, b in (("red", "dog"), ("one", "house"))]
    view.texts = lambda fields, purpose: Texts(texts, torch.arange(20).repeat_interleave(2), {})
    found = part.measure(view)
    scores = (view.image.double() @ view.text_features(texts).double().T).tolist()
    shares, precisions = {1: [], 3: [], 7: []}, []
    for row, own in enumerate(scores):
        right = {2 * row, 2 * row + 1}
        # of equal scores wrong answers stand in front
        order = sorted(range(40), key=lambda j: -(own[j] - 1e-6 * (j in right)))
        places = sorted(order.index(j) + 1 for j in right)
        precisions.append(sum((n + 1) / place for n, place in enumerate(places)) / 2)
        for k, values in shares.items():
            values.append(sum(place <= k for place in places) / 2)
    assert found.metrics["text_retrieval_mAP"] == pytest.approx(sum(precisions) / 20)
    for k, values in shares.items():
        assert found.metrics[f"text_retrieval_all_recall@{k}"] == pytest.approx(sum(values) / 20)
        assert found.chance[f"text_retrieval_all_recall@{k}"] == k / 40
    assert 1 / 20 < found.metrics["image_retrieval_mAP"] <= 1
    for name in ("text_retrieval_mAP", "image_retrieval_mAP", "text_retrieval_all_recall@3"):
        low, high = found.ci95[name]
        assert low <= found.metrics[name] <= high
        assert 0 < found.chance[name] < 1
    plain = Retrieval(**asked, n_boot=20).measure(view).metrics
    assert plain == {name: found.metrics[name] for name in plain}
    with pytest.raises(ValueError, match="all_captions: only of head: global, since tokens orders"):
        Retrieval(**asked, all_captions=True, head="tokens")
