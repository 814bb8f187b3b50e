"""PromptSRC: its loss by loops, the Gaussian mean of its epochs, its ends."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

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
from vlp.adapters.ivlp import IVLP
from vlp.adapters.prompted import TowerClassifier
from vlp.adapters.promptsrc import PromptSRC, divergence, gaussian
from vlp.adapters.task import Task
from vlp.text.templates import fill, simple

NANO = {"tokens": 2, "visual_tokens": 2, "depth": 2, "visual_depth": 2, "anchors": "simple"}


def loss_by_loops(encoder, task, image, weight):
    """Of pictures in full batch, from features f [n, D] and weights w [C, D]."""
    anchors = []
    for name in NAMES:
        features = [normalize(encoder.texts([fill(template, name)])[0], dim=0) for template in simple()]
        anchors.append(normalize(sum(features) / len(features), dim=0))
    s, n, C = encoder.scale, len(image), len(NAMES)
    value = 0.0
    for i in range(n):
        logits = torch.stack([s * image[i] @ weight[c] for c in range(C)]).log_softmax(dim=0)
        before = torch.stack([s * task.support.image[i] @ anchors[c] for c in range(C)]).log_softmax(dim=0)
        value = value - logits[task.support.label[i]] / n
        value = value + sum(before[c].exp() * (before[c] - logits[c]) for c in range(C)) / (n * C)
        value = value + 10 * (image[i] - task.support.image[i]).abs().mean() / n
    return value + 25 * sum((weight[c] - anchors[c]).abs().mean() for c in range(C)) / C


def test_a_step_equals_the_one_by_loops():
    encoder = encoder_of()
    task, dual = task_of(encoder), encoder.dual
    settings = {**NANO, "batch": 8, "augment": None, "weight_decay": 0.0, "warm_lr": 0.01}
    start = PromptSRC(epochs=0, **settings).fit(encoder, task)
    learned = {name: tensor.clone().requires_grad_() for name, tensor in start.learned.items()}
    image = image_by_hand(dual, pixels(encoder, task), learned["visual"])
    loss = loss_by_loops(encoder, task, image, text_by_hand(dual, NAMES, learned["text"]))
    made = PromptSRC(epochs=1, **settings).fit(encoder, task)
    assert made.about["loss"] == pytest.approx(float(loss.detach()), abs=1e-4)
    for name, want in one_step(learned, loss, rate=0.01).items():
        torch.testing.assert_close(made.learned[name], want, atol=1e-5, rtol=1e-4)


def test_with_augmentation_the_frozen_features_are_of_the_same_pixels():
    encoder = encoder_of()
    task, before = task_of(encoder), state_of(encoder)
    adapter = PromptSRC(epochs=0, **{**NANO, "visual_tokens": 0}, text=0.0, logits=0.0, image=1e6)
    prompts = adapter.prompts(encoder, NAMES)
    learned = adapter.start(encoder, prompts, 0)
    loss = adapter.loss(encoder, task, prompts, learned)
    for shots in adapter.shots(encoder, task, task.support)(0):
        assert float(loss(shots).detach()) < 100  # without visual prompts the features are the frozen ones
    assert_untouched(encoder, before)


def test_the_mean_over_epochs_by_hand(monkeypatch):
    encoder = encoder_of()
    task = task_of(encoder)
    states = []
    keep = PromptSRC.keep

    def spied(self, learned, epochs):
        add = keep(self, learned, epochs)

        def both(epoch):
            states.append({name: tensor.detach().clone() for name, tensor in learned.items()})
            add(epoch)

        return both

    monkeypatch.setattr(PromptSRC, "keep", spied)
    made = PromptSRC(epochs=4, lr=0.01, centre=0.5, spread=0.25, **NANO).fit(encoder, task)
    heights = [math.exp(-((t - 2) ** 2) / 2) for t in (1, 2, 3, 4)]
    for name in ("text", "visual"):
        want = sum(h / sum(heights) * state[name] for h, state in zip(heights, states, strict=True))
        torch.testing.assert_close(made.learned[name], want, atol=1e-6, rtol=1e-5)
        assert not torch.allclose(made.learned[name], states[-1][name], atol=1e-5)


def test_weights_of_epochs():
    weights = gaussian(20, 15, 1)
    assert weights.argmax() == 14
    assert float(weights.sum()) == pytest.approx(1)
    assert float(weights[13] / weights[14]) == pytest.approx(math.exp(-0.5))
    assert gaussian(3, 100, 0.1).tolist() == [0, 0, 1]  # far from all of them: the nearest
    assert divergence(torch.eye(3), torch.eye(3)).item() == 0


def test_without_its_terms_and_with_the_last_epoch_alone_it_is_ivlp():
    encoder = encoder_of()
    task = task_of(encoder)
    settings = {"epochs": 2, "lr": 0.01, "tokens": 2, "visual_tokens": 2, "depth": 2, "visual_depth": 2}
    made = PromptSRC(**settings, text=0, image=0, logits=0, anchors="simple", centre=1.0, spread=1e-3).fit(
        encoder, task
    )
    plain = IVLP(**settings).fit(encoder, task)
    for name in ("text", "visual"):
        torch.testing.assert_close(made.learned[name], plain.learned[name], atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("kind", TOWERS)
def test_any_tower_and_other_names(kind, tmp_path):
    encoder = encoder_of(kind)
    task, before = task_of(encoder), state_of(encoder)
    made = PromptSRC(epochs=2, anchors="simple").fit(encoder, task)
    assert_untouched(encoder, before)
    made.save(tmp_path / "c")
    back = TowerClassifier.load(tmp_path / "c", encoder=encoder)
    image = pixels(encoder, task)
    assert torch.equal(back(image), made(image))
    moved = PromptSRC().transfer(encoder, back, Task(("dog", "ant")))
    with torch.no_grad():
        weight = text_by_hand(encoder.dual, ("dog", "ant"), made.learned["text"])
    torch.testing.assert_close(moved.weight, weight, atol=1e-6, rtol=0)


def test_published_settings_and_unknown_templates():
    part = PromptSRC()
    assert (part.lr, part.batch, part.usual_epochs(16)) == (0.0025, 4, 20)
    assert (part.tokens, part.visual_tokens, part.depth, part.text, part.image) == (4, 4, 9, 25.0, 10.0)
    encoder = encoder_of()
    with pytest.raises(ValueError, match='unknown template set "simpel"; did you mean "simple"'):
        PromptSRC(anchors="simpel", epochs=0).fit(encoder, task_of(encoder))
