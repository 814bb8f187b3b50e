"""The cache of typical pictures against loops; alpha 0 is zero-shot."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.adapters.blobs import ENCODER, accuracy, blobs
from vlp.adapters.tfup import Tfup, TfupClassifier, cache_logits, log_probabilities, typical
from vlp.adapters.zeroshot import ZeroShot


def pool(**settings):
    task, held = blobs(**{"shots": 30, **settings})
    return replace(task, support=None, unlabelled=task.support.unlabelled()), held


def probabilities(image, weight):
    return [(10 * weight @ row).softmax(dim=0) for row in image]


def divergence(p, q):
    return sum(float(a) * float(torch.log(a / b)) for a, b in zip(p, q))


def test_the_cache_has_the_typical_of_the_confident():
    task, _ = pool(dtype=torch.float64, noise=0.8)
    image, weight = task.unlabelled.image, task.text[:, 0]
    p = probabilities(image, weight)
    found = typical(log_probabilities(image, weight), 5)
    for c in range(4):
        likeliest = sorted(range(len(image)), key=lambda row: -float(p[row][c]))[:10]
        total = {row: sum(divergence(p[row], p[other]) for other in likeliest) for row in likeliest}
        assert found[c].tolist() == sorted(likeliest, key=total.__getitem__)[:5]
    assert typical(log_probabilities(image[:3], weight), 5).shape == (4, 3)  # as many as there are


def test_what_the_cache_says_equals_the_loop_with_z_scores():
    task, held = pool(dtype=torch.float64, noise=0.8)
    weight = task.text[:, 0]
    classifier = Tfup(beta=2.0).fit(ENCODER, task)
    keys, labels = classifier.key, classifier.label.tolist()
    key_p = probabilities(keys, weight)
    want = torch.zeros(len(held), 4, dtype=torch.float64)
    for row, (image, p) in enumerate(zip(held.image, probabilities(held.image, weight))):
        kl = torch.tensor([divergence(p, q) for q in key_p])
        scored = (kl - kl.mean()) / kl.std()
        alike = 2 * (1 - (scored - scored.min()) / (scored.max() - scored.min()))
        want[row] = 20 * weight @ image
        for place, label in enumerate(labels):
            want[row, label] += 0.3 * float(torch.exp(-2 * (1 - float(image @ keys[place]) * alike[place])))
    torch.testing.assert_close(classifier(held.image), want, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(("pictures", "shots"), [(4, 4), (80, 9), (160, 12), (400, 16)])
def test_as_many_keys_a_class_as_the_pool_allows(pictures, shots):
    task, _ = pool(shots=100)
    task = replace(task, unlabelled=task.unlabelled.only(range(pictures)))
    found = Tfup().fit(ENCODER, task)
    assert len(found.key) == 4 * shots
    assert torch.equal(found.key, task.unlabelled.image[found.row])
    assert found.about["selection"] == {"split": "none", "n": pictures, "shots": shots}


def test_alpha_0_is_zero_shot_and_keys_that_are_all_alike_say_no_nan():
    task, held = pool()
    assert torch.equal(Tfup(alpha=0).fit(ENCODER, task)(held.image), ZeroShot().fit(ENCODER, task)(held.image))
    same = task.unlabelled.image[:1].expand(3, -1)
    found = cache_logits(held.image, same, torch.tensor([0, 1, 1]), task.text[:, 0], beta=1.0)
    want = (held.image @ same[0] - 1).exp()
    torch.testing.assert_close(found[:, :2], torch.stack([want, 2 * want], dim=1))


def test_without_pictures_it_says_what_it_needs():
    with pytest.raises(ValueError, match="Tfup needs pictures without labels"):
        Tfup().fit(ENCODER, replace(pool()[0], unlabelled=None))


def test_a_strong_cache_moves_decisions_and_survives_its_file(tmp_path):
    task, held = pool(noise=0.6, seed=3)
    classifier = Tfup(alpha=3.0).fit(ENCODER, task)
    assert accuracy(classifier, held) >= accuracy(ZeroShot().fit(ENCODER, task), held)
    classifier.save(tmp_path)
    back = TfupClassifier.load(tmp_path)
    assert torch.equal(classifier(held.image), back(held.image))
    assert torch.equal(classifier.row, back.row)
    assert (back.names, back.about, back.kind) == (classifier.names, classifier.about, "tfup")
