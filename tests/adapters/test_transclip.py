"""TransCLIP against loops; the measured pictures get the fixed point; classes come from names."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from tests.adapters.blobs import ENCODER, accuracy, blobs
from vlp.adapters.task import Examples
from vlp.adapters.transclip import Gaussians, Graph, Known, TransClip, TransClipClassifier
from vlp.adapters.zeroshot import ZeroShot


def given(*, support=True, **settings):
    task, held = blobs(**settings)
    return replace(task, support=task.support if support else None, query=held.unlabelled()), held


def by_loops(task, *, steps=2, inner=2, k=3, confident=2, gamma=0.1):
    """Logits and assignments of the last update."""
    f, text, support = task.query.image, task.text[:, 0], task.support
    n, classes, width = len(f), len(text), f.shape[1]
    y = (20 * f @ text.T).softmax(dim=1)
    words = 1.0 if support is None else 0.5
    near = [sorted((j for j in range(n) if j != i), key=lambda j: -float(f[i] @ f[j]))[:k] for i in range(n)]
    z, mean = y.clone(), torch.zeros(classes, width, dtype=torch.float64)
    known = [] if support is None else list(zip(support.image, support.known.tolist()))
    for c in range(classes):
        top = sorted(range(n), key=lambda i: -float(y[i, c]))[:confident]
        own = [image for image, label in known if label == c] or [y[i, c] * f[i] for i in top]
        mean[c] = normalize(sum(own), dim=0)
    variance = torch.full((width,), 1 / width, dtype=torch.float64)
    weight = gamma * 50 / max(1, len(known))
    for step in range(steps + 1):
        if step:
            for c in range(classes):
                total = sum(z[i, c] * f[i] for i in range(n)) / n
                total = total + sum(weight * image for image, label in known if label == c)
                mean[c] = total / total.norm()
            spread = sum(z[i, c] * (f[i] - mean[c]) ** 2 for i, c in itertools.product(range(n), range(classes))) / n
            spread = spread + sum(weight * (image - mean[label]) ** 2 for image, label in known)
            variance = spread / (1 + (gamma * 50 if known else 0))
        for _ in range(inner):
            new = torch.zeros_like(z)
            for i, c in itertools.product(range(n), range(classes)):
                beside = sum(float(f[i] @ f[j]) * float(z[j, c]) for j in near[i])
                beside += sum(float(f[i] @ f[j]) * float(z[j, c]) for j in range(n) if i in near[j])
                for image, label in known:
                    nearest = sorted(range(n), key=lambda j: -float(image @ f[j]))[:k]
                    beside += float(image @ f[i]) if label == c and i in nearest else 0.0
                likelihood = -float(((f[i] - mean[c]) ** 2 / variance).sum()) / 2
                new[i, c] = words * math.log(y[i, c]) + likelihood / 50 + beside / (2 * k)
            z = new.softmax(dim=1)
    return z, mean, variance


@pytest.mark.parametrize("support", [True, False])
def test_steps_equal_the_loop(support):
    task, held = given(support=support, classes=3, held=4, shots=2, dtype=torch.float64, noise=0.3)
    found = TransClip(steps=2, inner=2, confident=2, gamma=0.1).fit(ENCODER, task)
    z, mean, variance = by_loops(task)
    torch.testing.assert_close(found(held.image).softmax(dim=1), z)
    torch.testing.assert_close(found.gaussians.mean, mean)
    torch.testing.assert_close(found.gaussians.variance, variance)


def test_the_measured_pictures_get_the_fitted_assignments_and_others_the_last_step():
    task, held = given(support=False, dtype=torch.float64)
    found = TransClip().fit(ENCODER, task)
    order = torch.randperm(len(held), generator=torch.Generator().manual_seed(0))
    assert torch.equal(found(held.image[order]), found.logits[order])
    other = normalize(held.image[:2] + 0.01, dim=1)
    mixed = found(torch.cat([other, held.image[:1]]))
    assert torch.equal(mixed[2], found.logits[0])
    z, (mean, variance) = found.logits.softmax(dim=1), found.gaussians
    for row in range(2):
        near = sorted(range(len(held)), key=lambda j: -float(other[row] @ held.image[j]))[:3]
        want = (20 * task.text[:, 0] @ other[row]).log_softmax(dim=0)
        want = want - ((other[row] - mean) ** 2 / variance).sum(dim=1) / 2 / 50
        want = want + sum(float(other[row] @ held.image[j]) * z[j] for j in near) / 3
        torch.testing.assert_close(mixed[row].softmax(dim=0), want.softmax(dim=0))
    assert found(held.image[:0]).shape == (0, 4)


@pytest.mark.parametrize("support", [True, False])
def test_it_is_better_than_words_alone(support):
    task, held = given(support=support, held=30, noise=0.3, seed=3)
    found = TransClip(gamma=0.02).fit(ENCODER, task)
    assert accuracy(found, held) > accuracy(ZeroShot().fit(ENCODER, task), held) + 0.03
    assert found.about["form"] == ("few-shot" if support else "zero-shot")


def test_gamma_is_chosen_without_the_measured_pictures():
    task, _ = given(validation=4)
    about = TransClip().fit(ENCODER, task).about["selection"]
    assert (about["split"], about["candidates"]) == ("validation", 4)
    assert about["gamma"] in (0.002, 0.01, 0.02, 0.2)
    assert TransClip().fit(ENCODER, replace(task, validation=None)).about["selection"]["split"] == "train"
    one = replace(task, validation=None, support=task.support.only(range(0, 24, 6)))
    assert TransClip().fit(ENCODER, one).about["selection"] == {"split": "none", "gamma": 0.02, "n": 20}


def test_classes_are_the_names_whatever_is_measured():
    task, held = given(support=False)
    few = held.only(torch.where(held.known < 2)[0])
    found = TransClip().fit(ENCODER, replace(task, query=few.unlabelled()))
    assert found(held.image).shape == (20, 4)
    some = task.support is None and replace(task, support=few.only([0, 6]))  # shots of two classes of four
    assert TransClip(gamma=0.2).fit(ENCODER, some)(held.image).isfinite().all()


def test_nobody_is_a_neighbour_of_himself_not_even_of_his_twin():
    features = normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), dim=1).double()
    graph = Graph.of(features, 2)
    assert all(place not in row for place, row in enumerate(graph.row.tolist()))
    assert Graph.of(features[:1], 3).row.shape == (1, 0)
    assert Graph.of(features[:2], 3).row.tolist() == [[1], [0]]
    task, held = given(support=False)
    assert TransClip().fit(ENCODER, replace(task, query=Examples(held.image[:1])))(held.image).isfinite().all()


def test_a_class_without_anything_keeps_its_mean():
    before = Gaussians(torch.eye(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    features, share = before.mean[:1], torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    after = before.moved(features, share, Known.of(None, 0.0, 2, features))
    assert torch.equal(after.mean, before.mean)
    assert (after.variance > 0).all()


def test_without_steps_it_is_zero_shot_and_a_file_keeps_it(tmp_path):
    task, held = given()
    plain = TransClip(steps=0).fit(ENCODER, task)
    assert torch.equal(plain(held.image), ZeroShot().fit(ENCODER, task)(held.image))
    found = TransClip(gamma=0.02).fit(ENCODER, task)
    found.save(tmp_path)
    back = TransClipClassifier.load(tmp_path)
    other = normalize(held.image + 0.1, dim=1)
    for image in (held.image, other):
        assert torch.equal(found(image), back(image))
        assert torch.equal(found(image), TransClip(gamma=0.02).fit(ENCODER, task)(image))
    assert json.dumps(back.about) == json.dumps(found.about)
    with pytest.raises(ValueError, match="TransClip needs the measured pictures"):
        TransClip().fit(ENCODER, replace(task, query=None))
