"""Several right answers a query: against loops and scikit-learn, every order for chance, ties, blocks, merging."""

from __future__ import annotations

import math
from itertools import permutations
from statistics import mean

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch.nn.functional import normalize

from vlp.metrics.ranking import (
    LabelRetrieval,
    expected_average_precision,
    expected_inverse_negative_penalty,
    label_ranks,
)
from vlp.metrics.recall import TIE, retrieval_ranks


def unit(*shape, seed=0):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def case(queries=23, gallery=40, labels=6, *, dim=8):
    query, known = unit(queries, dim), unit(gallery, dim, seed=1)
    known[3], known[9], known[11] = known[7], known[7], query[0]
    return query, known, torch.arange(queries) % labels, torch.arange(gallery) * 7 % labels


def loop(query, gallery, query_label, gallery_label, k):
    """From the definition, one query at a time: wrong answers first where scores tie."""
    found = []
    for q, label in zip(query, query_label):
        scores = (gallery.double() @ q.double()).tolist()
        right = [bool(g == label) for g in gallery_label]
        order = sorted(range(len(scores)), key=lambda i: -(scores[i] - TIE * right[i]))
        hit = [right[i] for i in order]
        places = [i + 1 for i, h in enumerate(hit) if h]
        precisions = [(j + 1) / place for j, place in enumerate(places)]
        ap = mean(precisions) if precisions else math.nan
        found.append((ap, places, [sum(hit[:depth]) for depth in k]))
    return found


@pytest.mark.parametrize("block", [1, 5, 1000])
def test_equals_the_loop_with_copies_for_every_size_of_block(block):
    given, k = case(), (1, 5, 100)
    ranks = label_ranks(*given, precision_at=k, block=block)
    for i, (ap, places, hits) in enumerate(loop(*given, k)):
        assert float(ranks.average_precision[i]) == pytest.approx(ap)
        assert (int(ranks.first[i]), int(ranks.last[i])) == (places[0], places[-1])
        assert ranks.hits[i].tolist() == hits
        assert int(ranks.positives[i]) == len(places)


def test_average_precision_equals_scikit_learn_where_nothing_ties():
    query, gallery, query_label, gallery_label = (
        unit(15, 16),
        unit(60, 16, seed=1),
        torch.arange(15),
        torch.arange(60) % 15,
    )
    ranks = label_ranks(query, gallery, query_label, gallery_label)
    scores, right = (query @ gallery.T).numpy(), (query_label[:, None] == gallery_label).numpy()
    theirs = [average_precision_score(r, s) for r, s in zip(right, scores)]
    assert ranks.average_precision.tolist() == pytest.approx(theirs, abs=1e-9)


def test_first_ranks_are_those_of_retrieval_with_one_right_answer():
    image, text = unit(12, 4), unit(36, 4, seed=2)
    image[5] = image[4]
    owner = torch.arange(36) % 12
    assert torch.equal(
        label_ranks(text, image, owner, torch.arange(12)).first, retrieval_ranks(image, text, owner).text_to_image
    )
    first = label_ranks(image, text, torch.arange(12), owner).first
    assert (first <= retrieval_ranks(image, text, owner).image_to_text).all()  # there other captions are set aside
    assert (first == 1).tolist() == (retrieval_ranks(image, text, owner).image_to_text == 1).tolist()


def test_by_hand():
    # one query along the first axis; the gallery falls off from it as right, wrong, right, wrong
    angle = torch.deg2rad(torch.tensor([0.0, 10.0, 20.0, 30.0]))
    gallery = torch.stack([angle.cos(), angle.sin()], dim=1)
    found = LabelRetrieval("image", candidates=4, recall_at=(1, 2), precision_at=(2, 3, 8))
    ranks = label_ranks(
        torch.tensor([[1.0, 0.0]]), gallery, torch.tensor([5]), torch.tensor([5, 1, 5, 2]), precision_at=(2, 3, 8)
    )
    found.update(ranks)
    assert found.compute() == {
        "image_mAP": pytest.approx((1 + 2 / 3) / 2),
        "image_mINP": pytest.approx(2 / 3),
        "image_recall@1": 1.0,
        "image_recall@2": 1.0,
        "image_precision@2": 0.5,
        "image_precision@3": pytest.approx(2 / 3),
        "image_precision@8": 0.25,
    }


def test_a_model_that_says_the_same_of_everything_gets_nothing():
    same = torch.ones(20, 4) / 2
    labels = torch.arange(20) % 10
    for features in (same, torch.full((20, 4), torch.nan)):
        ranks = label_ranks(features, same, labels, labels, precision_at=(10,))
        assert ranks.first.tolist() == [19] * 20
        assert ranks.last.tolist() == [20] * 20
        assert ranks.hits.sum() == 0


def test_wrong_answers_that_are_not_numbers_are_ahead_and_right_ones_last():
    gallery = unit(5, 4)
    gallery[0], gallery[1] = torch.nan, torch.nan
    ranks = label_ranks(gallery[2:3], gallery, torch.tensor([0]), torch.tensor([1, 0, 0, 2, 2]))
    assert (int(ranks.first), int(ranks.last)) == (2, 5)


def state(ranks, **options):
    found = LabelRetrieval("person", candidates=40, **options)
    found.update(ranks)
    return found


