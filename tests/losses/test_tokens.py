"""Which tokens are kept, and how those of all ranks come together."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from tests.losses.token_compare import token_features
from vlp.losses import tokens as module
from vlp.losses.tokens import Tokens, nearness, own_tokens, pool_tokens, select


def _batch(make_batch, num=6):
    valid = [i != 2 for i in range(num)]
    mask = [[True, i != 4] for i in range(num)]
    return make_batch(num, captions=2, tokens=7, valid=valid, caption_mask=mask, label=[3, 1, 3, 1, 5, 7][:num])


def _tokens(make_batch, **settings):
    batch = _batch(make_batch)
    features = token_features(batch, **settings)
    return features, batch, own_tokens(features.image_tokens, features.text_tokens, batch)


def test_all_of_them_are_the_tokens_themselves(make_batch):
    _, _, tokens = _tokens(make_batch)
    for group in (None, 3, 4):  # also one that does not divide: nothing is chosen
        assert select(tokens, group=group) is tokens


@pytest.mark.parametrize("group", [1, 2, 3, 6])
@pytest.mark.parametrize("products", [1, 300, 1 << 20])
def test_nearness_equals_loops(make_batch, monkeypatch, group, products):
    monkeypatch.setattr(module, "_PRODUCTS", products)
    features, batch, tokens = _tokens(make_batch)
    patches, words = nearness(tokens, group=group)
    assert not patches.requires_grad
    for i in range(6):
        mates = [j for j in range(6) if j // group == i // group and batch.valid[j]]
        for p in range(5):
            near = [
                features.image_tokens[i, p] @ features.text_tokens[j, k, t]
                for j in mates
                for k in range(2)
                for t in range(7)
                if batch.token_mask[j, k, t]
            ]
            expected = max(near).item() if batch.valid[i] else -math.inf
            assert patches[i, p].item() == pytest.approx(expected, abs=1e-12)
        for k in range(2):
            for t in range(7):
                near = [features.text_tokens[i, k, t] @ features.image_tokens[j, p] for j in mates for p in range(5)]
                real = batch.valid[i] and batch.token_mask[i, k, t]
                assert words[i, k, t].item() == pytest.approx(max(near).item() if real else -math.inf, abs=1e-12)


@pytest.mark.parametrize(("image_keep", "text_keep"), [(0.5, 1.0), (1.0, 0.5), (0.25, 0.3), (0.01, 0.01)])
def test_kept_tokens_carry_gradient_and_others_none(make_batch, image_keep, text_keep):
    features, batch, tokens = _tokens(make_batch, patches=8)
    chosen = select(tokens, image_keep=image_keep, text_keep=text_keep, group=2)
    (chosen.image.sum() + chosen.text.sum()).backward()
    patches, words = nearness(tokens, group=2)
    for i in range(6):
        kept = math.ceil(image_keep * 8)
        found = features.image_tokens.grad[i].abs().sum(1) > 0
        assert found.sum() == (kept if batch.valid[i] else 0)
        if batch.valid[i]:
            assert set(found.nonzero().flatten().tolist()) == set(patches[i].topk(kept).indices.tolist())
        for k in range(2):
            length = int(batch.token_mask[i, k].sum()) if batch.valid[i] and batch.caption_mask[i, k] else 0
            kept = math.ceil(round(text_keep * length, 6))
            found = features.text_tokens.grad[i, k].abs().sum(1) > 0
            assert found.sum() == kept == chosen.words[i, k].sum()
            assert set(found.nonzero().flatten().tolist()) == set(words[i, k].topk(kept).indices.tolist())
    assert chosen.text[~chosen.words].abs().max() == 0


def test_each_side_has_its_own_share(make_batch):
    _, _, tokens = _tokens(make_batch, patches=8)
    only_image, only_text = select(tokens, image_keep=0.25), select(tokens, text_keep=0.25)
    assert only_image.image.shape[1] == 2
    assert only_image.text is tokens.text
    assert only_text.image is tokens.image
    assert only_text.words.sum(2).max() == 2
    assert only_text.text.shape[2] == 2  # ceil(7 / 4)


def test_shares_are_rounded_up_but_not_by_floating_point():
    assert [module.places_kept(0.1, n) for n in (0, 1, 10, 11, 30)] == [0, 1, 1, 2, 3]
    assert module.places_kept(0.25, 196) == 49


def test_of_equal_tokens_the_first_are_kept(make_batch):
    batch = make_batch(2, tokens=6)
    row = torch.eye(4, dtype=torch.float64)[0]
    tokens = own_tokens(row.expand(2, 5, 4), row.expand(2, 1, 6, 4), batch)
    patches, _ = nearness(tokens, group=1)
    assert module._best(patches, 3).tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("group", [None, 1, 2, 3])
def test_parts_of_whole_groups_choose_alike(make_batch, group):
    _, _, tokens = _tokens(make_batch)
    step = group or 1
    whole = select(tokens, image_keep=0.4, text_keep=0.4, group=group)
    parts = [
        select(Tokens(*(x[i : i + step] for x in tokens)), image_keep=0.4, text_keep=0.4, group=group)
        for i in range(0, 6, step)
    ]
    for found, expected in zip(zip(*parts), whole):
        torch.testing.assert_close(torch.cat(found), expected, atol=0, rtol=0)


def test_groups_that_do_not_divide_the_batch_are_refused(make_batch):
    _, _, tokens = _tokens(make_batch)
    with pytest.raises(ValueError, match=r"group=4 does not divide the 6 slots.*data.batch_size / processes"):
        select(tokens, image_keep=0.5, group=4)


def test_slots_that_are_not_valid_take_no_part(make_batch):
    features, batch, _ = _tokens(make_batch)
    with torch.no_grad():
        features.image_tokens[2], features.text_tokens[2] = math.nan, math.inf
        features.text_tokens[4, 1] = math.nan
    chosen = select(own_tokens(features.image_tokens, features.text_tokens, batch), image_keep=0.4, group=6)
    expected = select(_tokens(make_batch)[2], image_keep=0.4, group=6)
    for found, wanted in zip(chosen, expected):
        torch.testing.assert_close(found, wanted, atol=0, rtol=0)


def _gathered(rank, world, features, batch):
    part = batch.rows(rank * 3, rank * 3 + 3)
    longest = int(part.token_mask.sum(-1).max())
    text = features.text_tokens.detach()[rank * 3 : rank * 3 + 3, :, :longest]
    everyone = pool_tokens(own_tokens(features.image_tokens.detach()[rank * 3 : rank * 3 + 3], text, part), part)
    return longest, everyone


def test_pools_are_those_of_one_process(spawn, make_batch):
    features, batch, tokens = _tokens(make_batch)
    mask = batch.token_mask.clone()
    mask[3:, :, 4:] = False  # the second rank's texts are shorter
    batch = dataclasses.replace(batch, token_mask=mask)
    tokens = own_tokens(features.image_tokens, features.text_tokens, batch)
    alone = pool_tokens(tokens, batch)
    ranks = spawn(_gathered, 2, features._replace(scale=features.scale.detach()), batch)
    assert ranks[0][0] > ranks[1][0]
    for rank, (_, everyone) in enumerate(ranks):
        T = everyone.text.shape[2]
        assert ranks[0][0] == T
        assert everyone.own == slice(3 * rank, 3 * rank + 3)
        torch.testing.assert_close(everyone.image, alone.image, atol=0, rtol=0)
        torch.testing.assert_close(everyone.text, alone.text[:, :, :T], atol=0, rtol=0)
        assert torch.equal(everyone.words, alone.words[:, :, :T])
        assert torch.equal(everyone.real, alone.real)
        assert torch.equal(everyone.group, alone.group)
        assert everyone.num_captions == alone.real.sum()
