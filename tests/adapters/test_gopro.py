"""GOPro: its loss by loops, statistics of blocks, three views of each picture, its ends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from tests.adapters.prompt_towers import (
    NAMES,
    PHOTO,
    TOWERS,
    assert_untouched,
    encoder_of,
    one_step,
    pixels,
    state_of,
    task_of,
)
from tests.adapters.weight_towers import RESNET, make_encoder
from vlp.adapters.adapter import class_weights
from vlp.adapters.gopro import GOPro, StyleClassifier, described, simclr, widths
from vlp.adapters.prompts import ClassPrompts
from vlp.adapters.task import Examples, Task
from vlp.adapters.three_views import MOCO, three_views
from vlp.data.augment import Augment, augmented
from vlp.data.augmix import augmix

PLAIN = tuple(name.replace("_", " ") for name in NAMES)
WORDS = "a photo of a"


def outputs_by_hand(dual, image):
    """Of every block of open_clip's ViT, block by block."""
    tower = dual.visual
    x = tower.conv1(dual.pixels(image)).flatten(2).transpose(1, 2)
    x = tower.ln_pre(torch.cat([tower.class_embedding.expand(len(x), 1, -1), x], dim=1) + tower.positional_embedding)
    found = []
    for block in tower.transformer.resblocks:
        x = block(x)
        found.append(x)
    return found, normalize(tower.ln_post(x[:, 0]) @ tower.proj, dim=-1)


def contexts_by_loops(learned, outputs, *, blocks):
    """The shifted context of each picture, block after block."""
    found = []
    for i in range(len(outputs[0])):
        rows = []
        for b in range(blocks):
            tokens = outputs[b][i]
            mean = sum(tokens) / len(tokens)
            std = (sum((token - mean) ** 2 for token in tokens) / len(tokens)).sqrt()
            style = learned[f"style.{b}.weight"] @ ((mean + std) / 2) + learned[f"style.{b}.bias"]
            content = learned[f"content.{b}.weight"] @ mean + learned[f"content.{b}.bias"]
            rows.append((style + content) / 2)
        heads = len(learned["rho.bias"])
        shift = [
            sum(learned["rho.weight"][h, b] * rows[b] for b in range(blocks)) + learned["rho.bias"][h]
            for h in range(heads)
        ]
        M = len(learned["context"])
        found.append(torch.stack([learned["context"][m] + shift[m if heads > 1 else 0] for m in range(M)]))
    return found


