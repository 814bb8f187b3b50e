"""Texts cut into a shared beginning and a rest: the same features as whole ones, and fewer tokens."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from vlp.models.model import Model
from vlp.models.shared_prefix import Group, can_share, groups, run_shared
from vlp.text.templates import fill, openai_imagenet

NAMES = ["cat", "tabby cat", "aircraft carrier", "hot dog", "crane", "dog", "Indian elephant"]


@pytest.fixture(scope="module")
def dual():
    torch.manual_seed(0)
    return Model(arch="vlp-nano").build().eval()


def tokens(ids, found):
    """Tokens that go through the tower."""
    return sum(group.length + sum(len(ids[place]) - group.length for place in group.places) for group in found)


def test_by_hand():
    ids = [[1, 5, 6, 9, 2], [1, 5, 6, 8, 2], [1, 7, 2], [1, 5, 6, 2]]
    found = groups(ids)
    assert sorted(place for group in found for place in group.places) == [0, 1, 2, 3]
    assert Group(3, [3, 1, 0]) in found
    assert tokens(ids, found) == 3 + 1 + 2 + 2 + 3
    assert groups([[1, 2], [1, 2]]) == [Group(1, [0, 1])]  # the end token is never shared
    assert groups([]) == []


def test_every_text_once_and_never_more_tokens_than_whole_texts(dual):
    ids = dual.tokenizer.encode([fill(template, name) for template in openai_imagenet() for name in NAMES])
    found = groups(ids)
    assert sorted(place for group in found for place in group.places) == list(range(len(ids)))
    for group in found:
        assert len({tuple(ids[place][: group.length]) for place in group.places}) == 1
        assert all(len(ids[place]) > group.length for place in group.places)
    assert tokens(ids, found) < 0.65 * sum(map(len, ids))


@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_the_features_are_those_of_whole_texts(dual, budget):
    texts = [fill(template, name) for template in openai_imagenet()[:9] for name in NAMES]
    texts += ["", "cat", "a photo", "a photo of"]
    ids = dual.tokenizer.encode(texts)
    found = torch.empty(len(ids), dual.dim)
    with torch.inference_mode():
        whole = torch.cat([dual.encode_text(torch.tensor([row])) for row in ids])
        for places, pooled in run_shared(dual.text_tower, ids, budget=budget):
            found[places] = normalize(pooled, dim=-1)
    torch.testing.assert_close(found, whole, atol=2e-6, rtol=0)


def test_towers_that_may_not_share(dual):
    assert can_share(dual.text_tower)
    handle = dual.text_blocks[0].register_forward_pre_hook(lambda *_: None)
    assert not can_share(dual.text_tower)
    handle.remove()
    torch.manual_seed(0)
    both_ways = Model(arch="vlp-nano").build()
    both_ways.text.attn_mask = None
    both_ways._ways.clear()
    assert not can_share(both_ways.text_tower)
