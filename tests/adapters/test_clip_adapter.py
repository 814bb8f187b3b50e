"""The residual adapter against its formula, switched off, trained, and before other classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.adapters.blobs import ENCODER, accuracy, blobs
from vlp.adapters.clip_adapter import AdaptedClassifier, ClipAdapter
from vlp.adapters.coop import CoOp
from vlp.adapters.task import Task
from vlp.adapters.zeroshot import ZeroShot


def bottleneck(net, x, ratio):
    """One row, by explicit sums."""
    hidden = [max(0.0, sum(float(w) * float(v) for w, v in zip(row, x, strict=True))) for row in net.down]
    new = [max(0.0, sum(float(w) * h for w, h in zip(row, hidden, strict=True))) for row in net.up]
    mixed = [ratio * one + (1 - ratio) * float(own) for one, own in zip(new, x, strict=True)]
    length = sum(value**2 for value in mixed) ** 0.5
    return [value / length for value in mixed]


def test_logits_equal_the_loop():
    task, held = blobs()
    made = ClipAdapter(ratio=0.4, text_ratio=0.3, epochs=3, batch=8).fit(ENCODER, task)
    both = made.bottlenecks
    assert (both.image.down.shape, both.image.up.shape) == ((3, 12), (12, 3))
    text = [bottleneck(both.text, row, 0.3) for row in task.text[:, 0]]
    for image, own in zip(held.image[:6], made(held.image[:6]), strict=True):
        seen = bottleneck(both.image, image, 0.4)
        want = [20 * sum(one * other for one, other in zip(seen, row, strict=True)) for row in text]
        assert own.tolist() == pytest.approx(want, abs=1e-4)


def test_with_ratio_nought_it_is_zero_shot_bit_for_bit():
    task, held = blobs(views=3)
    made = ClipAdapter(ratio=0).fit(ENCODER, task)
    assert torch.equal(made(held.image), ZeroShot().fit(ENCODER, task)(held.image))
    assert made.about["steps"] == 0


@pytest.mark.parametrize("text_ratio", [0.0, 0.2])
def test_training_lowers_the_loss_by_the_seed_and_leaves_no_trace(text_ratio):
    task, held = blobs(noise=1.0, shots=8, views=2)
    before = torch.random.get_rng_state()
    part = ClipAdapter(text_ratio=text_ratio, epochs=30, lr=0.05)
    one, again = part.fit(ENCODER, task), part.fit(ENCODER, task)
    assert torch.equal(one(held.image), again(held.image))
    assert not torch.equal(one(held.image), part.fit(ENCODER, replace(task, seed=5))(held.image))
    assert torch.equal(before, torch.random.get_rng_state())
    start = ZeroShot().fit(ENCODER, task)
    loss = [float(cross_entropy(made(task.support.image), task.support.known)) for made in (one, start)]
    assert loss[0] < loss[1]
    assert one.about["selection"] == {"split": "none", "ratio": 0.2}
    assert one.about["epochs"] == 30
    assert not any(weight.requires_grad for weight in one.bottlenecks.parameters())


def test_epochs_follow_the_shots_as_in_coop():
    assert [ClipAdapter().usual_epochs(shots) for shots in range(1, 20)] == [
        CoOp().usual_epochs(shots) for shots in range(1, 20)
    ]


@pytest.mark.parametrize("validation", [0, 5])
def test_the_ratio_is_the_best_of_six(validation):
    task, _ = blobs(noise=1.0, validation=validation, shots=3)
    part = ClipAdapter(ratio=None, epochs=4, lr=0.05)
    made = part.fit(ENCODER, task)
    chosen = made.about["selection"]
    assert (chosen["split"], chosen["candidates"]) == ("validation" if validation else "train", 6)
    if validation:
        reached = {
            ratio: accuracy(part.model_copy(update={"ratio": ratio}).fit(ENCODER, task), task.validation)
            for ratio in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
        }
        assert chosen["acc1"] == reached[chosen["ratio"]] == max(reached.values())
    one, _ = blobs(shots=1)
    assert part.fit(ENCODER, one).about["selection"] == {"split": "none", "ratio": 0.2}


@pytest.mark.parametrize("kept", [(0, 1, 3), (0,)])
def test_classes_that_only_words_know_judge_the_ratio_too(kept):
    task, _ = blobs(classes=6, noise=1.5, validation=8)
    rows = torch.where(torch.isin(task.support.known, torch.tensor(kept)))[0]
    made = ClipAdapter(ratio=None, epochs=4, lr=0.05).fit(ENCODER, replace(task, support=task.support.only(rows)))
    chosen = made.about["selection"]
    assert (chosen["split"], chosen["candidates"]) == ("validation", 6)
    assert chosen["acc1"] == accuracy(made, task.validation) >= accuracy(ZeroShot().fit(ENCODER, task), task.validation)


def test_other_classes_get_the_same_adapter(tmp_path):
    task, held = blobs(classes=6)
    part = ClipAdapter(epochs=2, text_ratio=0.1)
    old = part.fit(ENCODER, task)
    new = part.transfer(ENCODER, old, Task(("a", "b"), text=task.text[4:]))
    torch.testing.assert_close(new(held.image), old(held.image)[:, 4:])
    assert new.names == ("a", "b")
    old.save(tmp_path)
    back = AdaptedClassifier.load(tmp_path)
    assert torch.equal(back(held.image), old(held.image))
    assert (back.names, back.about, back.needs) == (old.names, old.about, "features")
    with pytest.raises(ValueError, match="ClipAdapter needs labelled pictures"):
        part.fit(ENCODER, replace(task, support=None))


def test_a_rate_meant_for_clips_scale_is_made_fit_for_the_models():
    task, held = blobs(noise=0.5, shots=4)
    own = ClipAdapter(epochs=6, warm_lr=0.002).fit(ENCODER, task)  # of scale 20
    plain = ClipAdapter(epochs=6, lr=0.002 * 25, warm_lr=0.002 * 25, lr_for=None).fit(ENCODER, task)
    torch.testing.assert_close(own(held.image), plain(held.image), atol=1e-5, rtol=1e-5)
    assert own.about["rate_factor"] == pytest.approx(25)
    assert "rate_factor" not in plain.about
    still = ClipAdapter(epochs=6, warm_lr=0.002, lr_for=20.0).fit(ENCODER, task)
    assert not torch.allclose(own(held.image), still(held.image), atol=1e-3)
