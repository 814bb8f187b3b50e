"""Two-stage retrieval against loops, by hand, and as a benchmark; alignments of models trained with tokens."""

from __future__ import annotations

import base64
import io
import json

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from eval.alignments import _short
from eval.data import open_data
from eval.heads import ByTokens
from eval.retrieve import Retrieval
from eval.suite import Suite, run_suite
from eval.two_stage import TwoStage
from eval.view import View
from tests.eval.colours import colour_shard
from vlp.embed import Encoder
from vlp.explain import AlignedWord, Alignment
from vlp.models.model import Model
from vlp.token_store import ImageTokens, TextTokens


def drawn(n=6, captions=(2, 1, 3, 1, 1, 2), *, dim=5, seed=0):
    torch.manual_seed(seed)
    unit = lambda *shape: normalize(torch.randn(*shape, dim), dim=-1)  # noqa: E731
    m = sum(captions)
    mask = torch.arange(6) < torch.randint(1, 6, (m, 1))
    image = ImageTokens(unit(n), unit(n, 4).half(), list(range(n)), [])
    text = TextTokens(unit(m), (unit(m, 6) * mask[..., None]).half(), mask)
    return image, text, torch.arange(n).repeat_interleave(torch.tensor(captions))


def stages(image, text, place, *, rerank, block=256, pad_max="exclude"):
    return TwoStage(image.features, text.features, place, ByTokens(image, text, pad_max), rerank=rerank, block=block)


def late(image, text, i, j, *, pad_max="exclude"):
    """Both directions of one pair, in loops."""
    patches, words = image.tokens[i].double(), text.tokens[j][text.mask[j]].double()
    floor = [0.0] if pad_max == "zero" else []
    to_text = sum(max([*(float(p @ w) for w in words), *floor]) for p in patches) / len(patches)
    to_image = sum(max(float(p @ w) for p in patches) for w in words) / len(words)
    return to_text, to_image


def order(pooled, fine, k):
    """Gallery rows from best to worst: the first k of the pooled order by `fine`, the rest as they stood."""
    first = sorted(range(len(pooled)), key=lambda g: -pooled[g])
    return sorted(first[:k], key=lambda g: -fine[g]) + first[k:]


@pytest.mark.parametrize("rerank", [1, 2, 4, 9, 10, 0, 128])
@pytest.mark.parametrize(("block", "pad_max"), [(1, "exclude"), (4, "zero"), (100, "exclude")])
def test_ranks_are_those_of_the_whole_order_made_in_loops(rerank, block, pad_max):
    image, text, place = drawn()
    n, m = len(image.features), len(place)
    found = stages(image, text, place, rerank=rerank, block=block, pad_max=pad_max).ranks()
    for j in range(m):
        pooled = (image.features.double() @ text.features[j].double()).tolist()
        lined = order(pooled, [late(image, text, i, j)[1] for i in range(n)], rerank or n)
        assert found.text_to_image[j] == 1 + lined.index(int(place[j]))
    for i in range(n):
        pooled = (text.features.double() @ image.features[i].double()).tolist()
        lined = order(pooled, [late(image, text, i, j, pad_max=pad_max)[0] for j in range(m)], rerank or m)
        first = min(lined.index(j) for j in range(m) if place[j] == i)
        assert found.image_to_text[i] == 1 + first  # whatever stands in front of the first right one is wrong


def test_as_many_candidates_as_the_gallery_has_are_full_late_interaction():
    image, text, place = drawn(seed=1)
    whole = stages(image, text, place, rerank=0).ranks()
    for rerank in (len(place), 10_000):
        many = stages(image, text, place, rerank=rerank).ranks()
        assert torch.equal(many.image_to_text, whole.image_to_text)
        assert torch.equal(many.text_to_image, whole.text_to_image)
    pooled_only = stages(image, text, place, rerank=1).ranks()
    assert not torch.equal(pooled_only.text_to_image, whole.text_to_image)


def by_hand():
    """Pooled features that mix up two pictures, tokens that do not."""
    e = torch.eye(4)
    image = ImageTokens(e[[0, 1]], torch.stack([e[[0, 2]], e[[1, 3]]]).half(), [0, 1], [])
    text = TextTokens(e[[1, 0]], torch.stack([e[[0, 2]], e[[1, 3]]]).half(), torch.ones(2, 2, dtype=torch.bool))
    return image, text, torch.tensor([0, 1])


