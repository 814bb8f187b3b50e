"""Gaussian discriminants against loops, scikit-learn, Bayes, and zero-shot."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch.nn.functional import normalize

from tests.adapters.blobs import ENCODER, accuracy, blobs
from vlp.adapters.gaussian import GaussianClassifier, kubokawa
from vlp.adapters.gda import ALPHAS, Gda
from vlp.adapters.selection import folds, score
from vlp.adapters.stored import Stored
from vlp.adapters.task import Examples, Task
from vlp.adapters.zeroshot import ZeroShot


def the_loop(task, alpha, image, *, scale=20.0):
    """The few-shot formula, one row and one class at a time."""
    support = task.support
    rows = [
        (copy.double(), int(label))
        for place, label in enumerate(support.known)
        for copy in (support.image[place : place + 1] if support.views is None else support.views[place])
    ]
    width, names = support.image.shape[1], range(len(task.names))
    mean = [sum(row for row, own in rows if own == c) / sum(own == c for _, own in rows) for c in names]
    covariance = sum(torch.outer(row - mean[c], row - mean[c]) for row, c in rows) / (len(rows) - 1)
    inside = (len(rows) - 1) * covariance + covariance.trace() * torch.eye(width, dtype=torch.float64)
    precision = width * torch.linalg.pinv(inside)
    logits = []
    for c in names:
        bias = math.log(1 / len(task.names)) - mean[c] @ precision @ mean[c] / 2
        words = scale * image.double() @ normalize(task.text[c].double().mean(dim=0), dim=0)
        logits.append(float(words + alpha * (image.double() @ precision @ mean[c] + bias)))
    return logits


@pytest.mark.parametrize("views", [0, 3])
def test_logits_equal_the_loop(views, tmp_path):
    task, held = blobs(views=views, dtype=torch.float64)
    classifier = Gda(alpha=0.3).fit(ENCODER, task)
    for image, own in zip(held.image, classifier(held.image), strict=True):
        assert own.tolist() == pytest.approx(the_loop(task, 0.3, image), rel=1e-9)
    assert classifier.about["selection"] == {"split": "none", "alpha": 0.3, "n": 24 * max(1, views)}
    classifier.save(tmp_path)
    back = GaussianClassifier.load(tmp_path)
    assert isinstance(back, GaussianClassifier)
    assert torch.equal(back(held.image), classifier(held.image))


@pytest.mark.parametrize(("prior", "counts"), [("uniform", (500,) * 4), ("empirical", (400, 700, 500, 600))])
def test_without_shrinkage_it_is_the_discriminant_analysis_of_scikit_learn(prior, counts):
    task, held = blobs(counts=counts, noise=1.2, held=50, dtype=torch.float64)
    peer = LinearDiscriminantAnalysis(solver="lsqr").fit(task.support.image.numpy(), task.support.known)
    ours = Gda(alpha=1.0, precision="pooled", prior=prior).fit(ENCODER, task)
    words = ZeroShot().fit(ENCODER, task)
    n = sum(counts)
    weight = (ours.weight - words.weight) * 20 * n / (n - 1)  # our covariance divides by n - 1, theirs by n
    torch.testing.assert_close(weight, torch.from_numpy(peer.coef_))
    found = (ours(held.image) - words(held.image)).softmax(dim=1)
    want = torch.from_numpy(peer.predict_proba(held.image.numpy()))
    torch.testing.assert_close(found, want, atol=1e-3, rtol=0)
    assert torch.equal(found.argmax(dim=1), want.argmax(dim=1))


def test_on_gaussians_of_one_covariance_it_comes_to_bayes():
    rng = torch.Generator().manual_seed(0)
    mean = 0.5 * torch.randn(3, 5, generator=rng, dtype=torch.float64)
    root = torch.randn(5, 5, generator=rng, dtype=torch.float64)

    def drawn(count):
        label = torch.arange(3).repeat_interleave(count)
        return Examples(mean[label] + torch.randn(len(label), 5, generator=rng, dtype=torch.float64) @ root.T, label)

    held = drawn(3000)
    precision = torch.linalg.inv(root @ root.T)
    bayes = (held.image @ precision @ mean.T - ((mean @ precision) * mean).sum(dim=1) / 2).argmax(dim=1)
    best = float((bayes == held.known).double().mean())
    text = torch.zeros(3, 1, 5, dtype=torch.float64)
    task = Task(("a", "b", "c"), text=text, support=drawn(3000))
    assert accuracy(Gda(alpha=1.0).fit(ENCODER, task), held) == pytest.approx(best, abs=0.01)
    assert 0.5 < best < 0.99


def test_one_picture_a_class_leaves_zero_shot_and_a_constant():
    task, _ = blobs(shots=1)
    words = ZeroShot().fit(ENCODER, task)
    classifier = Gda().fit(ENCODER, task)
    assert torch.equal(classifier.weight, words.weight)
    assert classifier.bias.tolist() == pytest.approx([0.1 * math.log(1 / 4)] * 4)
    same = replace(task, support=replace(task.support, views=task.support.image[:, None].expand(-1, 7, -1)))
    assert torch.equal(Gda().fit(ENCODER, same).weight, words.weight)  # equal copies have no spread either
    assert classifier.about["selection"] == {"split": "none", "alpha": 0.1, "n": 4}


@pytest.mark.parametrize("views", [0, 4])
def test_alpha_nought_is_zero_shot_bit_for_bit(views):
    task, held = blobs(views=views)
    assert torch.equal(Gda(alpha=0).fit(ENCODER, task)(held.image), ZeroShot().fit(ENCODER, task)(held.image))


@pytest.mark.parametrize("validation", [0, 5])
def test_alpha_is_the_best_of_the_grid(validation):
    task, held = blobs(noise=1.0, validation=validation, views=2)
    chosen = Gda().fit(ENCODER, task).about["selection"]
    assert chosen["split"] == ("validation" if validation else "train")
    assert chosen["alpha"] in ALPHAS
    assert chosen["candidates"] == 7
    if validation:
        reached = {alpha: accuracy(Gda(alpha=alpha).fit(ENCODER, task), task.validation) for alpha in ALPHAS}
        assert chosen["acc1"] == reached[chosen["alpha"]] == max(reached.values())
    paper = Gda(protocol="paper").fit(ENCODER, replace(task, test=held))
    assert paper.about["selection"]["split"] == "test"
    assert paper.about["selection"]["acc1"] == accuracy(paper, held)
    with pytest.raises(ValueError, match="protocol: paper chooses on test"):
        Gda(protocol="paper").fit(ENCODER, task)


@pytest.mark.parametrize("precision", ["kubokawa", "pooled", "classes"])
def test_folds_without_spread_choose_nothing(precision):
    for seed in range(4):
        task, _ = blobs(classes=8, shots=2, width=16, noise=1.0, seed=seed)
        found = Gda(precision=precision).fit(ENCODER, task)
        assert found.about["selection"] == {"split": "none", "alpha": 0.1, "n": 16}  # one picture a class in each fold
    same = replace(task, support=replace(task.support, views=task.support.image[:, None].expand(-1, 3, -1)))
    assert Gda(precision=precision).fit(ENCODER, same).about["selection"]["split"] == "none"  # equal copies neither
    task, _ = blobs(classes=8, counts=(3, 2, 2, 2, 2, 2, 2, 2), width=16, noise=1.0)
    uneven = Gda(precision=precision).fit(ENCODER, task).about["selection"]
    assert (uneven["split"], uneven["candidates"]) == ("train", 7)


@pytest.mark.parametrize("seed", [2, 8, 9])  # where the size of P decides
@pytest.mark.parametrize("precision", ["kubokawa", "pooled"])
def test_alpha_of_folds_is_that_of_the_whole(precision, seed):
    task, _ = blobs(shots=4, noise=1.5, seed=seed, dtype=torch.float64)
    chosen = Gda(precision=precision).fit(ENCODER, task).about["selection"]
    reached = {}
    for alpha in ALPHAS:
        scores = []
        for learn, judge in folds(task).folds:
            assert len(learn) == 12
            smaller = 11 / 15 if precision == "kubokawa" else 1.0  # D / 15 in the whole is D / 11 in a fold
            made = Gda(alpha=alpha * smaller, precision=precision).fit(ENCODER, replace(task, support=learn))
            scores.append(score(made(judge.image), judge.known))
        reached[alpha] = tuple(sum(one[k] for one in scores) / 4 for k in (0, 1))
    assert chosen["alpha"] == max(ALPHAS, key=lambda alpha: reached[alpha])
    assert chosen["acc1"] == pytest.approx(reached[chosen["alpha"]][0])


def test_classes_of_unequal_size_may_weigh_so():
    task, _ = blobs(counts=(12, 2, 1, 9), dtype=torch.float64)
    even, own = (Gda(alpha=1.0, prior=prior).fit(ENCODER, task) for prior in ("uniform", "empirical"))
    want = torch.tensor([12, 2, 1, 9], dtype=torch.float64).div(24).log() - math.log(0.25)
    torch.testing.assert_close(own.bias - even.bias, want)
    assert torch.equal(own.weight, even.weight)


def test_the_mean_of_class_covariances_equals_the_loop():
    task, _ = blobs(counts=(4, 7, 1, 20), width=5, dtype=torch.float64)
    covariances = [task.support.image[task.support.known == c].T.cov() for c in (0, 1, 3)]
    precision = torch.linalg.pinv(sum(covariances) / 3)
    mean = torch.stack([task.support.image[task.support.known == c].mean(dim=0) for c in range(4)])
    classifier = Gda(alpha=1.0, precision="classes").fit(Stored(scale=1.0), task)
    torch.testing.assert_close(classifier.weight, task.text[:, 0] + mean @ precision)


@pytest.mark.parametrize("precision", ["classes", "kubokawa"])
def test_new_classes_are_made_of_the_nearest_pictures_as_in_the_loop(precision):
    task, held = blobs(views=3, dtype=torch.float64)
    part = Gda(alpha=0.5, precision=precision, neighbours=9, copies=4)
    rng = torch.Generator().manual_seed(5)
    text = normalize(torch.randn(2, 1, 12, generator=rng, dtype=torch.float64), dim=2)
    old = part.fit(ENCODER, task)
    found = part.transfer(ENCODER, old, Task(("new", "newer"), text=text))
    rows = task.support.views.flatten(0, 1)
    means, inverses = [], []
    for word in text[:, 0]:
        near = rows[[place for _, place in sorted((-float(word @ row), place) for place, row in enumerate(rows))[:9]]]
        means.append(torch.cat([near, word.repeat(4, 1)]).mean(dim=0))
        covariance = (near - word).T @ (near - word) / 8
        inverses.append(12 * torch.linalg.pinv(8 * covariance + covariance.trace() * torch.eye(12).double()))
    inverse = sum(inverses) / 2
    alpha = 0.5 * (12 / 71 if precision == "kubokawa" else 1)
    for image, own in zip(held.image, found(held.image), strict=True):
        want = [
            20 * image @ word + alpha * (image @ inverse @ mean + math.log(0.5) - mean @ inverse @ mean / 2)
            for word, mean in zip(text[:, 0], means, strict=True)
        ]
        assert own.tolist() == pytest.approx([float(one) for one in want], rel=1e-9)
    assert found.names == ("new", "newer")
    assert found.about["selection"]["alpha_new"] == pytest.approx(alpha)
    assert found.about["selection"]["neighbours"] == 9


def test_a_loaded_classifier_has_no_features_to_transfer(tmp_path):
    task, _ = blobs()
    old = Gda(alpha=1.0).fit(ENCODER, task)
    old.save(tmp_path)
    with pytest.raises(ValueError, match="in memory only"):
        Gda().transfer(ENCODER, GaussianClassifier.load(tmp_path), task)
    few = Gda().transfer(ENCODER, old, Task(("a", "b"), text=task.text[:2]))
    assert few.about["selection"]["neighbours"] == 24  # all there are, of 64


def test_a_precision_of_nothing_is_nothing():
    assert not kubokawa(torch.zeros(3, 3, dtype=torch.float64), 5).any()
    assert not kubokawa(torch.eye(3, dtype=torch.float64), 1).any()
    task, _ = blobs()
    with pytest.raises(ValueError, match="gda learns every class"):
        Gda().fit(ENCODER, replace(task, support=task.support.only(range(6))))
