"""EM-Dirichlet against loops; the oracle of methods.md 11.16; matching of clusters."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from tests.adapters.blobs import ENCODER, accuracy, blobs
from vlp.adapters.adapter import class_weights
from vlp.adapters.assignment import assign
from vlp.adapters.dirichlet import EPS, RATE, by_mm, by_newton, log_density, mm_step
from vlp.adapters.em_dirichlet import DirichletClassifier, EmDirichlet
from vlp.adapters.task import Examples, Task
from vlp.adapters.zeroshot import ZeroShot

ROUND = {"steps": 3, "mm_steps": 8, "effective": 2}


def given(*, support=True, **settings):
    task, held = blobs(**settings)
    return replace(task, support=task.support if support else None, query=held.unlabelled()), held


def random_alpha(*shape, seed=0):
    return 0.3 + 5 * torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_mm_steps_never_lower_the_likelihood_and_find_the_parameters():
    alpha = torch.tensor([2.0, 0.4, 7.0], dtype=torch.float64)
    torch.manual_seed(0)
    sample = torch.distributions.Dirichlet(alpha).sample((10_000,))
    mean_log = sample.log().mean(dim=0)[None]
    found, last = torch.ones(1, 3, dtype=torch.float64), -math.inf
    for _ in range(60):
        reached = float(log_density(mean_log, found).sum())
        assert reached >= last - 1e-12
        found, last = mm_step(found, mean_log), reached
    found = by_mm(found, mean_log, steps=1000)
    torch.testing.assert_close(found[0], alpha, rtol=0.05, atol=0)
    at_rest = torch.digamma(found) - torch.digamma(found.sum(dim=1, keepdim=True))
    torch.testing.assert_close(at_rest, mean_log, atol=1e-3, rtol=0)


def test_a_step_is_the_formula_also_for_tiny_parameters():
    alpha = random_alpha(3, 3)
    alpha[2, 1] = 1e-10
    mean_log = -5 * torch.rand(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    psi, lgamma = lambda x: float(torch.digamma(torch.tensor(x, dtype=torch.float64))), math.lgamma
    for k, j in itertools.product(range(3), range(3)):
        a, total = float(alpha[k, j]), float(alpha[k].sum())
        c = abs(2 * (lgamma(1) - lgamma(a + 1) + psi(a + 1) * a) / a**2) if a > 1e-6 else math.pi**2 / 6
        b = psi(a + 1) - psi(total) - c * a - float(mean_log[k, j])
        want = (-b + math.sqrt(b**2 + 4 * c)) / (2 * c)
        assert float(mm_step(alpha, mean_log)[k, j]) == pytest.approx(want, rel=1e-7)


@pytest.mark.parametrize("scale", [0.05, 1.0, 50.0, 3000.0])
def test_newton_finds_the_maximum_from_anywhere_and_with_its_gradient(scale):
    rng = torch.Generator().manual_seed(0)
    alpha = scale * torch.rand(6, 7, dtype=torch.float64, generator=rng) + 0.01
    mean_log = torch.digamma(alpha) - torch.digamma(alpha.sum(dim=1, keepdim=True)) + RATE  # which the prior takes off
    for first in (1e-3, 1.0, 1e4):
        found = by_newton(torch.full_like(alpha, first), mean_log)
        torch.testing.assert_close(found, alpha, rtol=1e-5, atol=0)
    small = mean_log[:2].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: by_newton(alpha[:2], y), small, eps=1e-5, atol=1e-3, rtol=1e-3)


def test_the_parameters_of_one_picture_are_finite():
    z = torch.full((1, 5), 0.2, dtype=torch.float64)
    found = by_newton(torch.ones_like(z), z.log())
    assert float(found.sum()) == pytest.approx((5 - 1) / (2 * RATE), rel=0.01)


def by_loops(task, query, *, temperature=30.0):
    """Assignments and logits of the last round, straight from the formulas."""
    weight, classes, n = class_weights(ENCODER, task).double(), len(task.names), len(query)

    def simplex(images):
        return [(temperature * weight @ image.double()).softmax(dim=0) for image in images]

    z = simplex(query)
    known = [] if task.support is None else list(zip(simplex(task.support.image), task.support.known.tolist()))
    share, alpha, penalty = torch.stack(z), torch.ones(classes, classes, dtype=torch.float64), classes // 2
    for _ in range(ROUND["steps"]):
        new = alpha.clone()
        for k in range(classes):
            mass = sum(float(share[i, k]) for i in range(n)) + sum(label == k for _, label in known)
            log_sum = sum(share[i, k] * (z[i] + EPS).log() for i in range(n))
            if mass <= EPS:
                continue
            log_sum = log_sum + sum((one + EPS).log() for one, label in known if label == k)
            for _ in range(ROUND["mm_steps"]):
                new[k] = mm_step(new[k : k + 1], (log_sum / mass)[None])[0]
        alpha = new
        v = [math.log(float(share[:, k].mean()) + EPS) + 1 for k in range(classes)]
        logits = torch.zeros(n, classes, dtype=torch.float64)
        for i, k in itertools.product(range(n), range(classes)):
            own = sum((float(alpha[k, j]) - 1) * math.log(float(z[i][j]) + EPS) for j in range(classes))
            whole = math.lgamma(float(alpha[k].sum())) - sum(math.lgamma(float(a)) for a in alpha[k])
            logits[i, k] = whole + own + penalty * v[k]
        share = logits.softmax(dim=1)
    return logits


@pytest.mark.parametrize("support", [True, False])
def test_rounds_equal_the_loop(support):
    task, held = given(support=support, classes=4, shots=2, held=3)
    found = EmDirichlet(**ROUND, match="none").fit(ENCODER, task)
    want = by_loops(task, held.image)
    torch.testing.assert_close(found(held.image), want, rtol=1e-6, atol=1e-6)
    assert found.about["form"] == ("few-shot" if support else "zero-shot")
    assert found.about["selection"] == {"split": "none", "n": 12}


def test_it_gains_where_few_of_many_classes_are_measured():
    task, held = given(shots=30, classes=20, held=15, noise=2.0, width=32)
    words = torch.stack([task.support.image[task.support.known == c].mean(dim=0) for c in range(20)])
    few = held.only(torch.where(held.known < 4)[0])
    task = replace(task, text=normalize(words, dim=1)[:, None], support=None, query=few.unlabelled())
    found = EmDirichlet(mm_steps=200, temperature=10.0).fit(ENCODER, task)  # cosines here are not as narrow as CLIP's
    assert accuracy(found, few) > accuracy(ZeroShot().fit(ENCODER, task), few) + 0.05


def test_labels_of_the_support_help():
    task, held = given(classes=6, shots=6, held=10, noise=0.6, seed=2)
    found = EmDirichlet(mm_steps=200, effective=6).fit(ENCODER, task)
    assert accuracy(found, held) > accuracy(ZeroShot().fit(ENCODER, task), held)


def test_without_rounds_it_is_zero_shot():
    task, held = given()
    assert torch.equal(EmDirichlet(steps=0).fit(ENCODER, task)(held.image), ZeroShot().fit(ENCODER, task)(held.image))


def test_clusters_get_classes_of_their_own():
    part = EmDirichlet()
    share = torch.eye(4, dtype=torch.float64)[[0, 0, 3, 3]]
    z = torch.tensor([[0.1, 0.6, 0.2, 0.1]] * 2 + [[0.1, 0.5, 0.3, 0.1]] * 2, dtype=torch.float64)
    assert part._owners(share, z).tolist() == [1, 0, 3, 2]  # .6 + .3 beats .5 + .2; the empty take what is left
    assert part.model_copy(update={"match": "argmax"})._owners(share, z).tolist() == [1, 1, 2, 1]
    assert part.model_copy(update={"match": "none"})._owners(share, z).tolist() == [0, 1, 2, 3]


def test_two_clusters_of_one_class_are_added_up():
    task, held = given(support=False, classes=3)
    found = EmDirichlet(**ROUND, match="none").fit(ENCODER, task)
    plain = found(held.image).softmax(dim=1)
    found.owner = torch.tensor([1, 1, 2])
    logits = found(held.image)
    assert bool((logits[:, 0] == -torch.inf).all())
    torch.testing.assert_close(logits.softmax(dim=1)[:, 1:], torch.stack([plain[:, :2].sum(1), plain[:, 2]], dim=1))


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (3, 5), (5, 5)])
def test_assignments_are_the_best_of_all(shape):
    rows, columns = shape
    for seed in range(20):
        score = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        found = assign(score)
        best = max(
            sum(float(score[row, column]) for row, column in enumerate(order))
            for order in itertools.permutations(range(columns), rows)
        )
        assert len(set(found.tolist())) == rows
        assert float(score[torch.arange(rows), found].sum()) == pytest.approx(best)
    with pytest.raises(ValueError, match="2 rows cannot"):
        assign(torch.zeros(2, 1))
    with pytest.raises(ValueError, match="finite"):
        assign(torch.full((1, 1), torch.nan))


def test_a_class_without_anything_keeps_its_parameters_and_a_query_is_needed():
    task, _ = given(support=False)
    with pytest.raises(ValueError, match="EmDirichlet needs the measured pictures"):
        EmDirichlet().fit(ENCODER, replace(task, query=None))
    far = Task(task.names, text=-task.text, query=Examples(task.text[:1, 0]))
    assert EmDirichlet(steps=2).fit(ENCODER, far)(task.text[:, 0]).isfinite().all()


def test_it_survives_its_file(tmp_path):
    task, held = given()
    found = EmDirichlet(**ROUND).fit(ENCODER, task)
    found.save(tmp_path)
    back = DirichletClassifier.load(tmp_path)
    assert torch.equal(found(held.image), back(held.image))
    assert (back.names, back.about, back.kind) == (found.names, found.about, "dirichlet")
    again = EmDirichlet(**ROUND).fit(ENCODER, task)
    assert torch.equal(found(held.image), again(held.image))
