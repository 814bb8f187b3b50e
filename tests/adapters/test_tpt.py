"""TPT: each picture by itself with an optimiser of its own, reset, chunks, zero-shot without steps."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from tests.adapters.prompt_towers import TOWERS, assert_untouched, encoder_of, pixels, state_of, task_of
from vlp.adapters.prompts import ClassPrompts
from vlp.adapters.task import Task
from vlp.adapters.tpt import TPT, PerPictureClassifier, mean_entropy, surest
from vlp.adapters.zeroshot import ZeroShot

NAMES = ("cat", "tabby cat", "big old dog", "ant")
TASK = Task(NAMES, ("a photo of a {}.",))
SMALL = {"copies": 7, "keep": 0.4}


def by_loops(encoder, adapter, images, *, steps):
    """One picture after the other, whole prompts, AdamW of torch."""
    prompts = ClassPrompts(encoder, NAMES, words="a photo of a")
    start, found = prompts.first(torch.Generator().manual_seed(0)), []
    for image in images:
        views = adapter.cuts(encoder, image, 0)
        with torch.no_grad():
            features = normalize(encoder.dual.encode_image(views), dim=-1)
        context = torch.nn.Parameter(start.clone())
        optimizer = torch.optim.AdamW([context], lr=adapter.lr, weight_decay=adapter.weight_decay)
        kept = None
        for _ in range(steps):
            logits = encoder.scale * features @ prompts.encode(context).T
            if kept is None:
                entropies = [float(-(row.softmax(0) * row.log_softmax(0)).sum()) for row in logits.detach()]
                kept = sorted(range(len(views)), key=entropies.__getitem__)[: int(len(views) * adapter.keep)]
            mean = sum(logits[row].softmax(0) for row in kept) / len(kept)
            loss = -(mean * mean.log()).sum()
            optimizer.zero_grad()
            loss.backward(inputs=[context])
            optimizer.step()
        with torch.no_grad():
            found.append(encoder.scale * features[0] @ prompts.encode(context).T)
    return torch.stack(found)


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("steps", [1, 3])
def test_it_equals_the_loop(kind, steps):
    encoder = encoder_of(kind)
    images, before = pixels(encoder, task_of(encoder, shots=1)), state_of(encoder)
    adapter = TPT(steps=steps, lr=0.05, **SMALL)
    made = adapter.fit(encoder, TASK)
    found = made(images)
    assert_untouched(encoder, before)
    torch.testing.assert_close(found, by_loops(encoder, adapter, images, steps=steps), atol=2e-3, rtol=0)
    assert not torch.allclose(found, TPT(steps=0).fit(encoder, TASK)(images), atol=1e-2)


@pytest.mark.parametrize("kind", TOWERS)
def test_without_steps_it_is_zero_shot(kind):
    encoder = encoder_of(kind)
    task = task_of(encoder)
    made, plain = TPT(steps=0).fit(encoder, TASK), ZeroShot().fit(encoder, TASK)
    torch.testing.assert_close(made.weight, plain.weight, atol=1e-6, rtol=0)
    made.weight = plain.weight  # that of whole prompts, which differ in the order of sums
    assert torch.equal(made(pixels(encoder, task)), plain(task.support.image))


def test_pictures_do_not_know_of_each_other():
    encoder = encoder_of()
    images = pixels(encoder, task_of(encoder))
    made = TPT(lr=0.05, **SMALL).fit(encoder, TASK)
    whole = made(images)
    torch.testing.assert_close(made(images.flip(0)).flip(0), whole, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cat([made(one[None]) for one in images]), whole, atol=1e-4, rtol=0)
    encoder.batch_size = 1
    torch.testing.assert_close(made(images), whole, atol=1e-4, rtol=0)
    assert torch.equal(made(images), made(images))
    with torch.inference_mode():
        torch.testing.assert_close(made(images), whole, atol=1e-4, rtol=0)


def test_cuts_are_of_seed_and_pixels():
    encoder = encoder_of()
    first, second = pixels(encoder, task_of(encoder))[:2]
    adapter = TPT(copies=4)
    views = adapter.cuts(encoder, first, 0)
    assert views.shape == (5, *first.shape)
    assert torch.equal(views[0], first)
    assert torch.equal(adapter.cuts(encoder, first, 0), views)
    assert not torch.equal(adapter.cuts(encoder, first, 1), views)
    assert not torch.equal(adapter.cuts(encoder, second, 0)[1:], views[1:])
    mixed = TPT(copies=4, mix=True).cuts(encoder, first, 0)
    assert torch.equal(mixed[0], first)
    assert not torch.equal(mixed[1:], views[1:])


def test_selection_and_entropy_by_hand():
    logits = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 9.0], [1.0, 0.0]])
    assert surest(logits, 0.5).tolist() == [2, 1]
    assert surest(logits, 0.1).tolist() == [2]
    found = mean_entropy(torch.stack([logits[:2], logits[2:]]))
    for value, pair in zip(found, (logits[:2], logits[2:]), strict=True):
        p = (pair[0].softmax(0) + pair[1].softmax(0)) / 2
        assert float(value) == pytest.approx(float(-(p * p.log()).sum()), abs=1e-6)


def test_a_saved_one_is_the_same_and_other_names_need_no_more(tmp_path):
    encoder = encoder_of()
    images = pixels(encoder, task_of(encoder, shots=1))
    made = TPT(lr=0.05, **SMALL).fit(encoder, TASK)
    made.save(tmp_path / "c")
    back = PerPictureClassifier.load(tmp_path / "c", encoder=encoder)
    assert torch.equal(back(images), made(images))
    assert (back.needs, back.about) == ("pictures", made.about)
    with pytest.raises(ValueError, match="load it with that encoder"):
        PerPictureClassifier.load(tmp_path / "c")
    with pytest.raises(ValueError, match="give the model it is of"):
        PerPictureClassifier.load(tmp_path / "c", encoder=encoder_of("siglip"))
    moved = TPT(**SMALL).transfer(encoder, made, Task(("dog", "ant")))
    assert moved(images).shape == (4, 2)


def test_published_settings():
    part = TPT()
    assert (part.lr, part.steps, part.copies, part.keep, part.words) == (5e-3, 1, 63, 0.1, "a photo of a")
    assert (TPT.wants, TPT.level, TPT.transductive) == ((), "towers", False)