def test_queries_without_a_right_answer_are_left_out_and_counted():
    query, gallery, query_label, gallery_label = case()
    query_label[[2, 5]] = 99
    kept = query_label != 99
    groups = torch.arange(len(query)) // 2
    found, clean = LabelRetrieval("person", candidates=40), LabelRetrieval("person", candidates=40)
    found.update(label_ranks(query, gallery, query_label, gallery_label), groups=groups)
    clean.update(label_ranks(query[kept], gallery, query_label[kept], gallery_label), groups=groups[kept])
    assert found.skipped == {"query_without_a_right_answer": 2}
    assert clean.skipped == {}
    assert (found.compute(), found.intervals(n_boot=30), found.chance()) == (
        clean.compute(),
        clean.intervals(n_boot=30),
        clean.chance(),
    )
    nothing = state(label_ranks(query[:1], gallery, torch.tensor([99]), gallery_label))
    assert (nothing.compute(), nothing.intervals(), nothing.chance()) == ({}, {}, {})


def test_states_merge_to_the_whole():
    query, gallery, query_label, gallery_label = case()
    parts = [
        label_ranks(query[rows], gallery, query_label[rows], gallery_label) for rows in (slice(0, 9), slice(9, 23))
    ]
    whole, (left, right) = state(label_ranks(query, gallery, query_label, gallery_label)), map(state, parts)
    left.merge(right)
    assert left.compute() == pytest.approx(whole.compute())
    theirs = whole.intervals(n_boot=30)
    for name, ends in left.intervals(n_boot=30).items():
        assert ends == pytest.approx(theirs[name]), name
    with pytest.raises(ValueError, match="cannot be merged"):
        left.merge(LabelRetrieval("person", candidates=41))


def test_captions_of_one_identity_are_drawn_together():
    query, gallery = unit(40, 8).repeat_interleave(5, dim=0), unit(40, 8, seed=1)
    label = torch.arange(40)
    ranks = label_ranks(query, gallery, label.repeat_interleave(5), label)
    alone, grouped = state(ranks), LabelRetrieval("person", candidates=40)
    grouped.update(ranks, groups=label.repeat_interleave(5))
    width = lambda part: (i := part.intervals()["person_mAP"]).high - i.low  # noqa: E731
    assert width(grouped) / width(alone) == pytest.approx(5**0.5, rel=0.2)
    grouped.update(ranks)
    with pytest.raises(ValueError, match="some queries"):
        grouped.intervals()


@pytest.mark.parametrize("positives", [1, 2, 3, 5])
def test_chance_equals_counting_all_orders(positives):
    aps, inps = [], []
    for order in permutations(range(5)):
        places = sorted(order.index(p) + 1 for p in range(positives))
        aps.append(mean((j + 1) / place for j, place in enumerate(places)))
        inps.append(positives / places[-1])
    some = torch.tensor([positives])
    assert expected_average_precision(candidates=5, positives=some) == pytest.approx(mean(aps))
    assert expected_inverse_negative_penalty(candidates=5, positives=some) == pytest.approx(mean(inps))


def test_chance_of_mixed_queries_and_large_galleries():
    mixed = torch.tensor([1, 3, 3])
    for expected in (expected_average_precision, expected_inverse_negative_penalty):
        each = [expected(candidates=9, positives=torch.tensor([g])) for g in (1, 3, 3)]
        assert expected(candidates=9, positives=mixed) == pytest.approx(mean(each))
    assert expected_average_precision(candidates=1, positives=torch.tensor([1])) == pytest.approx(1)
    assert expected_average_precision(candidates=10**7, positives=torch.tensor([10**6])) == pytest.approx(0.1, rel=1e-4)
    assert expected_inverse_negative_penalty(candidates=10**5, positives=torch.tensor([500])) == pytest.approx(
        500 / 10**5 * 501 / 500, rel=1e-4
    )  # the last of 500 lies near rank M * G / (G + 1)


def test_random_features_reach_chance():
    label, gallery_label = torch.arange(50) % 10, torch.arange(40) % 10
    found = LabelRetrieval("image", candidates=40, precision_at=(5, 60))
    for seed in range(150):
        ranks = label_ranks(
            unit(50, 32, seed=seed), unit(40, 32, seed=seed + 500), label, gallery_label, precision_at=(5, 60)
        )
        found.update(ranks)
    chance = found.chance()
    assert chance["image_precision@5"] == pytest.approx(0.1)
    assert chance["image_recall@1"] == pytest.approx(0.1)
    for name, value in found.compute().items():
        assert value == pytest.approx(chance[name], rel=0.1), name


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="one label"):
        label_ranks(unit(2, 4), unit(3, 4), torch.arange(2), torch.arange(2))
    with pytest.raises(ValueError, match="gallery is empty"):
        label_ranks(unit(2, 4), unit(0, 4), torch.arange(2), torch.arange(0))
    with pytest.raises(ValueError, match=r"precision_at=\(5, 10, 100\)"):
        state(label_ranks(*case(), precision_at=(1,)))
    assert label_ranks(unit(0, 4), unit(3, 4), torch.arange(0), torch.arange(3)).hits.shape == (0, 3)
    assert np.isnan(label_ranks(unit(1, 4), unit(3, 4), torch.tensor([9]), torch.arange(3)).average_precision.item())
