"""EM without labels: against a loop, from zero-shot, and a likelihood that does not fall."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from tests.adapters.blobs import ENCODER, accuracy, blobs
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.gaussian import shrunk
from vlp.adapters.gda_em import GdaEm
from vlp.adapters.zeroshot import ZeroShot


def pool(**settings):
    task, held = blobs(shots=40, held=40, **settings)
    return replace(task, support=None, unlabelled=task.support.unlabelled()), held


@pytest.mark.parametrize("prior", ["uniform", "empirical"])
def test_steps_equal_the_loop(prior):
    task, held = pool(dtype=torch.float64, noise=0.8)
    rows, names = task.unlabelled.image, range(4)
    words = 20 * rows @ task.text[:, 0].T
    gamma = words.softmax(dim=1)
    for step in range(3):
        mass = [float(sum(gamma[i, c] for i in range(len(rows)))) for c in names]
        mean = [sum(gamma[i, c] * rows[i] for i in range(len(rows))) / mass[c] for c in names]
        off = [(gamma[i, c], rows[i] - mean[c]) for i in range(len(rows)) for c in names]
        covariance = sum(share * torch.outer(row, row) for share, row in off) / (len(rows) - 1)
        ridge = covariance.trace() / (len(rows) - 1) * torch.eye(12, dtype=torch.float64)
        precision = torch.linalg.inv(covariance + ridge)
        log_prior = [0.25 if prior == "uniform" else mass[c] / len(rows) for c in names]
        log_prior = torch.tensor(log_prior, dtype=torch.float64).log()
        weight = torch.stack([precision @ mean[c] for c in names])
        bias = torch.stack([log_prior[c] - mean[c] @ precision @ mean[c] / 2 for c in names])
        gamma = (words + 0.5 * (rows @ weight.T + bias)).softmax(dim=1)
        found = GdaEm(alpha=0.5, steps=step + 1, prior=prior).fit(ENCODER, task)(held.image)
        want = 20 * held.image @ task.text[:, 0].T + 0.5 * (held.image @ weight.T + bias)
        torch.testing.assert_close(found, want)


def test_pictures_without_labels_make_it_better():
    task, held = pool(noise=0.6, seed=3)
    classifier = GdaEm().fit(ENCODER, task)
    assert accuracy(classifier, held) > accuracy(ZeroShot().fit(ENCODER, task), held) + 0.1
    assert classifier.about["selection"] == {"split": "none", "n": 160}


def test_the_likelihood_under_the_words_priors_does_not_fall():
    task, _ = pool(noise=0.9, dtype=torch.float64)
    rows = task.unlabelled.image
    prior = (20 * rows @ task.text[:, 0].T).log_softmax(dim=1)
    found = []
    for steps in range(1, 8):
        gamma = GdaEm(steps=steps).fit(ENCODER, task)(rows).softmax(dim=1)
        mass = gamma.sum(dim=0)
        mean = gamma.T @ rows / mass[:, None]
        scatter = rows.T @ rows - mean.T @ (mass[:, None] * mean)
        precision = shrunk(scatter, len(rows))
        off = rows[:, None] - mean
        density = torch.logdet(precision) / 2 - torch.einsum("ncd,de,nce->nc", off, precision, off) / 2
        found.append(float((prior + density).logsumexp(dim=1).sum()))
    assert all(later > earlier - 1e-6 * abs(earlier) for earlier, later in pairwise(found))
    assert found[-1] > found[0]


@pytest.mark.parametrize("part", [GdaEm(alpha=0), GdaEm(steps=0)])
def test_switched_off_it_is_zero_shot_bit_for_bit(part, tmp_path):
    task, held = pool()
    classifier = part.fit(ENCODER, task)
    assert torch.equal(classifier(held.image), ZeroShot().fit(ENCODER, task)(held.image))
    classifier.save(tmp_path)
    assert torch.equal(LinearClassifier.load(tmp_path)(held.image), classifier(held.image))


def test_classes_that_get_no_picture_stay_finite_and_a_pool_is_needed():
    task, held = pool()
    far = task.text.clone()
    far[3] = -far[:3].sum(dim=0)
    alone = replace(task, text=far)
    assert GdaEm(alpha=3).fit(ENCODER, alone)(held.image).isfinite().all()
    with pytest.raises(ValueError, match="GdaEm needs pictures without labels"):
        GdaEm().fit(ENCODER, replace(task, unlabelled=None))
