"""Coupled prompts: a step by hand through the couplings, widths of the towers, other names."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.adapters.prompt_towers import (
    NAMES,
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
from vlp.adapters.maple import Coupled, MaPLe
from vlp.adapters.prompted import TowerClassifier
from vlp.adapters.task import Task


def test_a_step_equals_the_one_by_hand():
    encoder = encoder_of()
    task, dual = task_of(encoder), encoder.dual
    settings = {"depth": 2, "batch": 8, "augment": None, "weight_decay": 0.0, "warm_lr": 0.02}
    adapter = MaPLe(epochs=1, **settings)
    start = Coupled(encoder, adapter.prompts(encoder, NAMES), depth=2, seed=0)
    learned = {name: p.detach().clone().requires_grad_() for name, p in start.named_parameters()}
    assert learned["text"].shape == (2, 2, 32)

    def visual(state):
        made = []
        for j in range(2):
            weight, bias = state[f"couplings.{j}.weight"], state[f"couplings.{j}.bias"]
            made.append(torch.stack([weight @ vector + bias for vector in state["text"][j]]))
        return torch.stack(made)

    image = image_by_hand(dual, pixels(encoder, task), visual(learned))
    weight = text_by_hand(dual, NAMES, learned["text"])
    want = one_step(learned, cross_entropy(encoder.scale * image @ weight.T, task.support.label), rate=0.02)
    made = adapter.fit(encoder, task)
    torch.testing.assert_close(made.learned["text"], want["text"], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made.learned["visual"], visual(want), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", TOWERS)
def test_widths_are_the_towers_and_the_model_is_as_it_was(kind):
    encoder = encoder_of(kind)
    task, before = task_of(encoder), state_of(encoder)
    made, same = (MaPLe(epochs=2, lr=0.01).fit(encoder, task) for _ in range(2))
    assert_untouched(encoder, before)
    depth = min(9, len(encoder.dual.text_blocks), len(encoder.dual.image_blocks))
    assert made.learned["text"].shape == (depth, 2, 32)
    assert made.learned["visual"].shape == (depth, 2, encoder.dual.image_tower.width)
    assert all(torch.equal(made.learned[name], same.learned[name]) for name in made.learned)


def test_text_is_zero_shot_until_something_is_learned():
    encoder = encoder_of()
    made = MaPLe(epochs=0, depth=1).fit(encoder, task_of(encoder))
    want = encoder.texts([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    torch.testing.assert_close(made.weight, want, atol=1e-6, rtol=0)


def test_a_saved_one_takes_other_names(tmp_path):
    encoder = encoder_of()
    task, adapter = task_of(encoder), MaPLe(epochs=2, lr=0.02)
    made = adapter.fit(encoder, task)
    made.save(tmp_path / "c")
    back = TowerClassifier.load(tmp_path / "c", encoder=encoder)
    image = pixels(encoder, task)
    assert torch.equal(back(image), made(image))
    moved = MaPLe().transfer(encoder, back, Task(("dog", "ant")))
    with torch.no_grad():
        weight = text_by_hand(encoder.dual, ("dog", "ant"), made.learned["text"])
    torch.testing.assert_close(moved(image), encoder.scale * made.features(image) @ weight.T, atol=1e-4, rtol=0)


def test_published_settings():
    part = MaPLe()
    assert (part.lr, part.batch, part.usual_epochs(16), part.tokens, part.depth) == (0.0035, 4, 5, 2, 9)
