"""CoOp against a loop with whole prompts and an optimiser by hand; zero-shot when nothing is learned; other names."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from tests.adapters.prompt_towers import (
    NAMES,
    PHOTO,
    TOWERS,
    assert_untouched,
    encoder_of,
    state_of,
    task_of,
)
from vlp.adapters.adapter import class_weights
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.coop import CoOp
from vlp.adapters.prompted import ContextClassifier
from vlp.adapters.stored import Stored
from vlp.adapters.task import Examples, Task

PLAIN = tuple(name.replace("_", " ") for name in NAMES)
OTHER = ("dog", "old ant")


@pytest.fixture(scope="module")
def encoder():
    return encoder_of()


def by_loops(encoder, task, adapter, start, *, epochs):
    """Every class and picture by itself, whole sentences, SGD by hand."""
    dual, context = encoder.dual, start.clone()
    velocity, rng = torch.zeros_like(context), torch.Generator().manual_seed(task.seed)
    for epoch in range(epochs):
        for rows in torch.randperm(len(task.support), generator=rng).split(adapter.batch):
            context.requires_grad_()
            weights = weights_by_loops(dual, context)
            losses = []
            for row in rows.tolist():
                logits = encoder.scale * torch.stack([task.support.image[row] @ w for w in weights])
                losses.append(cross_entropy(logits[None], task.support.label[row][None]))
            (gradient,) = torch.autograd.grad(sum(losses) / len(losses), context)
            context = context.detach()
            velocity = adapter.momentum * velocity + gradient + adapter.weight_decay * context
            context = context - adapter.rate(epoch, epochs) * velocity
    return context, torch.stack(weights_by_loops(dual, context)).detach()


def weights_by_loops(dual, context):
    found = []
    for name in PLAIN:
        ids = torch.tensor(dual.tokenizer.encode([f"{name}."]))
        found.append(dual.encode_text(ids, torch.ones_like(ids, dtype=torch.bool), prefix=context)[0])
    return found


@pytest.mark.parametrize("kind", TOWERS)
def test_it_equals_the_loop(kind):
    encoder = encoder_of(kind)
    task = task_of(encoder)
    adapter = CoOp(words="a photo of a", epochs=3, batch=3, lr=0.05)
    ids = encoder.dual.tokenizer.encode(["a photo of a"])[0]
    words = torch.tensor([ids[encoder.dual.tokenizer.start : -1]])
    context, weights = by_loops(encoder, task, adapter, encoder.dual.embed(words)[0].detach(), epochs=3)
    classifier = adapter.fit(encoder, task)
    torch.testing.assert_close(classifier.learned["context"], context, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(classifier.weight, weights, atol=2e-5, rtol=0)
    assert not torch.allclose(classifier.weight, class_weights(encoder, Task(PLAIN, PHOTO)), atol=1e-3)
    assert classifier.about["steps"] == 9


@pytest.mark.parametrize("kind", TOWERS)
def test_nothing_learned_is_zero_shot_and_the_model_is_as_it_was(kind):
    encoder = encoder_of(kind)
    task, before = task_of(encoder), state_of(encoder)
    classifier = CoOp(words="a photo of a", epochs=0).fit(encoder, task)
    torch.testing.assert_close(classifier.weight, class_weights(encoder, Task(PLAIN, PHOTO)), atol=1e-6, rtol=0)
    assert_untouched(encoder, before)
    CoOp(epochs=1, tokens=2).fit(encoder, task)
    assert_untouched(encoder, before)


def test_it_lowers_the_loss_of_what_it_learns_from(encoder):
    task = task_of(encoder)
    before = CoOp(epochs=0, tokens=4).fit(encoder, task)
    after = CoOp(epochs=30, tokens=4, lr=0.1).fit(encoder, task)
    losses = [cross_entropy(c(task.support.image), task.support.label) for c in (before, after)]
    assert losses[1] < losses[0] - 0.1
    assert after.about["loss"] < losses[0] - 0.1
    assert after.about["selection"] == {"split": "none"}


def test_the_image_tower_is_never_run_and_seeds_decide(encoder, monkeypatch):
    task = task_of(encoder)
    monkeypatch.setattr(type(encoder.dual.image_tower), "run", lambda *_, **__: pytest.fail("the image tower ran"))
    one, same = (CoOp(epochs=2, tokens=3).fit(encoder, task) for _ in range(2))
    assert torch.equal(one.weight, same.weight)
    other = CoOp(epochs=2, tokens=3).fit(encoder, Task(NAMES, support=task.support, seed=1))
    assert not torch.equal(one.weight, other.weight)


def test_views_are_learned_from(encoder):
    task = task_of(encoder)
    image = task.support.image
    views = normalize(torch.stack([image, image.flip(1)], dim=1), dim=-1)
    adapter = CoOp(epochs=2, tokens=3, lr=0.1)
    plain = adapter.fit(encoder, task)
    same = Task(NAMES, support=Examples(image, task.support.label, views=image[:, None]))
    torch.testing.assert_close(adapter.fit(encoder, same).weight, plain.weight, atol=1e-2, rtol=0)
    mixed = Task(NAMES, support=Examples(image, task.support.label, views=views))
    assert not torch.equal(adapter.fit(encoder, mixed).weight, plain.weight)
    assert CoOp.views > 0


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_a_saved_one_is_the_same_and_takes_other_names(encoder, tmp_path, position):
    task, adapter = task_of(encoder), CoOp(epochs=2, tokens=4, lr=0.1, position=position)
    made = adapter.fit(encoder, task)
    made.save(tmp_path / "c")
    back = ContextClassifier.load(tmp_path / "c")
    assert torch.equal(back(task.support.image), made(task.support.image))
    assert (back.names, back.about, back.needs) == (NAMES, made.about, "features")
    moved = CoOp().transfer(encoder, back, Task(OTHER))
    assert torch.equal(moved.weight, adapter.transfer(encoder, made, Task(OTHER)).weight)
    assert (moved.names, moved.about["fitted"]) == (OTHER, list(NAMES))
    again = adapter.transfer(encoder, back, Task(NAMES))
    torch.testing.assert_close(again.weight, made.weight, atol=1e-6, rtol=0)
    assert torch.equal(LinearClassifier.load(tmp_path / "c").weight, made.weight)


def test_contexts_of_single_classes_do_not_move_on(encoder):
    made = CoOp(epochs=2, tokens=2, specific=True, lr=0.1).fit(encoder, task_of(encoder))
    assert made.learned["context"].shape == (4, 2, 32)
    assert not torch.allclose(made.learned["context"][0], made.learned["context"][1])
    with pytest.raises(NotImplementedError, match="specific: true"):
        CoOp().transfer(encoder, made, Task(OTHER))


def test_what_is_missing_or_of_another_model_is_refused(encoder, tmp_path):
    with pytest.raises(ValueError, match="CoOp needs labelled pictures"):
        CoOp().fit(encoder, Task(NAMES))
    with pytest.raises(ValueError, match="stored features have no towers"):
        CoOp().fit(Stored(), Task(NAMES, support=Examples(torch.zeros(1, 4), torch.zeros(1).long())))
    made = CoOp(epochs=0).fit(encoder, task_of(encoder))
    other = encoder_of("siglip")
    with pytest.raises(ValueError, match=f"fitted on weights {encoder.weights_hash}, and these are"):
        CoOp().transfer(other, made, Task(OTHER))
    made.about["adapter"] = "vpt"
    with pytest.raises(ValueError, match="coop was given a classifier fitted by vpt"):
        CoOp().transfer(encoder, made, Task(OTHER))
    LinearClassifier(torch.zeros(2, 3), names=OTHER).save(tmp_path / "plain")
    with pytest.raises(ValueError, match='of kind "None"; ContextClassifier reads "context"'):
        ContextClassifier.load(tmp_path / "plain")


def test_epochs_by_shots():
    assert [CoOp().usual_epochs(shots) for shots in (1, 2, 4, 8, 16)] == [50, 100, 100, 200, 200]


def test_half_precision_learns_nearly_the_same(encoder):
    task = task_of(encoder)
    adapter = CoOp(epochs=2, tokens=3)
    plain = adapter.fit(encoder, task).weight
    encoder.precision = "bf16"
    try:
        half = adapter.fit(encoder, task).weight
    finally:
        encoder.precision = "fp32"
    torch.testing.assert_close(half, plain, atol=0.03, rtol=0)
    assert not torch.equal(half, plain)
