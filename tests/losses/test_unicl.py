"""UniCL (2204.03610) as a setting of InfoNCE: equal labels are positives; and what `positives: own` makes of them."""

from __future__ import annotations

import math

import pytest
import torch
from open_clip.loss import ClipLoss

from tests.losses.compare import assert_equal, awkward, merged, one_rank, only_term, value_and_gradients
from vlp.losses.infonce import InfoNCE
from vlp.losses.sigmoid import Sigmoid
from vlp.types import UNLABELLED, Features

LABELS = [3, UNLABELLED + 5, 3, 1 << 24, UNLABELLED + (1 << 36) + 5, 1 << 24, 3, UNLABELLED + 6]  # two sources


def unicl(features, labels):
    """The paper's matrix form: A_ij = [g_i = g_j], normalised over rows for pictures, over columns for texts."""
    logits = features.scale * features.image @ features.text[:, 0].T
    same = (labels[:, None] == labels).double()
    by_image = -(same / same.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    by_text = -(same / same.sum(0, keepdim=True) * logits.log_softmax(0)).sum(0).mean()
    return (by_image + by_text) / 2


def test_equals_the_papers_matrix(make_batch, make_features):
    features, batch = make_features(8), make_batch(8, label=LABELS)
    found = value_and_gradients(only_term(InfoNCE(block=3), batch), features)
    assert_equal(found, value_and_gradients(lambda f: unicl(f, batch.label), features))
    other = value_and_gradients(only_term(InfoNCE(positives="own"), batch), features)
    assert abs(found["value"] - other["value"]) > 1e-2


def test_unique_ids_are_clip(make_batch, make_features):
    features = make_features(6)
    found = value_and_gradients(only_term(InfoNCE(), make_batch(6)), features)
    assert_equal(found, value_and_gradients(lambda f: ClipLoss()(f.image, f.text[:, 0], f.scale), features))
    own = value_and_gradients(only_term(InfoNCE(positives="own"), make_batch(6)), features)
    assert_equal(found, own)


@pytest.mark.parametrize("num", [2, 7])
def test_equal_ids_and_identical_logits_give_ln_n(make_batch, num):
    row = torch.nn.functional.normalize(torch.arange(1.0, 5.0, dtype=torch.float64), dim=0)
    features = Features(row.expand(num, 4), row.expand(num, 1, 4), torch.tensor([20.0], dtype=torch.float64))
    value = only_term(InfoNCE(), make_batch(num, label=[3] * num))(features).item()
    assert value == pytest.approx(math.log(num), abs=1e-12)


@pytest.mark.parametrize("loss", [InfoNCE, Sigmoid])
def test_own_is_the_same_loss_on_labels_that_nobody_shares(make_batch, make_features, loss):
    features, batch = awkward(make_batch, make_features)
    alone = make_batch(
        8, captions=2, valid=batch.valid.tolist(), caption_mask=batch.caption_mask.tolist(), label=list(range(8))
    )
    found = value_and_gradients(only_term(loss(positives="own", block=3), batch), features)
    assert_equal(found, value_and_gradients(only_term(loss(), alone), features))
    labelled = value_and_gradients(only_term(loss(), batch), features)
    assert abs(found["value"] - labelled["value"]) > 1e-2


def test_own_on_labelled_data_is_open_clips_loss(make_batch, make_features):
    features = make_features(8, scale=5.0)
    found = value_and_gradients(only_term(InfoNCE(positives="own"), make_batch(8, label=LABELS)), features)
    assert_equal(found, value_and_gradients(lambda f: ClipLoss()(f.image, f.text[:, 0], f.scale), features))


def test_two_processes_equal_one(spawn, make_batch, make_features):
    """Labels are gathered with the features: positives stand on both ranks."""
    features, batch = awkward(make_batch, make_features)
    losses = [InfoNCE(positives="own", block=2), Sigmoid(positives="own"), InfoNCE()]
    ranks = spawn(one_rank, 2, losses, features, batch)
    for i, loss in enumerate(losses):
        expected = value_and_gradients(only_term(loss, batch), features)
        assert_equal(merged([rank[i] for rank in ranks]), expected)


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="positives"):
        InfoNCE(positives="none")
