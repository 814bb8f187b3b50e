"""Unrolled EM-Dirichlet: rounds against loops and em_dirichlet's, what training changes, where its tasks come from."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import root
from scipy.special import psi
from torch.nn.functional import softplus

from tests.adapters.blobs import ENCODER, accuracy, blobs
from vlp.adapters.adapter import class_weights
from vlp.adapters.dirichlet import EPS, RATE, by_newton
from vlp.adapters.em_dirichlet import DirichletClassifier, EmDirichlet
from vlp.adapters.episodes import episodes
from vlp.adapters.unem import TRACE, Unem, Unrolled, _lesson, _task_of
from vlp.adapters.zeroshot import ZeroShot

SMALL = {"layers": 3, "tasks": 6, "batch": 4, "epochs": 3, "effective": 3, "queries": 12}


def given(*, support=True, validation=6, classes=5, **settings):
    task, held = blobs(classes=classes, shots=4, held=6, validation=validation, **settings)
    return replace(task, support=task.support if support else None, query=held.unlabelled()), held


@pytest.mark.parametrize("support", [True, False])
def test_untrained_rounds_without_temperatures_are_em_dirichlet(support, monkeypatch):
    task, held = given(support=support)
    gamma = float(torch.log(torch.expm1(torch.tensor(1.0, dtype=torch.float64))))  # softplus of it is 1
    own = Unem(**{**SMALL, "epochs": 0}, gamma=gamma, tempered=False).fit(ENCODER, task)
    solved = lambda alpha, mean_log, steps: by_newton(alpha, mean_log)  # noqa: E731
    monkeypatch.setattr("vlp.adapters.em_dirichlet.by_mm", solved)  # the same parameters, found in another way
    plain = EmDirichlet(steps=3, effective=5, match="none").fit(ENCODER, task)
    torch.testing.assert_close(own(held.image), plain(held.image), rtol=1e-5, atol=1e-5)


def by_loops(task, query, *, rounds, temperature, gamma):
    """Logits of the last untrained round, straight from the formulas; parameters by another solver."""
    weight, classes, n = class_weights(ENCODER, task).double(), len(task.names), len(query)

    def log_simplex(images):
        return [((temperature * weight @ image.double()).softmax(dim=0) + EPS).log() for image in images]

    log_z = log_simplex(query)
    known = [] if task.support is None else list(zip(log_simplex(task.support.image), task.support.known.tolist()))
    share = torch.stack(log_z).exp()
    penalty, sharpness = math.log1p(math.exp(gamma)), 1 / (1 + math.log1p(math.e))  # softplus of gamma, and of t = 1
    for _ in range(rounds):
        logits = torch.zeros(n, classes, dtype=torch.float64)
        for k in range(classes):
            own = [(float(share[i, k]), log_z[i]) for i in range(n)] + [
                (1.0, one) for one, label in known if label == k
            ]
            aim = (sum(mass * one for mass, one in own) / sum(mass for mass, _ in own) - RATE).numpy()
            solved = root(lambda x, aim=aim: psi(np.exp(x)) - psi(np.exp(x).sum()) - aim, np.zeros(classes), tol=1e-12)
            assert solved.success
            alpha = np.exp(solved.x)
            v = math.log(sum(float(share[i, k]) for i in range(n)) / n + EPS) + 1
            whole = math.lgamma(alpha.sum()) - sum(math.lgamma(a) for a in alpha)
            for i in range(n):
                density = whole + sum((alpha[j] - 1) * float(log_z[i][j]) for j in range(classes))
                logits[i, k] = sharpness * (density + penalty * v)
        share = logits.softmax(dim=1)
    return logits


@pytest.mark.parametrize("support", [True, False])
def test_rounds_with_temperatures_equal_the_loop(support):
    task, held = given(support=support, classes=4)
    found = Unem(**{**SMALL, "epochs": 0, "layers": 2}, temperature=8.0, gamma=0.3).fit(ENCODER, task)
    want = by_loops(task, held.image, rounds=2, temperature=8.0, gamma=0.3)
    torch.testing.assert_close(found(held.image), want, rtol=1e-5, atol=1e-5)


def test_clusters_that_are_those_of_the_support_alone_are_the_same_as_solved_again(monkeypatch):
    task, held = given(classes=8)
    rows = [torch.arange(0, 12), torch.arange(12, 24)]  # two of eight classes each, so that most clusters stay empty
    lesson = _lesson(held, rows, task.support, task.text[:, 0])
    found = []
    for least in (TRACE, 0.0):
        monkeypatch.setattr("vlp.adapters.unem.TRACE", least)
        model = Unrolled(Unem(**SMALL), 8)
        loss = lesson.loss(model(lesson.tasks).logits)
        loss.backward()
        found.append([loss.detach(), *(leaf.grad for leaf in model.parameters())])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_tasks_side_by_side_are_the_same_as_alone():
    task, held = given()
    part, text = Unem(**SMALL), task.text[:, 0]
    rows = [torch.arange(12), torch.arange(5, 10), torch.tensor([3])]  # of different sizes, so that some are filled up
    lesson, model = _lesson(held, rows, task.support, text), Unrolled(part, 5)
    with torch.no_grad():
        together = model(lesson.tasks)
        for place, own in enumerate(rows):
            alone = model(_task_of(held.only(own), task.support, text))
            torch.testing.assert_close(together.logits[place, : len(own)], alone.logits[0], rtol=1e-9, atol=1e-9)
        loss = [model(_task_of(held.only(own), task.support, text)).logits[0].log_softmax(dim=1) for own in rows]
    said = [float(one[place, held.known[row]]) for one, own in zip(loss, rows) for place, row in enumerate(own)]
    assert float(lesson.loss(together.logits)) == pytest.approx(-sum(said) / len(said))


def test_gradients_of_what_is_learned_are_differences():
    task, held = given(dtype=torch.float64, noise=1.0)
    model = Unrolled(Unem(**{**SMALL, "temperature": 5.0}), 5)
    lesson = _lesson(held, [torch.arange(30)], task.support, task.text[:, 0])
    lesson.loss(model(lesson.tasks).logits).backward()
    for leaf in model.parameters():
        for place in range(leaf.numel()):
            values = []
            for shift in (1e-3, -2e-3):
                with torch.no_grad():
                    leaf.view(-1)[place] += shift
                    values.append(float(lesson.loss(model(lesson.tasks).logits)))
            with torch.no_grad():
                leaf.view(-1)[place] += 1e-3
            assert float(leaf.grad.view(-1)[place]) == pytest.approx((values[0] - values[1]) / 2e-3, rel=0.02, abs=1e-5)


@pytest.mark.parametrize("settings", [{}, {"shared": True}, {"tempered": False}])
def test_training_lowers_the_loss_on_its_tasks(settings):
    task, _ = given(noise=0.9)
    part = Unem(**SMALL | {"epochs": 12} | settings)
    lessons, split = part._lessons(task, task.text[:, 0])
    model = Unrolled(part, 5)
    with torch.no_grad():
        before = sum(float(one.loss(model(one.tasks).logits)) for one in lessons)
    part._train(model, lessons, quiet=True)
    with torch.no_grad():
        after = sum(float(one.loss(model(one.tasks).logits)) for one in lessons)
    assert after < before - 0.01
    assert split == "validation"
    rounds = 1 if part.shared else 3
    assert [len(model.learned()[name]) for name in ("penalty", "rounds_temperature")] == [rounds, rounds]
    if settings == {"tempered": False}:
        assert (model.learned()["temperature"], model.learned()["rounds_temperature"]) == (30.0, [1.0] * 3)


def test_it_is_not_worse_than_words_alone():
    task, held = given(noise=0.8, seed=2)
    found = Unem(**SMALL | {"epochs": 20, "effective": 5, "queries": 30, "lr": 0.2}).fit(ENCODER, task)
    assert accuracy(found, held) > accuracy(ZeroShot().fit(ENCODER, task), held)
    assert found.about["selection"]["split"] == "validation"
    assert found.about["learned"]["penalty"] != pytest.approx([float(softplus(torch.tensor(1.0)))] * 3)


def test_without_validation_folds_of_the_support_teach_and_else_nothing_does():
    task, _ = given(validation=0)
    lessons, split = Unem(**SMALL)._lessons(task, task.text[:, 0])
    assert split == "train"
    assert sum(len(one.label) for one in lessons) == 6
    for one in lessons:
        assert len(one.tasks.support[1]) == 15  # of 4 folds of 20 pictures, each learns from the other three
    alone = replace(given(support=False)[0], seed=1)
    lessons, split = Unem(**SMALL)._lessons(alone, alone.text[:, 0])
    assert (split, {one.tasks.support for one in lessons}) == ("validation", {None})
    one_shot = replace(task, support=task.support.only(range(0, 20, 4)))
    for poor in (one_shot, replace(task, support=None)):
        with pytest.raises(ValueError, match="Unem learns its penalties from labelled pictures .* em_dirichlet does"):
            Unem(**SMALL).fit(ENCODER, poor)


def test_episodes_have_few_classes_and_follow_from_the_generator():
    label = torch.arange(60) % 12

    def drawn(seed, **settings):
        rng = torch.Generator().manual_seed(seed)
        return list(episodes(label, tasks=20, rng=rng, **settings))

    for rows in drawn(0, effective=3, queries=9):
        assert len(rows) == len(set(rows.tolist())) == 9
        assert len(label[rows].unique()) <= 3
    assert [len(rows) for rows in drawn(0)] == [25] * 20  # all that there are
    assert len(drawn(0, effective=99)[0]) == 60
    assert all(torch.equal(one, other) for one, other in zip(drawn(1), drawn(1)))
    assert not all(torch.equal(one, other) for one, other in zip(drawn(1), drawn(2)))


def test_without_rounds_it_is_zero_shot_and_a_seed_is_a_result(tmp_path):
    task, held = given()
    assert torch.equal(Unem(layers=0).fit(ENCODER, task)(held.image), ZeroShot().fit(ENCODER, task)(held.image))
    found = Unem(**SMALL).fit(ENCODER, task)
    assert torch.equal(found(held.image), Unem(**SMALL).fit(ENCODER, task)(held.image))
    other = Unem(**SMALL).fit(ENCODER, replace(task, seed=5))
    assert not torch.equal(found(held.image), other(held.image))
    found.save(tmp_path)
    back = DirichletClassifier.load(tmp_path)
    assert torch.equal(back(held.image), found(held.image))
    assert back.about == found.about
    with pytest.raises(ValueError, match="loss is .* set a smaller lr"):
        Unem(**SMALL).fit(ENCODER, replace(task, text=task.text * torch.nan))