def test_tokens_change_the_order():
    image, text, place = by_hand()
    both = stages(image, text, place, rerank=2)
    assert [part.tolist() for part in both.ranks()] == [[1, 1], [1, 1]]
    assert [part.tolist() for part in stages(image, text, place, rerank=1).ranks()] == [[2, 2], [2, 2]]
    best = both.best("text", torch.tensor([0]), k=2)
    assert (best.rows.tolist(), best.scores.tolist()) == ([[0, 1]], [[1.0, 0.0]])
    assert stages(image, text, place, rerank=1).best("image", torch.tensor([0]), k=2).rows.tolist() == [[1, 0]]


def test_ties_count_against_the_model_also_at_the_end_of_the_candidates():
    image, text, place = drawn(4, (1, 1, 1, 1))
    same = ImageTokens(image.features[[0, 0, 0, 0]], image.tokens[[0, 0, 0, 0]], image.kept[:4], [])
    for rerank in (1, 2, 3, 0):
        assert stages(same, text, place, rerank=rerank).ranks().text_to_image.tolist() == [4] * 4


@pytest.fixture(scope="module")
def dual():
    torch.manual_seed(0)
    return Model(arch="vlp-nano").build().eval()


def test_both_heads_stand_in_one_suite_and_the_record_says_which(dual, tmp_path):
    colour_shard(tmp_path / "one.tar", per_colour=2, broken=1)
    part = {
        "name": "retrieval",
        "dataset": "d",
        "data": str(tmp_path / "one.tar"),
        "captions": {"fields": ["captions"]},
    }
    suite = Suite(name="s", benchmarks=[{**part, "head": "tokens", "rerank": 3}, {**part, "name": "retrieval"}])
    dual.set_needs({"image_tokens", "text_tokens"})
    calls = []
    encode = dual.encode_image
    dual.encode_image = lambda image: calls.append(len(image)) or encode(image)
    try:
        tokens, pooled = run_suite(Encoder(dual, quiet=True), suite, out=tmp_path / "out")
    finally:
        dual.set_needs(())
        del dual.encode_image
    assert calls == []  # features came with the tokens
    assert (tokens.head, pooled.head) == ("tokens", "global")
    assert tokens.counts == {"images": 10, "texts": 20, "reranked": 3}
    assert tokens.chance == pooled.chance
    folder = tmp_path / "out" / "eval" / "d"
    shown = json.loads((folder / "retrieval_tokens.json").read_text())
    assert shown["num_texts"] == 20
    assert (folder / "retrieval.json").is_file()
    aligned = json.loads((folder / "alignment.json").read_text())
    assert len(aligned["pairs"]) == 4
    for pair in aligned["pairs"]:
        assert pair["grid"] == [4, 4]
        assert len(pair["phrase"]) == len(pair["best"]) == 16
        assert all(len(word["map"]) == 16 for word in pair["words"])
        assert Image.open(io.BytesIO(base64.b64decode(pair["picture"]))).size == (32, 32)
    assert (folder / "alignment.json").stat().st_size < 60_000


def test_of_a_long_caption_the_words_that_patches_chose_are_kept(monkeypatch):
    monkeypatch.setattr("eval.alignments.SHOWN_WORDS", 3)
    made = [AlignedWord(f"w{n}", False, n / 10, torch.zeros(4)) for n in range(6)]
    found = Alignment(
        "t", made, torch.zeros(4), torch.tensor([0, 0, 2, 0]), (2, 2), 0.0, 0.0, 0.0, None, torch.zeros(3)
    )
    short = _short(found)
    assert [word.text for word in short.words] == ["w0", "w2", "w5"]
    assert short.best.tolist() == [0, 0, 1, 0]
    monkeypatch.setattr("eval.alignments.SHOWN_WORDS", 1)
    assert _short(found).best.tolist() == [0, 0, -1, 0]


def test_shown_answers_agree_with_the_ranks(dual, tmp_path):
    colour_shard(tmp_path / "one.tar", per_colour=2)
    part = Retrieval(dataset="d", data=str(tmp_path / "one.tar"), head="tokens", rerank=4)
    found = part.measure(View(Encoder(dual, quiet=True), open_data(part.data), dataset="d"))
    shown = found.files["retrieval_tokens.json"]
    assert "alignment.json" not in found.files  # no loss taught this model tokens
    for query in (*shown["text_to_image"], *shown["image_to_text"]):
        if any(query["correct"]):
            assert query["rank"] >= 1 + query["correct"].index(True)  # equal but for ties
    assert sum(any(query["correct"]) for query in shown["text_to_image"]) > 0
