"""Visual prompts: a step by hand, none of them, saved and loaded, other names."""

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
)
from vlp.adapters.adapter import class_weights
from vlp.adapters.prompted import TowerClassifier
from vlp.adapters.task import Examples, Task
from vlp.adapters.vpt import VPT
from vlp.adapters.zeroshot import ZeroShot

OTHER = Task(("dog", "ant"), PHOTO)


@pytest.mark.parametrize("depth", [1, 2, 12])
def test_a_step_equals_the_one_by_hand(depth):
    encoder = encoder_of()
    task, dual = task_of(encoder), encoder.dual
    settings = {"tokens": 2, "depth": depth, "batch": 8, "augment": None, "weight_decay": 0.0, "warm_lr": 0.05}
    start = VPT(epochs=0, **settings).fit(encoder, task)
    visual = start.learned["visual"].clone().requires_grad_()
    assert visual.shape == (min(depth, 3), 2, 32)
    image = image_by_hand(dual, pixels(encoder, task), visual)
    weight = class_weights(encoder, task)
    torch.testing.assert_close(start(pixels(encoder, task)), (encoder.scale * image @ weight.T).detach())
    loss = cross_entropy(encoder.scale * image @ weight.T, task.support.label)
    want = one_step({"visual": visual}, loss, rate=0.05)
    made = VPT(epochs=1, **settings).fit(encoder, task)
    torch.testing.assert_close(made.learned["visual"], want["visual"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", TOWERS)
def test_no_tokens_are_zero_shot_bit_for_bit(kind):
    encoder = encoder_of(kind)
    task = task_of(encoder)
    made, plain = VPT(tokens=0).fit(encoder, task), ZeroShot().fit(encoder, task)
    assert torch.equal(made(pixels(encoder, task)), plain(encoder.images(task.support.pictures).features))
    assert (made.needs, made.about["epochs"]) == ("pictures", 0)


@pytest.mark.parametrize("kind", TOWERS)
def test_it_learns_and_the_model_is_as_it_was(kind):
    encoder = encoder_of(kind)
    task, before = task_of(encoder), state_of(encoder)
    adapter = VPT(epochs=2, tokens=2, lr=0.1)
    one, same = adapter.fit(encoder, task), adapter.fit(encoder, task)
    assert_untouched(encoder, before)
    assert torch.equal(one.learned["visual"], same.learned["visual"])
    start = VPT(epochs=0, tokens=2).fit(encoder, task).learned["visual"]
    assert one.learned["visual"].shape[2] == encoder.dual.image_tower.width
    assert (one.learned["visual"] - start).abs().sum(dim=(1, 2)).gt(0).all()
    one(pixels(encoder, task))
    assert_untouched(encoder, before)


def test_augmentation_is_of_the_seed():
    encoder = encoder_of()
    task = task_of(encoder)
    plain = VPT(epochs=2, tokens=2, lr=0.1, augment=None).fit(encoder, task).learned["visual"]
    default = VPT(epochs=2, tokens=2, lr=0.1).fit(encoder, task).learned["visual"]
    assert not torch.equal(plain, default)
    assert VPT().augment.scale == (0.08, 1.0)


def test_a_saved_one_is_the_same_and_takes_other_names(tmp_path):
    encoder = encoder_of()
    task, adapter = task_of(encoder), VPT(epochs=1, tokens=2)
    made = adapter.fit(encoder, task)
    made.save(tmp_path / "c")
    back = TowerClassifier.load(tmp_path / "c", encoder=encoder)
    image = pixels(encoder, task)
    assert torch.equal(back(image), made(image))
    assert (back.names, back.about) == (NAMES, made.about)
    moved = VPT().transfer(encoder, back, OTHER)
    torch.testing.assert_close(moved(image), encoder.scale * made.features(image) @ class_weights(encoder, OTHER).T)
    with pytest.raises(ValueError, match="load it with that encoder"):
        TowerClassifier.load(tmp_path / "c")
    with pytest.raises(ValueError, match="give the model it is of"):
        TowerClassifier.load(tmp_path / "c", encoder=encoder_of("siglip"))


def test_features_alone_are_refused():
    encoder = encoder_of()
    task = task_of(encoder)
    bare = Task(NAMES, PHOTO, support=Examples(task.support.image, task.support.label))
    with pytest.raises(ValueError, match="VPT runs the image tower"):
        VPT().fit(encoder, bare)
