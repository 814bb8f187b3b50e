"""The loop that moves weights, against AdamW written out, and its batches."""

from __future__ import annotations

import math
from itertools import islice

import pytest
import torch

from tests.adapters.weight_towers import examples, make_encoder
from vlp.adapters.fitting import PictureBatches, Recipe, minimise, passes, pixels, seeded, steps_of
from vlp.data.augment import Augment


def run(recipe: Recipe, start: float = 1.0, target: float = 3.0, **group: float) -> list[float]:
    x, path = torch.tensor(start, dtype=torch.float64, requires_grad=True), []
    minimise(
        [{"params": [x], **group}],
        lambda rows, step: (x - target).square(),
        rows=4,
        recipe=recipe,
        rng=torch.Generator().manual_seed(0),
        what="test",
        quiet=True,
        each=lambda done: path.append(float(x.detach())),
    )
    return path


def test_steps_are_adamw_with_warm_up_and_cosine_written_out():
    steps, lr, decay, warmup, factor = 40, 0.1, 0.05, 4, 0.5
    recipe = Recipe(steps, 2, lr, decay, warmup=100, final=0.2)  # at most a tenth of the steps warms up
    x, m, v, want = 1.0, 0.0, 0.0, []
    for step in range(steps):
        if step < warmup:
            rate = (step + 1) / warmup
        else:
            rate = 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
        rate *= lr * factor
        gradient = 2 * (x - 3.0)
        x -= rate * decay * x
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        x -= rate * (m / (1 - 0.9 ** (step + 1))) / (math.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
        want.append(x)
    assert run(recipe, lr_scale=factor) == pytest.approx(want, abs=1e-9)


def test_no_steps_do_nothing_and_a_loss_that_is_no_number_is_refused():
    assert run(Recipe(0, 2, 0.1, 0.0)) == []
    with pytest.raises(ValueError, match=r"test: the loss is nan at step 0 of 3; set a smaller lr"):
        run(Recipe(3, 2, 0.1, 0.0), target=math.nan)


def test_every_pass_sees_every_row_once_in_an_order_of_its_own():
    batches = list(islice(passes(5, 2, torch.Generator().manual_seed(0)), 6))
    assert [len(batch) for batch in batches] == [2, 2, 1, 2, 2, 1]
    assert [len(batch) for batch in islice(passes(9, 8, torch.Generator()), 2)] == [5, 4]
    first, second = torch.cat(batches[:3]), torch.cat(batches[3:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(5))
    assert not torch.equal(first, second)
    assert (steps_of(3, 5, 2), steps_of(3, 5, 2, at_least=10), steps_of(0, 5, 2)) == (9, 30, 0)


def test_the_default_generator_goes_on_as_before():
    torch.manual_seed(5)
    want = torch.rand(1)
    torch.manual_seed(5)
    with seeded(torch.device("cpu"), 1):
        inside = torch.rand(1)
    assert torch.equal(torch.rand(1), want)
    with seeded(torch.device("cpu"), 1):
        assert torch.equal(torch.rand(1), inside)


def test_pictures_are_those_of_evaluation_or_drawn_by_seed_step_and_row():
    encoder = make_encoder()
    given = examples(encoder, 2, seed=1)
    rows = torch.tensor([4, 0])
    plain = PictureBatches(encoder, given, None, torch.Generator().manual_seed(0), who="x")
    assert torch.equal(plain(rows, 3), torch.stack([encoder.dual.transform(given.pictures[row]) for row in (4, 0)]))
    augment = Augment(scale=(0.2, 0.6), flip=0.5)
    drawn = [PictureBatches(encoder, given, augment, torch.Generator().manual_seed(s), who="x") for s in (0, 0, 1)]
    assert torch.equal(drawn[0](rows, 3), drawn[1](rows, 3))
    assert torch.equal(drawn[0](rows, 3)[1], drawn[0](torch.tensor([0]), 3)[0])
    assert not torch.equal(drawn[0](rows, 3), drawn[2](rows, 3))
    assert not torch.equal(drawn[0](rows, 3), drawn[0](rows, 4))


def test_features_alone_are_refused():
    encoder = make_encoder()
    given = examples(encoder, 1, seed=1)
    bare = type(given)(given.image, given.label)
    with pytest.raises(ValueError, match="soup runs the image tower over pictures, and only features were given"):
        pixels(encoder, bare, who="soup")
