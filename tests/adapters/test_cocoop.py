"""A context for each picture: logits and one step against loops, memory in chunks, other names."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.adapters.prompt_towers import NAMES, PHOTO, TOWERS, assert_untouched, encoder_of, state_of, task_of
from vlp.adapters.adapter import class_weights
from vlp.adapters.cocoop import CoCoOp, ConditionalClassifier
from vlp.adapters.task import Task

PLAIN = tuple(name.replace("_", " ") for name in NAMES)


def logits_by_loops(encoder, learned, image, names=PLAIN):
    dual, rows = encoder.dual, []
    for f in image:
        hidden = torch.clamp(learned["w1"] @ f + learned["b1"], min=0)
        shift = learned["w2"] @ hidden + learned["b2"]
        prefix = torch.stack([vector + shift for vector in learned["context"]])
        row = []
        for name in names:
            ids = torch.tensor(dual.tokenizer.encode([f"{name}."]))
            text = dual.encode_text(ids, torch.ones_like(ids, dtype=torch.bool), prefix=prefix)[0]
            row.append(encoder.scale * (f @ text))
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", TOWERS)
def test_logits_and_a_step_equal_the_loop(kind):
    encoder = encoder_of(kind)
    task, before = task_of(encoder, shots=1), state_of(encoder)
    made = CoCoOp(epochs=0).fit(encoder, task)
    want = logits_by_loops(encoder, made.learned, task.support.image)
    torch.testing.assert_close(made(task.support.image), want.detach(), atol=1e-4, rtol=0)
    start = {name: tensor.clone().requires_grad_() for name, tensor in made.learned.items()}
    loss = cross_entropy(logits_by_loops(encoder, start, task.support.image), task.support.label)
    grads = torch.autograd.grad(loss, list(start.values()))
    one = CoCoOp(epochs=1, batch=4, warm_lr=0.01, weight_decay=0.0).fit(encoder, task)
    for (name, tensor), gradient in zip(start.items(), grads, strict=True):
        torch.testing.assert_close(one.learned[name], (tensor - 0.01 * gradient).detach(), atol=2e-5, rtol=1e-4)
    assert_untouched(encoder, before)


def test_a_zero_start_is_zero_shot():
    encoder = encoder_of()
    task = task_of(encoder)
    zero = CoCoOp(epochs=0, zero_start=True).fit(encoder, task)
    want = encoder.scale * task.support.image @ class_weights(encoder, Task(PLAIN, PHOTO)).T
    torch.testing.assert_close(zero(task.support.image), want, atol=1e-5, rtol=0)
    published = CoCoOp(epochs=0).fit(encoder, task)
    assert not torch.allclose(published(task.support.image), want, atol=1e-2)
    learned = CoCoOp(epochs=2, zero_start=True, lr=0.01).fit(encoder, task)
    assert learned.learned["w2"].abs().sum() > 0


def test_it_lowers_the_loss_and_chunks_do_not_matter():
    encoder = encoder_of()
    task = task_of(encoder)
    losses = []
    for epochs in (0, 4):
        made = CoCoOp(epochs=epochs, lr=0.01).fit(encoder, task)
        losses.append(cross_entropy(made(task.support.image), task.support.label).item())
    assert losses[1] < losses[0] - 0.1
    whole = made(task.support.image)
    encoder.batch_size = 1
    torch.testing.assert_close(made(task.support.image), whole, atol=1e-4, rtol=0)
    assert made.needs == "features"


def test_widths_come_from_the_towers():
    encoder = encoder_of("hugging_face")  # joint space 64, words 32
    made = CoCoOp(epochs=0).fit(encoder, task_of(encoder, shots=1))
    shapes = {name: tuple(tensor.shape) for name, tensor in made.learned.items()}
    assert shapes == {"context": (4, 32), "w1": (4, 64), "b1": (4,), "w2": (32, 4), "b2": (32,)}


def test_a_saved_one_is_the_same_and_takes_other_names(tmp_path):
    encoder = encoder_of()
    task, adapter = task_of(encoder), CoCoOp(epochs=2, lr=0.01)
    made = adapter.fit(encoder, task)
    same = adapter.fit(encoder, task)
    assert all(torch.equal(made.learned[name], same.learned[name]) for name in made.learned)
    made.save(tmp_path / "c")
    back = ConditionalClassifier.load(tmp_path / "c", encoder=encoder)
    assert torch.equal(back(task.support.image), made(task.support.image))
    moved = CoCoOp().transfer(encoder, back, Task(("dog", "ant")))
    want = logits_by_loops(encoder, made.learned, task.support.image, ("dog", "ant"))
    torch.testing.assert_close(moved(task.support.image), want.detach(), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="load it with that encoder"):
        ConditionalClassifier.load(tmp_path / "c")
    with pytest.raises(ValueError, match="give the model it is of"):
        ConditionalClassifier.load(tmp_path / "c", encoder=encoder_of("siglip"))
