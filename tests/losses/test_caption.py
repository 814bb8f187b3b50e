"""CoCa's captioning term against captions read word by word."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import pad

from tests.losses.compare import awkward
from tests.losses.heads import (
    assert_gradcache_exact,
    assert_learns,
    assert_sound,
    drawn,
    headed,
    real_batch,
    with_extra,
)
from tests.models.test_text_hf import SIZES
from tests.models.tiny import NANO
from vlp.losses import LOSSES
from vlp.losses.caption import Caption, num_heads
from vlp.losses.vocabulary import token_table

CONVOLUTIONS = copy.deepcopy(NANO)
CONVOLUTIONS["vision_cfg"] = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8, "patch_size": None}


@pytest.fixture
def batch():
    return real_batch(views=0, momentum=False)


def _word_by_word(model, batch):
    """Each token from a run of the text tower on the tokens before it alone."""
    head = model.heads["caption"]
    table = token_table(model.text).weight if head.vocabulary.weight is None else head.vocabulary.weight
    sums, counts = torch.zeros(len(batch), dtype=torch.float64), torch.zeros(len(batch), dtype=torch.long)
    for b in range(len(batch)):
        patches = model.image_tower.run(model.pixels(batch.image[b : b + 1]), tokens=True).hidden
        for k in range(batch.text.shape[1]):
            if not batch.valid[b] or not batch.caption_mask[b, k]:
                continue
            ids = batch.text[b, k, : int(batch.token_mask[b, k].sum())]
            for t in range(len(ids) - 1):
                before = model.embed(ids[None, : t + 1])
                mask, end = torch.ones(1, t + 1, dtype=torch.bool), torch.tensor([t])
                x = model.text_tower.run(before, mask, end, tokens=True).hidden
                ahead = torch.ones(t + 1, t + 1).triu(1).bool()
                for layer in head.layers:
                    x = layer(x[:, None], head.image(patches), ahead)[:, 0]
                logits = head.vocabulary.transform(x[0, -1]) @ table.T + head.vocabulary.bias
                sums[b] = sums[b] - logits.log_softmax(0)[ids[t + 1]]
                counts[b] += 1
    return sums, counts


@pytest.mark.parametrize("config", [NANO, CONVOLUTIONS], ids=["vit", "resnet"])
@pytest.mark.parametrize("tied", [True, False])
def test_equals_word_by_word(batch, config, tied):
    loss = LOSSES.build({"name": "caption", "tied": tied})
    model = headed([loss], config).eval()
    features = model(batch)
    sums, counts = _word_by_word(model, batch)
    torch.testing.assert_close(features.extra["caption/nll"], sums, atol=1e-9, rtol=1e-9)
    assert torch.equal(features.extra["caption/count"], counts)
    term = loss(features, batch)["caption"]
    torch.testing.assert_close(term, sums.sum() / counts.sum(), atol=1e-9, rtol=1e-9)


def test_is_sound(make_batch, make_features, spawn):
    features, batch = awkward(make_batch, make_features)
    counts = torch.tensor([3, 1, 0, 5, 2, 4, 9, 1])
    features = with_extra(features, caption_nll=drawn(8, seed=1).abs() * 5, caption_count=counts)
    assert_sound(Caption(), features, batch, spawn)


def test_padding_changes_nothing(batch):
    loss = Caption()
    model = headed([loss])
    longer = replace(batch, text=pad(batch.text, (0, 3), value=50), token_mask=pad(batch.token_mask, (0, 3)))
    terms = [loss(model(b), b)["caption"] for b in (batch, longer)]
    torch.testing.assert_close(terms[0], terms[1], atol=1e-12, rtol=0)


def test_the_picture_helps(batch):
    """Captions that say which picture it is behind the same word: alone unknowable, known from the picture."""
    loss = Caption(layers=1)
    model, B = headed([loss]), len(batch)
    text = torch.full((B, 1, 4), 5)
    text[:, 0, 1] = 10 + torch.arange(B)
    whole = torch.ones(B, 1, 3, dtype=torch.bool)
    told = replace(batch, text=text[..., :3], token_mask=whole, caption_mask=whole[..., 0], valid=torch.ones(B) > 0)
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        adam.zero_grad()
        loss(model(told), told)["caption"].backward()
        adam.step()
    swapped = replace(told, image=told.image.flip(0))
    known, other = (loss(model(b), b)["caption"].item() for b in (told, swapped))
    blind = math.log(B) / 2  # of two tokens a caption the first one is even over the pictures
    assert known < blind / 2 < other


def test_with_a_real_model(batch):
    assert_gradcache_exact([Caption()], batch)
    assert_learns([Caption(layers=1)], batch, least=0.5)


def test_a_text_tower_that_looks_ahead_is_refused():
    both_ways = copy.deepcopy(NANO)
    both_ways["text_cfg"]["no_causal_mask"] = True
    for settings in ({"config": both_ways}, {"ours": {"text": {"hf": {"model_type": "bert", **SIZES}}}}):
        with pytest.raises(ValueError, match="caption predicts the next word.*looks ahead"):
            headed([Caption()], **settings)


def test_heads_divide_the_width():
    assert [num_heads(width) for width in (32, 64, 200, 256, 768)] == [1, 1, 2, 4, 12]
