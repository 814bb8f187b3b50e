"""Ranks against a loop, invariances, hand-made examples, and what random scores reach."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from vlp.metrics.recall import TIE, RecallAtK, best_answers, retrieval_ranks


def unit(*shape, seed=0):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def loop_ranks(image, text, caption_image):
    """Written from the definition: 1 + wrong answers that score at least as well as the best right one."""
    scores = image.double() @ text.double().T
    to_text = []
    for i in range(len(image)):
        right = [m for m in range(len(text)) if caption_image[m] == i]
        best = max(scores[i, m] for m in right)
        to_text.append(1 + sum(bool(scores[i, m] >= best - TIE) for m in range(len(text)) if m not in right))
    to_image = []
    for m in range(len(text)):
        own = scores[caption_image[m], m]
        others = [i for i in range(len(image)) if i != caption_image[m]]
        to_image.append(1 + sum(bool(scores[i, m] >= own - TIE) for i in others))
    return to_text, to_image


@pytest.mark.parametrize("captions", [1, 3])
def test_ranks_equal_the_loop_also_with_copies(captions):
    image, text = unit(17, 8), unit(17 * captions, 8, seed=1)
    image[5], image[6] = image[4], image[4]
    text[3], text[9] = text[7], text[7]
    caption_image = torch.arange(17 * captions) % 17
    ranks = retrieval_ranks(image, text, caption_image, block=5)
    assert (ranks.image_to_text.tolist(), ranks.text_to_image.tolist()) == loop_ranks(image, text, caption_image)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 30), k=st.integers(1, 4), seed=st.integers(0, 99), block=st.integers(1, 130))
def test_no_block_size_changes_a_rank(n, k, seed, block):
    image, text = unit(n, 6, seed=seed), unit(n * k, 6, seed=seed + 100)
    text[: n // 2] = image[: n // 2]  # perfect pairs
    image[n // 3] = image[0]  # and copies, where rounding would decide
    caption_image = torch.arange(n * k) % n
    whole = retrieval_ranks(image, text, caption_image, block=10**6)
    parts = retrieval_ranks(image, text, caption_image, block=block)
    assert torch.equal(whole.image_to_text, parts.image_to_text)
    assert torch.equal(whole.text_to_image, parts.text_to_image)


def test_a_copy_of_the_right_picture_ties_and_counts_against_the_model():
    image = unit(1, 64).expand(40, 64).contiguous()  # forty equal pictures
    ranks = retrieval_ranks(image, unit(40, 64, seed=3), torch.arange(40), block=7)
    assert ranks.text_to_image.tolist() == [40] * 40


def test_a_model_that_says_the_same_of_everything_gets_nothing():
    image, text = torch.ones(20, 4) / 2, torch.ones(20, 4) / 2
    ranks = retrieval_ranks(image, text, torch.arange(20))
    assert ranks.image_to_text.tolist() == [20] * 20 == ranks.text_to_image.tolist()


def test_features_that_are_not_numbers_rank_last():
    image, text = unit(5, 4), unit(5, 4)
    image[2] = torch.nan
    ranks = retrieval_ranks(image, text, torch.arange(5))
    assert ranks.image_to_text[2] == 5
    assert ranks.text_to_image[2] == 5


def test_five_captions_of_two_pictures_by_hand():
    # angles in degrees: picture 0 at 0, picture 1 at 90
    angle = torch.deg2rad(torch.tensor([10.0, 80.0, 50.0, 30.0, 60.0]))
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    text = torch.stack([angle.cos(), angle.sin()], dim=1)
    caption_image = torch.tensor([0, 0, 0, 1, 1])  # 10, 80, 50 describe picture 0; 30, 60 describe picture 1
    ranks = retrieval_ranks(image, text, caption_image)
    assert ranks.text_to_image.tolist() == [1, 2, 2, 2, 1]
    # picture 0: its best is 10, nothing wrong is nearer. Picture 1: its best is 60, but 80 of picture 0 is nearer
    assert ranks.image_to_text.tolist() == [1, 2]
    recall = RecallAtK("text_retrieval", candidates=5, k=(1, 2))
    recall.update(ranks.image_to_text, positives=torch.tensor([3, 2]))
    values = recall.compute()
    assert values["text_retrieval_recall@1"] == 0.5
    assert values["text_retrieval_recall@2"] == 1.0
    assert values["text_retrieval_mean_rank"] == 1.5 == values["text_retrieval_median_rank"]


def test_random_scores_reach_chance():
    n, draws = 40, 150
    recall = RecallAtK("image_retrieval", candidates=n, k=(1, 5, 10))
    caption = RecallAtK("text_retrieval", candidates=2 * n, k=(1, 5, 10))
    for seed in range(draws):
        ranks = retrieval_ranks(unit(n, 64, seed=seed), unit(2 * n, 64, seed=seed + 1000), torch.arange(2 * n) % n)
        recall.update(ranks.text_to_image)
        caption.update(ranks.image_to_text, positives=torch.full((n,), 2))
    for part in (recall, caption):
        chance = part.chance()
        for name, value in part.compute().items():
            assert value == pytest.approx(chance[name], rel=0.08), name
    assert recall.chance()["image_retrieval_recall@5"] == pytest.approx(5 / n)
    assert recall.chance()["image_retrieval_mean_rank"] == pytest.approx((n + 1) / 2)


def test_states_merge_to_the_whole():
    ranks = torch.tensor([1, 3, 7, 20, 2])
    whole, left, right = (RecallAtK("image_retrieval", candidates=20) for _ in range(3))
    whole.update(ranks, groups=torch.tensor([0, 0, 1, 1, 2]))
    left.update(ranks[:2], groups=torch.tensor([0, 0]))
    right.update(ranks[2:], groups=torch.tensor([1, 1, 2]))
    left.merge(right)
    assert left.compute() == whole.compute()
    assert left.intervals() == whole.intervals()
    with pytest.raises(ValueError, match="cannot be merged"):
        left.merge(RecallAtK("text_retrieval", candidates=20))


def test_captions_of_one_picture_are_drawn_together():
    ranks = torch.tensor([1, 50] * 50).repeat_interleave(5)  # five captions succeed or fail together
    alone, grouped = RecallAtK("image_retrieval", candidates=100), RecallAtK("image_retrieval", candidates=100)
    alone.update(ranks)
    grouped.update(ranks, groups=torch.arange(100).repeat_interleave(5))
    width = lambda part: (i := part.intervals()["image_retrieval_recall@1"]).high - i.low  # noqa: E731
    assert width(grouped) / width(alone) == pytest.approx(5**0.5, rel=0.2)


def test_a_picture_without_caption_is_refused_by_number():
    with pytest.raises(ValueError, match=r"without: \[1\]"):
        retrieval_ranks(unit(2, 4), unit(2, 4), torch.tensor([0, 0]))


def test_best_answers_are_the_argsort():
    query, gallery = unit(9, 8), unit(30, 8, seed=5)
    found = best_answers(query, gallery, k=4, block=2)
    assert torch.equal(found.rows, (query @ gallery.T).argsort(dim=1, descending=True)[:, :4])
    assert best_answers(query, gallery[:3], k=5).rows.shape == (9, 3)


def test_equal_to_the_published_recall_where_nothing_ties():
    """CLIP_benchmark's definition, re-stated: the top k of a full sort."""
    n, k = 50, 5
    image, text = unit(n, 32), unit(n * 5, 32, seed=9)
    owner = torch.arange(n * 5) // 5
    ranks = retrieval_ranks(image, text, owner)
    scores = text @ image.T
    theirs = (scores.topk(k, dim=1).indices == owner[:, None]).any(dim=1)
    assert torch.equal(ranks.text_to_image <= k, theirs)
    theirs = (owner[scores.T.topk(k, dim=1).indices] == torch.arange(n)[:, None]).any(dim=1)
    assert torch.equal(ranks.image_to_text <= k, theirs)
