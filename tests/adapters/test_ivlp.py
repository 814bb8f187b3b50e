"""Prompts in both towers: a step by hand, the frozen end, other names."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.adapters.prompt_towers import (
    NAMES,
    PHOTO,
    TOWERS,
    assert_untouched,
    encoder_of,
    image_by_hand,
    one_step,
    pixels,
    state_of,
    task_of,
    text_by_hand,
)
from vlp.adapters.adapter import class_weights
from vlp.adapters.ivlp import IVLP
from vlp.adapters.prompted import TowerClassifier
from vlp.adapters.task import Task

PLAIN = tuple(name.replace("_", " ") for name in NAMES)


@pytest.mark.parametrize(("depth", "visual_depth"), [(1, 12), (2, 1), (12, 2)])
def test_a_step_equals_the_one_by_hand(depth, visual_depth):
    encoder = encoder_of()
    task, dual = task_of(encoder), encoder.dual
    settings = {"depth": depth, "visual_depth": visual_depth, "batch": 8, "augment": None}
    settings |= {"weight_decay": 0.0, "warm_lr": 0.02}
    start = IVLP(epochs=0, **settings).fit(encoder, task)
    learned = {name: tensor.clone().requires_grad_() for name, tensor in start.learned.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in learned.items()}
    assert shapes == {"text": (min(depth, 3), 2, 32), "visual": (min(visual_depth, 3), 2, 32)}
    image = image_by_hand(dual, pixels(encoder, task), learned["visual"])
    weight = text_by_hand(dual, NAMES, learned["text"])
    torch.testing.assert_close(start.weight, weight.detach(), atol=1e-6, rtol=0)
    want = one_step(learned, cross_entropy(encoder.scale * image @ weight.T, task.support.label), rate=0.02)
    made = IVLP(epochs=1, **settings).fit(encoder, task)
    for name in want:
        torch.testing.assert_close(made.learned[name], want[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", TOWERS)
def test_nothing_learned_is_zero_shot_and_the_model_is_as_it_was(kind):
    encoder = encoder_of(kind)
    task, before = task_of(encoder), state_of(encoder)
    made = IVLP(epochs=0, depth=1, visual_tokens=0).fit(encoder, task)
    torch.testing.assert_close(made.weight, class_weights(encoder, Task(PLAIN, PHOTO)), atol=1e-6, rtol=0)
    assert torch.equal(made.features(pixels(encoder, task)), task.support.image)
    learned = [IVLP(epochs=2, lr=0.01).fit(encoder, task).learned for _ in range(2)]
    assert all(torch.equal(learned[0][name], learned[1][name]) for name in learned[0])
    assert_untouched(encoder, before)


def test_a_saved_one_takes_other_names(tmp_path):
    encoder = encoder_of()
    task, adapter = task_of(encoder), IVLP(epochs=2, lr=0.02)
    made = adapter.fit(encoder, task)
    made.save(tmp_path / "c")
    back = TowerClassifier.load(tmp_path / "c", encoder=encoder)
    moved = IVLP().transfer(encoder, back, Task(("dog", "ant")))
    with torch.no_grad():
        weight = text_by_hand(encoder.dual, ("dog", "ant"), made.learned["text"])
    image = pixels(encoder, task)
    torch.testing.assert_close(moved(image), encoder.scale * made.features(image) @ weight.T, atol=1e-4, rtol=0)
    assert (moved.names, moved.about["fitted"]) == (("dog", "ant"), list(NAMES))


def test_published_settings():
    part = IVLP()
    assert (part.lr, part.batch, part.usual_epochs(16), part.tokens, part.visual_tokens) == (0.0035, 4, 5, 2, 2)
