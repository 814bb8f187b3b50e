"""Masked language modelling against captions run one at a time, and the draw of what is masked."""

from __future__ import annotations

import copy

import pytest
import torch

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
from vlp.losses import vocabulary as vocabulary_module
from vlp.losses.masked_text import MaskedText, fates, words
from vlp.losses.vocabulary import Vocabulary, token_table

BERT = {"model_type": "bert", **SIZES, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
PADDED = copy.deepcopy(NANO)  # looks both ways, and at its padding
PADDED["text_cfg"] |= {"no_causal_mask": True}
TOWERS = [{}, {"config": PADDED}, {"ours": {"text": {"hf": BERT}}}]


@pytest.fixture
def batch():
    return real_batch(views=0, momentum=False)


def _one_at_a_time(model, batch):
    """Sums of -log p and counts, from the same draws, each caption alone at its own length with all its logits."""
    head = model.heads["mlm"]
    B, K, T = batch.text.shape
    lots = torch.rand(B * K, T).reshape(B, K, T), torch.rand(B * K, T).reshape(B, K, T)
    random = torch.randint(99, (B * K, T)).reshape(B, K, T)
    sums, counts = torch.zeros(B, dtype=torch.float64), torch.zeros(B, dtype=torch.long)
    for b in range(B):
        image = model.encode_image(batch.image[b : b + 1])
        for k in range(K):
            length = int(batch.token_mask[b, k].sum())
            if not batch.valid[b] or not batch.caption_mask[b, k]:
                continue
            chosen = [t for t in range(1, length - 1) if lots[0][b, k, t] < head.share]
            ids, embeds = batch.text[b, k, :length].clone(), []
            for t in range(length):
                kept = t not in chosen or 0.8 <= lots[1][b, k, t] < 0.9
                drawn_id = t in chosen and lots[1][b, k, t] >= 0.9
                one = model.embed((random[b, k, t] if drawn_id else ids[t]).reshape(1, 1))
                masked = head.mask.reshape(1, 1, -1) if head.mask_id is None else model.embed(torch.tensor([[7]]))
                embeds.append(one if kept or drawn_id else masked)
            mask, end = torch.ones(1, length, dtype=torch.bool), torch.tensor([length - 1])
            hidden = model.text_tower.run(torch.cat(embeds, 1), mask, end, tokens=True).hidden[0]
            for t in chosen:
                x = hidden[t] if head.ground is None else hidden[t] + head.ground(image)[0]
                table = token_table(model.text).weight if head.vocabulary.weight is None else head.vocabulary.weight
                logits = head.vocabulary.transform(x) @ table.T + head.vocabulary.bias
                sums[b] = sums[b] - logits.log_softmax(0)[ids[t]]
                counts[b] += 1
    return sums, counts


@pytest.mark.parametrize("tower", TOWERS, ids=["causal", "padded", "bert"])
@pytest.mark.parametrize("settings", [{}, {"grounded": True, "tied": False}, {"mask_id": 7}])
def test_equals_captions_one_at_a_time(batch, tower, settings):
    loss = LOSSES.build({"name": "mlm", "share": 0.5, **settings})
    model = headed([loss], **tower)
    torch.manual_seed(5)
    features = model(batch)
    torch.manual_seed(5)
    sums, counts = _one_at_a_time(model, batch)
    assert counts.sum() > 5
    torch.testing.assert_close(features.extra["mlm/nll"], sums, atol=1e-9, rtol=1e-9)
    assert torch.equal(features.extra["mlm/count"], counts)
    term = loss(features, batch)["mlm"]
    torch.testing.assert_close(term, sums.sum() / counts.sum(), atol=1e-9, rtol=1e-9)


def test_is_sound(make_batch, make_features, spawn):
    features, batch = awkward(make_batch, make_features)
    counts = torch.tensor([3, 1, 0, 5, 2, 4, 9, 1])
    features = with_extra(features, mlm_nll=drawn(8, seed=1).abs() * 5, mlm_count=counts)
    found = MaskedText()(features, batch)["mlm"].item()
    nll = features.extra["mlm/nll"]
    real = [i for i in range(8) if batch.valid[i]]
    expected = sum(nll[i].item() for i in real) / sum(counts[i].item() for i in real)
    assert found == pytest.approx(expected, abs=1e-12)
    assert_sound(MaskedText(), features, batch, spawn)


@pytest.mark.parametrize("tower", TOWERS, ids=["causal", "padded", "bert"])
def test_with_a_real_model(batch, tower):
    loss = MaskedText(share=0.4, grounded=True)
    assert_gradcache_exact([loss], batch, **tower)
    assert_learns([loss], batch, least=0.3, **tower)


def test_nothing_chosen_still_gives_every_parameter_a_gradient(batch):
    loss = MaskedText(share=1e-12, grounded=True, tied=False)
    model = headed([loss])
    term = loss(model(batch), batch)["mlm"]
    term.backward()
    assert term.item() == 0
    learned = {name: p.grad for name, p in model.named_parameters() if name != "logit_scale"}  # the objective's own
    assert all((grad == 0).all() for grad in learned.values()), learned


def test_neither_start_nor_end_nor_padding_is_a_word():
    seen = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    with_start = [[0, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 0]]
    assert words(seen, start=1).int().tolist() == with_start
    assert words(seen, start=0).int().tolist()[1] == [1, 0, 0, 0, 0]


def test_of_chosen_words_eighty_in_a_hundred_are_masked_and_ten_are_drawn():
    torch.manual_seed(0)
    chosen = torch.rand(200, 500) < 0.15
    masked, random = fates(chosen)
    assert not (masked & random).any()
    assert not ((masked | random) & ~chosen).any()
    assert masked.sum() / chosen.sum() == pytest.approx(0.8, abs=0.01)
    assert random.sum() / chosen.sum() == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("tied", [True, False])
def test_blocks_of_logits_change_nothing(monkeypatch, tied):
    torch.manual_seed(0)
    table = torch.nn.Embedding(30, 6).double()
    vocabulary = Vocabulary(torch.nn.Linear(5, 6), table, tied=tied).double()
    x, target = torch.randn(11, 5, dtype=torch.float64, requires_grad=True), torch.randint(30, (11,))
    found = []
    for numbers in (1 << 24, 4 * 30, 1):
        monkeypatch.setattr(vocabulary_module, "_LOGITS", numbers)
        nll = vocabulary(x, target, table)
        weights = [x, *vocabulary.parameters()] + ([table.weight] if tied else [])
        found.append([nll, *torch.autograd.grad(nll.square().sum(), weights)])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_a_mask_that_the_tower_has_no_embedding_of_is_refused():
    headed([MaskedText(mask_id=98)])
    with pytest.raises(ValueError, match="mask_id 99, but the text tower has embeddings of 99 ids"):
        headed([MaskedText(mask_id=99)])
