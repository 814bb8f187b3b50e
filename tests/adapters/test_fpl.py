"""FPL, IFPL and GRIP: the loss by loops, how many pictures count, iterations by hand, three kinds of prompts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.adapters.prompt_towers import TOWERS, assert_untouched, encoder_of, one_step, pictures, pixels, state_of
from vlp.adapters.adapter import class_weights
from vlp.adapters.fpl import FPL, GRIP, IFPL, joined, shares
from vlp.adapters.prompted import ContextClassifier, TowerClassifier
from vlp.adapters.prompts import ClassPrompts
from vlp.adapters.pseudo_shots import leaderboard
from vlp.adapters.task import Examples, Task
from vlp.adapters.zeroshot import ZeroShot

NAMES = ("cat", "tabby cat", "big old dog")
KINDS = ("textual", "visual", "multimodal")


@pytest.fixture(scope="module")
def encoder():
    return encoder_of()


def task_of(encoder, *, labelled=1, pool=9):
    own, more = pictures(3 * labelled), pictures(pool, seed=1)
    support = Examples(encoder.images(own).features, torch.arange(3).repeat(labelled), pictures=own) if own else None
    unlabelled = Examples(encoder.images(more).features, keys=tuple(f"u{n}" for n in range(pool)), pictures=more)
    return Task(NAMES, ("a photo of a {}.",), support=support, unlabelled=unlabelled)


@pytest.mark.parametrize("labelled", [0, 2])
def test_a_step_equals_the_one_by_loops(encoder, labelled):
    task = task_of(encoder, labelled=labelled)
    settings = {"words": "a photo of a", "shots": 2, "batch": 100, "weight_decay": 0.0, "warm_lr": 0.05}
    made = FPL(epochs=1, labelled=0.5, pseudo=2.0, **settings).fit(encoder, task)
    start = FPL(epochs=0, **settings).fit(encoder, task).learned["context"]
    context = start.clone().requires_grad_()
    weight = ClassPrompts(encoder, NAMES, words="a photo of a").encode(context)
    said = ZeroShot().fit(encoder, task)(task.unlabelled.image)
    loss = torch.zeros(())
    sets = [(0.5, task.support.image, task.support.label)] if labelled else []
    pseudo = leaderboard(said, 2)
    for share, image, label in [*sets, (2.0, task.unlabelled.image[pseudo.rows], pseudo.label)]:
        for x, y in zip(image, label, strict=True):
            loss = loss + share * cross_entropy((encoder.scale * weight @ x)[None], y[None]) / len(label)
    want = one_step({"context": context}, loss, rate=0.05)["context"]
    torch.testing.assert_close(made.learned["context"], want, atol=1e-5, rtol=1e-4)
    assert made.about["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    assert made.about["pseudolabels"]["keys"] == [f"u{row}" for row in pseudo.rows.tolist()]
    assert (made.about["labelled"], made.about["pseudolabels"]["count"]) == (3 * labelled, [2, 2, 2])


@pytest.mark.parametrize("kind", TOWERS)
def test_nothing_learned_is_zero_shot(kind):
    encoder = encoder_of(kind)
    task, before = task_of(encoder), state_of(encoder)
    plain = ZeroShot().fit(encoder, task)
    text = FPL(words="a photo of a", epochs=0).fit(encoder, task)
    torch.testing.assert_close(text.weight, class_weights(encoder, task), atol=1e-6, rtol=0)
    visual = GRIP(prompts="visual", tokens=0, iterations=2).fit(encoder, task)
    assert torch.equal(visual(pixels(encoder, task)), plain(task.support.image))
    assert_untouched(encoder, before)


@pytest.mark.parametrize("prompts", KINDS)
def test_each_kind_learns_from_both_and_is_saved(encoder, prompts, tmp_path):
    task, before = task_of(encoder), state_of(encoder)
    adapter = GRIP(prompts=prompts, iterations=2, epochs=2, tokens=2, warm_epochs=1)
    made, same = (adapter.fit(encoder, task) for _ in range(2))
    assert_untouched(encoder, before)
    kind = ContextClassifier if prompts == "textual" else TowerClassifier
    assert type(made) is kind
    for name, tensor in made.learned.items():
        assert torch.equal(tensor, same.learned[name])
        start = replace_epochs(adapter).fit(encoder, task).learned[name]
        assert not torch.equal(tensor, start)
    made.save(tmp_path / "c")
    back = kind.load(tmp_path / "c") if prompts == "textual" else kind.load(tmp_path / "c", encoder=encoder)
    inputs = task.support.image if prompts == "textual" else pixels(encoder, task)
    assert torch.equal(back(inputs), made(inputs))
    moved = GRIP().transfer(encoder, back, Task(("dog", "ant")))
    assert (moved.names, moved.about["fitted"]) == (("dog", "ant"), list(NAMES))
    assert moved.about["settings"]["prompts"] == prompts
    again = GRIP().transfer(encoder, back, Task(NAMES, ("a photo of a {}.",)))
    torch.testing.assert_close(again.weight, made.weight, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="fpl was given a classifier fitted by grip"):
        FPL().transfer(encoder, back, Task(("dog", "ant")))


def replace_epochs(adapter):
    return adapter.model_copy(update={"epochs": 0})


def test_iterations_are_labelled_by_the_model_before(encoder):
    task = task_of(encoder, pool=12)
    adapter = GRIP(iterations=2, epochs=3, tokens=2)
    made = adapter.fit(encoder, task)
    said = ZeroShot().fit(encoder, task)(task.unlabelled.image)
    first = adapter._learn(encoder, task, task.support, leaderboard(said, 2).shots(task.unlabelled))[0]
    believed = leaderboard(first(task.unlabelled.image), 4)
    assert made.about["pseudolabels"]["rows"] == believed.rows.tolist()
    assert made.about["iterations"] == 2
    second = adapter._learn(encoder, task, task.support, believed.shots(task.unlabelled))[0]
    assert torch.equal(made.weight, second.weight)


def test_grip_grows_on_where_its_first_numbers_are_alike(encoder):
    adapter = GRIP(epochs=0, words="a photo of a", iterations=9)
    task = task_of(encoder, pool=9)
    assert adapter.counts(9, 3) == [1, 1, 1, 1, 1, 2, 2, 2, 3]
    about = adapter.fit(encoder, task).about
    assert (about["iterations"], about["pseudolabels"]["count"]) == (3, [3, 3, 3])


def test_settings_without_effect_are_refused():
    for settings in ({"augment": {"flip": 0.5}}, {"depth": 2}, {"tokens": 0}):
        with pytest.raises(ValueError, match="textual prompts are learned from stored features"):
            GRIP(**settings)
        GRIP(prompts="visual", **settings)


def test_ifpl_goes_on_until_nothing_changes(encoder, monkeypatch):
    task, seen = task_of(encoder), []
    learn = IFPL._learn

    def spied(self, *given):
        seen.append(given[-1])
        return learn(self, *given)

    monkeypatch.setattr(IFPL, "_learn", spied)
    made = IFPL(shots=9, iterations=5, epochs=1, tokens=2).fit(encoder, task)
    assert made.about["iterations"] == len(seen) <= 5
    fixed = IFPL(shots=2, iterations=4, epochs=0, words="a photo of a").fit(encoder, task)
    assert fixed.about["iterations"] == 1  # what is learned predicts as zero-shot does
    one = FPL(shots=9, epochs=1, tokens=2).fit(encoder, task)
    assert torch.equal(IFPL(shots=9, iterations=1, epochs=1, tokens=2).fit(encoder, task).weight, one.weight)


def test_counts_rates_and_shares():
    assert GRIP().counts(1000, 10) == [10 * i for i in range(1, 11)]
    assert GRIP(iterations=3).counts(5, 10) == [1, 1, 1]
    assert IFPL(iterations=3).counts(1000, 10) == [16] * 3
    assert FPL().counts(7, 10) == [7]
    part = FPL()
    rates = [part.rate(epoch, 150) for epoch in range(150)]
    assert rates[0] == 1e-4
    assert rates[5] == 0.1
    assert rates[77] == pytest.approx(0.05 * (1 + math.cos(math.pi * 72 / 145)))
    assert (part.usual_epochs(1), part.batch, part.weight_decay) == (150, 16, 0.1)
    assert (FPL(prompts="multimodal").lr, FPL(prompts="multimodal", lr=0.3).lr, part.lr) == (0.01, 0.3, 0.1)
    weights = shares(3, 5, 0.5, 2.0)
    assert weights[:3].sum() / 8 == pytest.approx(0.5)
    assert weights[3:].sum() / 8 == pytest.approx(2.0)
    assert torch.equal(shares(0, 4, 9.0, 1.0), torch.ones(4))


def test_what_is_joined_and_what_is_refused(encoder):
    one = Examples(torch.eye(2), torch.tensor([0, 1]), ("a", "b"), [1, 2])
    two = Examples(torch.eye(2)[:1], torch.tensor([1]), ("c",), [3])
    both = joined(one, two)
    assert (both.known.tolist(), both.keys, both.pictures) == ([0, 1, 1], ("a", "b", "c"), [1, 2, 3])
    bare = joined(replace(one, pictures=None, keys=()), two)
    assert (bare.pictures, bare.keys) == (None, ())
    task = task_of(encoder)
    with pytest.raises(ValueError, match="GRIP needs pictures without labels"):
        GRIP().fit(encoder, replace(task, unlabelled=None))
    features = replace(task, unlabelled=Examples(task.unlabelled.image))
    with pytest.raises(ValueError, match="only features were given"):
        FPL(prompts="visual").fit(encoder, features)
    assert FPL(epochs=1, tokens=2).fit(encoder, features).about["epochs"] == 1
