"""The cache against a loop over keys, its grid against a loop over settings, and trained keys."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.adapters.blobs import ENCODER, accuracy, blobs
from vlp.adapters import cache_search, tip
from vlp.adapters.selection import folds, score
from vlp.adapters.tip import Tip, TipClassifier, TipF
from vlp.adapters.zeroshot import ZeroShot


@pytest.mark.parametrize("views", [0, 3])
def test_logits_equal_the_loop(views):
    task, held = blobs(views=views, dtype=torch.float64)
    classifier = Tip(alpha=1.7, beta=4.0).fit(ENCODER, task)
    keys = []
    for place in range(len(task.support)):
        own = task.support.image[place]
        if views:
            own = sum(task.support.views[place]) / views
            own = own / own.norm()
        keys.append(own)
    for image, own in zip(held.image, classifier(held.image), strict=True):
        for c in range(4):
            votes = sum(
                math.exp(-4.0 * (1 - float(image @ key)))
                for key, label in zip(keys, task.support.known.tolist(), strict=True)
                if label == c
            )
            assert float(own[c]) == pytest.approx(20 * float(image @ task.text[c, 0]) + 1.7 * votes)


@pytest.mark.parametrize("part", [Tip(alpha=0), TipF(alpha=0, epochs=2)])
def test_alpha_nought_is_zero_shot_bit_for_bit(part):
    task, held = blobs(views=2)
    assert torch.equal(part.fit(ENCODER, task)(held.image), ZeroShot().fit(ENCODER, task)(held.image))


def test_a_very_sharp_cache_gives_the_label_of_what_it_holds():
    task, _ = blobs(noise=3.0, dtype=torch.float64)
    words = ZeroShot().fit(ENCODER, task)
    assert accuracy(words, task.support) < 1
    classifier = Tip(alpha=1e4, beta=1e9).fit(ENCODER, task)
    assert accuracy(classifier, task.support) == 1


@pytest.mark.parametrize("validation", [0, 6])
def test_the_grid_equals_the_loop(validation, monkeypatch):
    monkeypatch.setattr(tip, "BETAS", 12)
    monkeypatch.setattr(tip, "ALPHAS", 7)
    monkeypatch.setattr(cache_search, "NUMBERS", 100)  # several blocks
    task, _ = blobs(noise=1.2, validation=validation, counts=(5, 6, 4, 1), dtype=torch.float64)
    part = Tip(search=(9.0, 4.0))
    chosen = part.fit(ENCODER, task).about["selection"]
    found = folds(task)
    betas = [0.1 + i * 8.9 / 12 for i in range(12)]
    alphas = [0.1 + i * 3.9 / 7 for i in range(7)]
    logits = []
    for own in found.folds:
        words = 20 * own.judge.image @ task.text[:, 0].T
        affinity = own.judge.image @ own.learn.image.T
        value = torch.eye(4, dtype=torch.float64)[own.learn.known]
        logits.append((words, affinity, value, own.judge.known))
    best, setting = (-1.0, -math.inf), (0.0, 0.0)
    for beta in betas:
        votes = [torch.exp(-beta * (1 - affinity)) @ value for _, affinity, value, _ in logits]
        for alpha in alphas:
            each = [
                (score(words + alpha * vote, known), len(known))
                for (words, _, _, known), vote in zip(logits, votes, strict=True)
            ]
            total = sum(count for _, count in each)
            reached = tuple(round(sum(one[k] * count for one, count in each) / total, 12) for k in (0, 1))
            if reached > best:
                best, setting = reached, (beta, alpha)
    assert chosen["split"] == ("validation" if validation else "train")
    assert (chosen["beta"], chosen["alpha"]) == pytest.approx(setting)
    assert chosen["acc1"] == pytest.approx(best[0])
    assert chosen["candidates"] == 84


def test_one_of_the_two_may_be_given_and_one_shot_has_the_authors_start():
    task, _ = blobs(noise=1.0)
    chosen = Tip(beta=2.5).fit(ENCODER, task).about["selection"]
    assert (chosen["beta"], chosen["candidates"]) == (2.5, 20)
    assert Tip().fit(ENCODER, task).about["selection"]["candidates"] == 4000
    one, _ = blobs(shots=1)
    assert Tip().fit(ENCODER, one).about["selection"] == {"split": "none", "beta": 1.0, "alpha": 1.17}


def test_trained_keys_equal_a_loop_of_adamw():
    task, held = blobs(noise=1.0, dtype=torch.float64)
    found = TipF(alpha=1.0, beta=2.0, epochs=3, batch=64, lr=0.05).fit(ENCODER, task)
    key = task.support.image.clone()
    words, label = 20 * task.support.image @ task.text[:, 0].T, task.support.known
    value = torch.eye(4, dtype=torch.float64)[label]
    first, second = torch.zeros_like(key), torch.zeros_like(key)
    for step in range(3):
        key.requires_grad_()
        logits = words + torch.exp(-2.0 * (1 - task.support.image @ key.T)) @ value
        (slope,) = torch.autograd.grad(cross_entropy(logits, label), key)
        lr = 0.05 * 0.5 * (1 + math.cos(math.pi * step / 3))
        key = key.detach() * (1 - lr * 0.01)
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope.square()
        up, down = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        key = key - lr * up / (down.sqrt() + 1e-4)
    torch.testing.assert_close(found.key, key, atol=1e-9, rtol=1e-7)
    untrained = TipF(alpha=1.0, beta=2.0, epochs=0).fit(ENCODER, task)
    assert torch.equal(untrained(held.image), Tip(alpha=1.0, beta=2.0).fit(ENCODER, task)(held.image))
    assert not found.key.requires_grad


def test_training_helps_follows_the_seed_and_touches_nothing():
    task, _ = blobs(noise=1.0, views=3, shots=8, validation=4)
    before = torch.random.get_rng_state()
    kept = task.support.views.clone()
    part = TipF(lr=0.01, batch=8)
    one, again = part.fit(ENCODER, task), part.fit(ENCODER, task)
    assert torch.equal(one.key, again.key)
    assert not torch.equal(one.key, part.fit(ENCODER, replace(task, seed=9)).key)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(kept, task.support.views)
    assert (one.about["selection"]["split"], one.about["selection"]["epoch"]) == ("validation", 20)
    loss = [
        float(cross_entropy(made(task.support.image), task.support.known))
        for made in (one, Tip(alpha=one.alpha, beta=one.beta).fit(ENCODER, task))
    ]
    assert loss[0] < loss[1]
    assert TipF(epochs=2).fit(ENCODER, replace(task, validation=None)).about["selection"]["split"] == "train"


def test_the_papers_protocol_takes_the_epoch_that_is_best_on_test():
    task, held = blobs(noise=1.5, shots=4, held=20)
    leaky = replace(task, test=held)
    part = TipF(lr=0.1, epochs=6, protocol="paper")
    found = part.fit(ENCODER, leaky)
    assert part.leaky
    assert found.about["selection"]["split"] == "test"
    reached = []
    for epoch in range(6):
        model = TipF(lr=0.1, epochs=6, alpha=1.17, beta=1.0)
        zeroshot = ZeroShot().fit(ENCODER, task)
        key = task.support.image.clone().requires_grad_()
        own = TipClassifier(zeroshot, key, task.support.known, beta=1.0, alpha=1.17)
        for done in model._train(own, task.support, task.seed):
            if done == epoch:
                reached.append(score(own(held.image).detach(), held.known).accuracy)
                break
    assert found.about["selection"]["epoch"] == reached.index(max(reached)) + 1
    assert found.about["selection"]["acc1"] == score(found(held.image), held.known).accuracy >= max(reached)
    assert Tip(protocol="paper").fit(ENCODER, leaky).about["selection"]["split"] == "test"
    given = part.model_copy(update={"alpha": 1.17, "beta": 1.0}).fit(ENCODER, leaky).about["selection"]
    assert given["split"] == "test"  # of the epoch, also where alpha and beta are not chosen
    with pytest.raises(ValueError, match="this task holds none"):
        Tip(protocol="paper").fit(ENCODER, task)


def test_a_cache_survives_its_file(tmp_path):
    task, held = blobs()
    made = Tip(alpha=1.0, beta=3.0).fit(ENCODER, task)
    made.save(tmp_path / "c")
    back = TipClassifier.load(tmp_path / "c")
    assert torch.equal(made(held.image), back(held.image))
    assert (back.names, back.about, back.needs) == (made.names, made.about, "features")
    with pytest.raises(ValueError, match="holds no classifier"):
        TipClassifier.load(tmp_path)
    ZeroShot().fit(ENCODER, task).save(tmp_path / "z")
    with pytest.raises(ValueError, match="'tip' is read here"):
        TipClassifier.load(tmp_path / "z")


def without(examples, classes):
    return examples.only(torch.where(~torch.isin(examples.known, torch.tensor(classes)))[0])


@pytest.mark.parametrize("kept", [(0, 1, 3, 5), (0,)])
@pytest.mark.parametrize("part", [Tip(), TipF(epochs=2)])
def test_classes_that_only_words_know_judge_too(part, kept):
    task, _ = blobs(classes=6, noise=1.5, validation=8)
    support = without(task.support, [place for place in range(6) if place not in kept])
    made = part.fit(ENCODER, replace(task, support=support))
    chosen = made.about["selection"]
    assert (chosen["split"], chosen["candidates"]) == ("validation", 4000)
    assert chosen["acc1"] == accuracy(made, task.validation)  # over all six
    words = ZeroShot().fit(ENCODER, task)
    assert chosen["acc1"] >= accuracy(words, task.validation) - 1 / 48
    folded = part.fit(ENCODER, replace(task, support=support, validation=None)).about["selection"]
    assert (folded["split"], folded["candidates"]) == ("train", 4000)