@pytest.mark.parametrize("separate", [False, True])
def test_a_step_equals_the_one_by_loops(separate):
    encoder = encoder_of()
    task, dual = task_of(encoder, shots=1), encoder.dual
    settings = {"weight_decay": 0.0, "warm_lr": 1e-3, "batch": 4, "separate": separate, "contrast": 0.0}
    start = GOPro(epochs=0, **settings).fit(encoder, task)
    moved = [name for name in start.learned if not name.startswith(("projection", "norm"))]
    learned = {name: start.learned[name].clone().requires_grad_() for name in moved}
    (views,) = three_views(task.support, encoder, plain=GOPro().crop, strong=MOCO, size=4, seed=0)(0)
    prompts = ClassPrompts(encoder, NAMES, words=WORDS)
    text, image = [], None
    for pixels_of in (views.plain, views.strong, views.mixed):
        with torch.no_grad():
            outputs, features = outputs_by_hand(dual, pixels_of)
        image = features if image is None else image
        contexts = contexts_by_loops(learned, outputs, blocks=3)
        text.append([prompts.encode(context) for context in contexts])
    loss = torch.zeros(())
    for i, y in enumerate(views.label.tolist()):
        logits = torch.stack([encoder.scale * image[i] @ text[0][i][c] for c in range(4)])
        loss = loss - logits.log_softmax(0)[y] / 4
        for other in text[1:]:
            loss = loss + ((text[0][i] - other[i]) ** 2).mean() / 4
    made = GOPro(epochs=1, **settings).fit(encoder, task)
    assert made.about["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    for name, want in one_step(learned, loss, rate=1e-3).items():
        torch.testing.assert_close(made.learned[name], want, atol=1e-5, rtol=1e-3)


def test_a_classifier_by_loops():
    encoder = encoder_of()
    task = task_of(encoder)
    made = GOPro(epochs=1, lr=0.05).fit(encoder, task)
    image = pixels(encoder, task)
    prompts = ClassPrompts(encoder, NAMES, words=WORDS)
    with torch.no_grad():
        outputs, features = outputs_by_hand(encoder.dual, image)
        contexts = contexts_by_loops(made.learned, outputs, blocks=3)
        want = torch.stack([encoder.scale * prompts.encode(c) @ x for c, x in zip(contexts, features, strict=True)])
    torch.testing.assert_close(made(image), want, atol=1e-3, rtol=0)
    encoder.batch_size = 1
    torch.testing.assert_close(made(image), want, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", TOWERS)
def test_nothing_learned_from_zero_is_zero_shot_and_the_model_is_as_it_was(kind):
    encoder = encoder_of(kind)
    task, before = task_of(encoder), state_of(encoder)
    image = pixels(encoder, task)
    made = GOPro(epochs=0, zero_start=True).fit(encoder, task)
    want = encoder.scale * task.support.image @ class_weights(encoder, Task(PLAIN, PHOTO)).T
    torch.testing.assert_close(made(image), want, atol=1e-4, rtol=0)
    adapter = GOPro(epochs=1)
    one, same = adapter.fit(encoder, task), adapter.fit(encoder, task)
    assert_untouched(encoder, before)
    for name, tensor in one.learned.items():
        assert torch.equal(tensor, same.learned[name]), name
    one(image)
    assert_untouched(encoder, before)
    assert widths(encoder) == [encoder.dual.image_tower.width] * len(encoder.dual.image_blocks)


def test_contrast_reaches_its_projection_alone():
    encoder = encoder_of()
    task = task_of(encoder)
    on, off = (GOPro(epochs=2, contrast=weight, weight_decay=0.0).fit(encoder, task).learned for weight in (1.0, 0.0))
    start = GOPro(epochs=0).fit(encoder, task).learned
    for name, tensor in on.items():
        own = name.startswith(("projection", "norm"))
        assert own or torch.equal(tensor, off[name]), name
    assert not torch.equal(on["projection.weight"], start["projection.weight"])
    assert torch.equal(off["projection.weight"], start["projection.weight"])
    assert not torch.equal(on["rho.weight"], start["rho.weight"])


def test_simclr_by_loops():
    rng = torch.Generator().manual_seed(0)
    one, other = (normalize(torch.randn(3, 5, generator=rng), dim=1) for _ in range(2))
    rows, value = [*one, *other], 0.0
    for i in range(6):
        alike = {j: float(rows[i] @ rows[j]) / 0.1 for j in range(6) if j != i}
        value += torch.tensor(list(alike.values())).logsumexp(0) - alike[(i + 3) % 6]
    assert float(simclr(one, other, temperature=0.1)) == pytest.approx(float(value) / 6, rel=1e-5)


def test_every_picture_has_three_views_of_its_own():
    encoder = encoder_of()
    support = task_of(encoder).support
    crop = Augment(scale=(0.08, 1.0), flip=0.5)
    rng = torch.Generator().manual_seed(4)
    order, seeds = torch.randperm(8, generator=rng).tolist(), torch.randint(1 << 62, (8,), generator=rng).tolist()
    batches = list(three_views(support, encoder, plain=crop, strong=MOCO, size=3, seed=4)(0))
    assert torch.cat([batch.label for batch in batches]).tolist() == support.known[order].tolist()
    found = [torch.cat([batch[part] for batch in batches]) for part in (1, 2, 3)]
    for place, (row, seed) in enumerate(zip(order, seeds, strict=True)):
        rngs = np.random.default_rng(seed).spawn(3)
        plain, strong, third = augmented(
            support.pictures[row], list(zip((crop, MOCO, crop), rngs, strict=True)), encoder.dual.transform
        )
        for part, want in zip(found, (plain, strong, augmix(third, rngs[2])), strict=True):
            assert torch.equal(part[place], want)
    assert len({tensor.numpy().tobytes() for part in found for tensor in part}) == 24


def test_a_saved_one_is_the_same_and_takes_other_names(tmp_path):
    encoder = encoder_of()
    task = task_of(encoder)
    image = pixels(encoder, task)
    made = GOPro(epochs=1, separate=True).fit(encoder, task)
    made.save(tmp_path / "c")
    back = StyleClassifier.load(tmp_path / "c", encoder=encoder)
    assert torch.equal(back(image), made(image))
    assert (back.names, back.about, back.needs) == (NAMES, made.about, "pictures")
    again = GOPro().transfer(encoder, back, Task(NAMES))
    torch.testing.assert_close(again(image), made(image), atol=1e-4, rtol=0)
    moved = GOPro().transfer(encoder, back, Task(("dog", "ant")))
    assert (moved(image).shape, moved.about["fitted"]) == ((8, 2), list(NAMES))
    with pytest.raises(ValueError, match="load it with that encoder"):
        StyleClassifier.load(tmp_path / "c")


def test_what_is_refused():
    encoder = encoder_of()
    task = task_of(encoder)
    with pytest.raises(ValueError, match="GOPro needs labelled pictures"):
        GOPro().fit(encoder, Task(NAMES))
    with pytest.raises(ValueError, match="GOPro runs the image tower"):
        GOPro().fit(encoder, Task(NAMES, support=Examples(task.support.image, task.support.label)))
    broken = replace(task.support, pictures=[b"no picture", *task.support.pictures[1:]], keys=tuple("abcdefgh"))
    with pytest.raises(ValueError, match="picture a of the support cannot be read"):
        GOPro(epochs=1).fit(encoder, replace(task, support=broken))
    with pytest.raises(ValueError, match="this image tower has maps; use a transformer"):
        described(make_encoder(RESNET), torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_published_settings():
    part = GOPro()
    assert (part.lr, part.batch, part.usual_epochs(16), part.words) == (0.002, 4, 50, WORDS)
    assert (part.semantic, part.contrast, part.temperature, part.separate) == (1.0, 0.1, 0.1, False)
