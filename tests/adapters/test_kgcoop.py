"""The pull towards hand-written weights: its value by a loop, and its two ends."""

from __future__ import annotations

import pytest
import torch

from tests.adapters.prompt_towers import NAMES, PHOTO, TOWERS, assert_untouched, encoder_of, state_of, task_of
from vlp.adapters.adapter import class_weights
from vlp.adapters.coop import CoOp
from vlp.adapters.kgcoop import KgCoOp
from vlp.adapters.prompted import ContextClassifier
from vlp.adapters.task import Task


@pytest.mark.parametrize("kind", TOWERS)
def test_the_pull_equals_the_loop(kind):
    encoder = encoder_of(kind)
    task = Task(NAMES, ("a photo of a {}.", "one {}"))
    weight = torch.nn.functional.normalize(torch.randn(4, encoder.dual.dim), dim=1)
    anchor = class_weights(encoder, task)
    want = 8.0 * (1 - sum(float(w @ a) for w, a in zip(weight, anchor)) / len(NAMES))
    assert KgCoOp().term(encoder, task)(weight).item() == pytest.approx(want, abs=1e-5)


def test_without_a_pull_it_is_coop_and_a_strong_one_holds_it():
    encoder = encoder_of()
    task, before = task_of(encoder), state_of(encoder)
    settings = {"words": "a photo of a", "epochs": 6, "lr": 0.02, "batch": 4}
    free, coop = KgCoOp(pull=0.0, **settings).fit(encoder, task), CoOp(**settings).fit(encoder, task)
    assert torch.equal(free.weight, coop.weight)
    held = KgCoOp(pull=100.0, **settings).fit(encoder, task)
    anchor = class_weights(encoder, task)
    near = [float((c.weight * anchor).sum(dim=1).mean()) for c in (held, free)]
    assert near[0] > near[1] + 0.01
    assert_untouched(encoder, before)


def test_defaults_zero_shot_and_other_names(tmp_path):
    encoder = encoder_of()
    adapter = KgCoOp(epochs=0)
    assert (KgCoOp().usual_epochs(1), adapter.batch, adapter.pull, adapter.words) == (100, 128, 8.0, "a photo of a")
    made = adapter.fit(encoder, task_of(encoder))
    plain = [name.replace("_", " ") for name in NAMES]
    torch.testing.assert_close(made.weight, class_weights(encoder, Task(plain, PHOTO)), atol=1e-6, rtol=0)
    made.save(tmp_path / "c")
    moved = adapter.transfer(encoder, ContextClassifier.load(tmp_path / "c"), Task(("dog", "ant")))
    torch.testing.assert_close(moved.weight, class_weights(encoder, Task(("dog", "ant"), PHOTO)), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="coop was given a classifier fitted by kgcoop"):
        CoOp().transfer(encoder, made, Task(("dog", "ant")))
