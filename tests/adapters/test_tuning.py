"""The loop: rates, momentum and order by hand; a model that is as it was; batches of features and of pixels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from tests.adapters.prompt_towers import assert_untouched, encoder_of, pictures, state_of
from vlp.adapters.shots import feature_shots, picture_shots
from vlp.adapters.task import Examples, Task
from vlp.adapters.tuning import Tuner, frozen, seeded_linear
from vlp.data.augment import Augment

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder():
    return encoder_of()


@pytest.fixture
def examples():
    rng = torch.Generator().manual_seed(3)
    return Examples(torch.randn(7, 5, generator=rng), torch.arange(7) % 3)


def test_the_first_epoch_is_slow_and_the_cosine_starts_after_it():
    tuner = Tuner(lr=0.002)
    rates = [tuner.rate(epoch, 4) for epoch in range(4)]
    want = [1e-5, 0.002, 0.002 * (1 + math.cos(math.pi / 4)) / 2, 0.002 * (1 + math.cos(math.pi / 2)) / 2]
    assert rates == pytest.approx(want)


def test_it_is_sgd_with_momentum_and_decay_over_seeded_batches(encoder, examples):
    start = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    weight, seen = nn.Parameter(start.clone()), []
    tuner = Tuner(lr=0.5, momentum=0.9, weight_decay=0.01)

    def loss(shots):
        assert torch.equal(shots.image, examples.image[shots.rows])
        assert torch.equal(shots.label, examples.label[shots.rows])
        seen.append(shots.rows.tolist())
        return cross_entropy(shots.image @ weight.T, shots.label)

    shots = feature_shots(examples, size=3, seed=5, device=CPU)
    ended = []
    said = tuner.tune(
        encoder, nn.ParameterDict({"w": weight}), shots, loss, epochs=3, after_epoch=lambda _: ended.append(len(seen))
    )
    assert [sorted(row for rows in seen[k : k + 3] for row in rows) for k in (0, 3, 6)] == [list(range(7))] * 3
    assert [len(rows) for rows in seen] == [3, 3, 1] * 3
    assert seen[:3] != seen[3:6]
    assert ended == [3, 6, 9]
    by_hand, velocity, last = start.double(), torch.zeros(3, 5, dtype=torch.float64), []
    for step, rows in enumerate(seen):
        image, label = examples.image[rows].double(), examples.label[rows]
        p = (image @ by_hand.T).softmax(dim=1)
        last = [*last, float(-p[range(len(rows)), label].log().mean())][-3:]
        for i, row in enumerate(label.tolist()):
            p[i, row] -= 1
        velocity = 0.9 * velocity + p.T @ image / len(rows) + 0.01 * by_hand
        by_hand = by_hand - tuner.rate(step // 3, 3) * velocity
    torch.testing.assert_close(weight.detach().double(), by_hand, atol=1e-5, rtol=1e-5)
    assert said == {"epochs": 3, "steps": 9, "loss": pytest.approx(sum(last) / 3, abs=1e-5)}


def test_no_epochs_do_nothing(encoder, examples):
    weight = nn.Parameter(torch.ones(1))
    shots = feature_shots(examples, size=3, seed=0, device=CPU)
    assert Tuner().tune(encoder, nn.ParameterDict({"w": weight}), shots, None, epochs=0) == {"epochs": 0, "steps": 0}
    assert weight.item() == 1


def test_a_loss_that_is_no_number_stops_it(encoder, examples):
    weight = nn.Parameter(torch.ones(1))
    shots = feature_shots(examples, size=3, seed=0, device=CPU)
    with pytest.raises(ValueError, match=r"the loss was nan in epoch 1; try a smaller lr than 0\.002"):
        Tuner().tune(encoder, nn.ParameterDict({"w": weight}), shots, lambda _: weight.sum() * math.nan, epochs=2)


def test_a_frozen_model_is_as_it_was_also_after_a_failure():
    encoder = encoder_of()
    encoder.dual.train()
    encoder.dual.visual.eval()
    encoder.dual.text.ln_final.requires_grad_(False)
    before = state_of(encoder)

    def fail():
        assert not any(module.training for module in encoder.dual.modules())
        assert not any(parameter.requires_grad for parameter in encoder.dual.parameters())
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), frozen(encoder):
        fail()
    assert_untouched(encoder, before)


def test_views_are_drawn_in_place_of_the_picture(examples):
    views = torch.stack([examples.image + shift for shift in (10, 20, 30)], dim=1)
    batches = feature_shots(Examples(examples.image, examples.label, views=views), size=7, seed=0, device=CPU)
    shifts = set()
    for epoch in range(6):
        for shots in batches(epoch):
            shift = (shots.image - examples.image[shots.rows]).round()
            assert torch.equal(shift, shift[:, :1].expand(-1, 5))
            shifts |= set(shift[:, 0].tolist())
    assert shifts == {10.0, 20.0, 30.0}


def test_pixels_are_those_of_the_transform_or_augmented_by_seed(encoder):
    made = pictures(5)
    data = Examples(encoder.images(made).features, torch.arange(5) % 2, pictures=made)
    plain = picture_shots(data, encoder, augment=None, size=2, seed=0, who="VPT")
    for shots in plain(0):
        want = torch.stack([encoder.dual.transform(made[row]) for row in shots.rows])
        assert torch.equal(shots.image, want)
        torch.testing.assert_close(encoder.dual.encode_image(shots.image), data.image[shots.rows], atol=1e-6, rtol=0)
    runs = []
    for seed in (0, 0, 1):
        shots = picture_shots(data, encoder, augment=Augment(scale=(0.1, 1.0)), size=2, seed=seed, who="VPT")
        runs.append([torch.cat([batch.image for batch in shots(epoch)]) for epoch in range(2)])
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][0], runs[2][0])
    assert not torch.equal(runs[0][0], runs[0][1])


def test_pictures_that_are_missing_or_broken_are_named(encoder):
    data = Examples(torch.zeros(2, 32), torch.arange(2))
    with pytest.raises(ValueError, match="VPT runs the image tower, and of the support only features"):
        picture_shots(data, encoder, augment=None, size=1, seed=0, who="VPT")
    broken = Examples(torch.zeros(1, 32), torch.arange(1), ("a/b.jpg",), pictures=[b"no picture"])
    with pytest.raises(ValueError, match=r"picture a/b\.jpg of the support cannot be read .*leave it out"):
        list(picture_shots(broken, encoder, augment=None, size=1, seed=0, who="VPT")(0))


def test_layers_are_drawn_as_torch_draws_them_from_their_own_generator():
    state = torch.get_rng_state()
    layer = seeded_linear(16, 400, torch.Generator().manual_seed(0))
    assert torch.equal(state, torch.get_rng_state())
    weight, bias = layer.weight.detach(), layer.bias.detach()
    assert float(weight.abs().max()) <= 0.25
    assert float(weight.std()) == pytest.approx(0.25 / math.sqrt(3), rel=0.05)
    assert float(bias.std()) == pytest.approx(0.25 / math.sqrt(3), rel=0.1)


def test_epochs_by_shots_or_as_asked():
    class Fixed(Tuner):
        def usual_epochs(self, shots):
            return 10 * shots

    data = Examples(torch.zeros(5, 2), torch.tensor([0, 1, 1, 1, 2]))
    assert Fixed().epochs_for(data) == 30
    assert Fixed(epochs=0).epochs_for(data) == 0
    with pytest.raises(ValueError, match="epochs"):
        Fixed(epochs=-1)


def test_a_record_says_what_was_done(encoder):
    said = Tuner(lr=0.1).about(encoder, Task(("a", "b"), seed=3), more=1)
    assert (said["adapter"], said["settings"]["lr"], said["seed"], said["more"]) == ("tuner", 0.1, 3, 1)
    assert said["weights_hash"] == encoder.weights_hash
    assert said["selection"] == {"split": "none"}
