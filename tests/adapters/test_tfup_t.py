"""TFUP-T: its losses against loops, what it learns, and which epoch is kept."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from tests.adapters.blobs import ENCODER, accuracy, blobs
from vlp.adapters.tfup import Tfup, cache_logits
from vlp.adapters.tfup_t import Adapted, TfupT, TfupTClassifier, _Lessons
from vlp.adapters.zeroshot import ZeroShot

SHORT = {"epochs": 4, "warmup": 2, "batch": 32}


def pool(**settings):
    task, held = blobs(**{"shots": 30, **settings})
    return replace(task, support=None, unlabelled=task.support.unlabelled()), held


def lessons(task, **settings):
    part = TfupT(**settings)
    model = Adapted(part, task.text[:, 0], 20.0, torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.residual += 0.3
    return _Lessons(part, model, part.cached(ENCODER, task), task.unlabelled, torch.Generator()), model


def adapted(model, image, weight):
    down, up = model.image.down, model.image.up
    feature = 0.2 * (up @ (down @ image).clamp(min=0)).clamp(min=0) + 0.8 * image
    words = torch.stack([5 * weight[c] + 0.5 * model.residual[c] for c in range(len(weight))])
    return feature / feature.norm(), words / words.norm(dim=1, keepdim=True)


@torch.no_grad()
def test_losses_equal_the_loop():
    task, _ = pool(noise=0.8)
    made, model = lessons(task, threshold=0.6)
    image, weight, rows = task.unlabelled.image, task.text[:, 0], torch.arange(0, 120, 7)
    total, sure, mean = 0.0, 0, torch.zeros(4)
    for row in rows:
        feature, words = adapted(model, image[row], weight)
        logits = 20 * words @ feature
        mean += logits.softmax(dim=0) / len(rows)
        cache = cache_logits(feature[None], made.teacher.key, made.teacher.label, words, beta=1.0)
        p = (logits + 0.3 * cache[0]).softmax(dim=0)
        if p.max() > 0.6:
            sure, total = sure + 1, total - float(logits.log_softmax(dim=0)[p.argmax()])
    assert 0 < sure < len(rows)
    want = total / sure + 0.3 * float((mean * (mean + 1e-6).log()).sum())
    assert made.whole(rows).item() == pytest.approx(want, rel=1e-4)
    teacher, want = Tfup().fit(ENCODER, task), 0.0
    for row in made.row[:5]:
        feature, words = adapted(model, image[row], weight)
        want -= float((20 * words @ feature).log_softmax(dim=0)[teacher(image[row][None]).argmax()]) / 5
    assert made.refined(torch.arange(5)).item() == pytest.approx(want, rel=1e-4)
    assert len(made.row) == 4 * 22  # .75 * 120 / 4 a class


def test_when_nothing_is_sure_only_the_balance_counts():
    task, _ = pool()
    made, model = lessons(task, threshold=1.0)
    mean = model(task.unlabelled.image).detach().softmax(dim=1).mean(dim=0)
    assert made.whole(torch.arange(120)).item() == pytest.approx(0.3 * float((mean * mean.log()).sum()), rel=1e-4)


def test_pictures_without_labels_make_it_better():
    task, held = pool(noise=0.6, seed=3)
    found = TfupT(epochs=10, warmup=3, batch=64).fit(ENCODER, task)
    assert accuracy(found, held) > accuracy(ZeroShot().fit(ENCODER, task), held)
    assert found.about["strong"] == "features"
    assert (found.about["selection"]["split"], found.about["selection"]["epoch"]) == ("none", 10)


def test_augmented_copies_are_learned_from_where_there_are_some():
    task, held = pool(views=3)
    found = TfupT(**SHORT).fit(ENCODER, task)
    assert found.about["strong"] == "views"
    plain = replace(task, unlabelled=replace(task.unlabelled, views=None))
    assert not torch.equal(found(held.image), TfupT(**SHORT).fit(ENCODER, plain)(held.image))


def test_a_seed_is_a_result_and_no_epoch_is_zero_shot():
    task, held = pool()
    found = TfupT(**SHORT).fit(ENCODER, task)(held.image)
    assert torch.equal(found, TfupT(**SHORT).fit(ENCODER, task)(held.image))
    assert not torch.equal(found, TfupT(**SHORT).fit(ENCODER, replace(task, seed=9))(held.image))
    plain = TfupT(epochs=0).fit(ENCODER, task)
    assert torch.equal(plain(held.image), ZeroShot().fit(ENCODER, task)(held.image))
    assert plain.about["adapter"] == "tfup_t"


def test_the_paper_keeps_the_epoch_that_is_best_on_test():
    task, held = pool(noise=0.9, seed=1)
    paper = TfupT(**SHORT | {"epochs": 12, "lr": 0.5}, protocol="paper")
    assert paper.leaky
    found = paper.fit(ENCODER, replace(task, test=held))
    selection = found.about["selection"]
    assert selection["split"] == "test"
    assert selection["acc1"] == pytest.approx(accuracy(found, held))
    last = paper.model_copy(update={"protocol": "honest"}).fit(ENCODER, replace(task, test=held))
    assert selection["epoch"] < 12
    assert accuracy(last, held) <= accuracy(found, held)
    assert not torch.equal(last.linear.weight, found.linear.weight)
    with pytest.raises(ValueError, match="this task holds none"):
        paper.fit(ENCODER, task)


def test_losses_that_are_no_number_stop_it():
    task, _ = pool()
    with pytest.raises(ValueError, match=r"tfup_t: the loss is nan at step 0 of .* smaller lr"):
        TfupT(**SHORT).fit(ENCODER, replace(task, text=normalize(task.text, dim=-1) * torch.nan))


def test_it_survives_its_file(tmp_path):
    task, held = pool()
    found = TfupT(**SHORT).fit(ENCODER, task)
    found.save(tmp_path)
    back = TfupTClassifier.load(tmp_path)
    assert torch.equal(found(held.image), back(held.image))
    assert (back.names, back.kind) == (found.names, "tfup_t")
    assert json.dumps(back.about) == json.dumps(found.about)
