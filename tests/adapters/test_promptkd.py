"""PromptKD: a step by loops, teachers of every kind, another model as teacher, the projector, its ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from tests.adapters.prompt_towers import (
    PHOTO,
    TOWERS,
    assert_untouched,
    encoder_of,
    image_by_hand,
    one_step,
    pictures,
    pixels,
    state_of,
)
from tests.models.tiny import NANO, make_dual
from vlp.adapters import promptkd
from vlp.adapters.coop import CoOp
from vlp.adapters.gda import Gda
from vlp.adapters.prompted import TowerClassifier
from vlp.adapters.promptkd import Projector, PromptKD, StudentClassifier, head_of
from vlp.adapters.restricted import Restricted
from vlp.adapters.task import Examples, Task
from vlp.adapters.tip import Tip
from vlp.adapters.token_zeroshot import TokenZeroShot
from vlp.adapters.vpt import VPT
from vlp.adapters.zeroshot import ZeroShot

NAMES = ("cat", "tabby cat", "big old dog")
OTHER = Task(("dog", "ant"), PHOTO)
SMALL = {"tokens": 2, "depth": 2}


@pytest.fixture(scope="module")
def encoder():
    return encoder_of()


def task_of(encoder, *, pool=6):
    own, more = pictures(6), pictures(pool, seed=1)
    support = Examples(encoder.images(own).features, torch.arange(3).repeat(2), pictures=own)
    unlabelled = Examples(encoder.images(more).features, keys=tuple(f"u{n}" for n in range(pool)), pictures=more)
    return Task(NAMES, PHOTO, support=support, unlabelled=unlabelled)


def pool_pixels(encoder, task):
    return torch.stack([encoder.dual.transform(picture) for picture in task.unlabelled.pictures])


def projected_by_loops(part, features):
    """Linear, BatchNorm by its formula over the batch, ReLU, linear, norm; one number at a time."""
    hidden = [part["first.weight"] @ x + part["first.bias"] for x in features]
    columns = []
    for j in range(len(hidden[0])):
        values = torch.stack([h[j] for h in hidden])
        mean, var = values.sum() / len(values), ((values - values.sum() / len(values)) ** 2).sum() / len(values)
        columns.append(((values - mean) / (var + 1e-5).sqrt()) * part["norm.weight"][j] + part["norm.bias"][j])
    rows = [torch.stack([column[i] for column in columns]).clamp_min(0) for i in range(len(features))]
    return [normalize(part["second.weight"] @ row + part["second.bias"], dim=0) for row in rows]


def test_a_step_equals_the_one_by_loops(encoder):
    task, dual = task_of(encoder), encoder.dual
    settings = {**SMALL, "batch": 6, "augment": None, "weight_decay": 0.0, "warm_lr": 1e-3, "temperature": 2.0}
    start = PromptKD(epochs=0, **settings).fit(encoder, task)
    moved = {"visual", *(f"projector.{a}.{b}" for a in ("first", "second", "norm") for b in ("weight", "bias"))}
    learned = {name: start.learned[name].clone().requires_grad_() for name in sorted(moved)}
    image = image_by_hand(dual, pool_pixels(encoder, task), learned["visual"])
    own = {name.removeprefix("projector."): x for name, x in learned.items()}
    student, teacher = projected_by_loops(own, image), ZeroShot().fit(encoder, task)
    loss, n, C, tau = torch.zeros(()), 6, 3, 2.0
    for i in range(n):
        z_t = [encoder.scale * float(task.unlabelled.image[i] @ teacher.weight[c]) / tau for c in range(C)]
        z_s = torch.stack([encoder.scale * student[i] @ teacher.weight[c] / tau for c in range(C)]).log_softmax(0)
        p = torch.tensor(z_t).softmax(0)
        loss = loss + 1000 * tau**2 * sum(p[c] * (p[c].log() - z_s[c]) for c in range(C)) / (n * C)
    made = PromptKD(epochs=1, **settings).fit(encoder, task)
    assert made.about["loss"] == pytest.approx(float(loss.detach()), rel=1e-3)
    for name, want in one_step(learned, loss, rate=1e-3).items():
        step = made.learned[name] - start.learned[name]
        torch.testing.assert_close(
            step, want - start.learned[name], atol=2e-4 * max(1, float(step.abs().max())), rtol=1e-2
        )


@pytest.mark.parametrize("kind", TOWERS)
def test_without_vectors_and_projector_it_is_zero_shot_bit_for_bit(kind):
    encoder = encoder_of(kind)
    task, before = task_of(encoder), state_of(encoder)
    made = PromptKD(tokens=0, projector="none").fit(encoder, task)
    assert torch.equal(made(pixels(encoder, task)), ZeroShot().fit(encoder, task)(task.support.image))
    assert_untouched(encoder, before)


@pytest.mark.parametrize("kind", TOWERS)
def test_it_learns_what_the_teacher_says_and_the_model_is_as_it_was(kind):
    encoder = encoder_of(kind)
    task, before = task_of(encoder), state_of(encoder)
    adapter = PromptKD(epochs=2, batch=5, **SMALL)  # the last batch is of one picture
    one, same = adapter.fit(encoder, task), adapter.fit(encoder, task)
    assert_untouched(encoder, before)
    start = PromptKD(epochs=0, **SMALL).fit(encoder, task)
    for name, tensor in one.learned.items():
        assert torch.equal(tensor, same.learned[name])
    for name in ("visual", "projector.first.weight", "projector.second.bias", "projector.norm.running_mean"):
        assert not torch.equal(one.learned[name], start.learned[name])
    assert one.about["selection"] == {"split": "none"}


def test_it_comes_nearer_to_its_teacher(encoder):
    task = task_of(encoder, pool=12)
    image = pool_pixels(encoder, task)
    teacher = ZeroShot().fit(encoder, task)(task.unlabelled.image).softmax(1)
    away = []
    for epochs in (0, 40):
        made = PromptKD(epochs=epochs, augment=None, lr=0.005, **SMALL).fit(encoder, task)
        away.append(float((made(image).softmax(1) - teacher).abs().sum()))
    assert away[1] < 0.7 * away[0]


def test_what_the_teacher_says_is_recorded_and_labels_of_the_pool_are_not_needed(encoder):
    task = task_of(encoder)
    made = PromptKD(epochs=0, teacher=CoOp(tokens=2, epochs=2, lr=0.1), **SMALL).fit(encoder, task)
    teacher = CoOp(tokens=2, epochs=2, lr=0.1).fit(encoder, task)
    label = teacher(task.unlabelled.image).argmax(1).tolist()
    assert made.about["pseudolabels"]["label"] == label
    assert made.about["pseudolabels"]["keys"] == list(task.unlabelled.keys)
    assert torch.equal(made.weight, teacher.weight)
    with pytest.raises(ValueError, match="PromptKD needs pictures without labels"):
        PromptKD().fit(encoder, replace(task, unlabelled=None))
    with pytest.raises(ValueError, match="only features were given"):
        PromptKD(epochs=1).fit(encoder, replace(task, unlabelled=Examples(task.unlabelled.image)))


def test_teachers_of_pictures_and_teachers_that_are_not_linear(encoder):
    task = task_of(encoder)
    visual = VPT(tokens=2, depth=1, epochs=1)
    for augment in (None, PromptKD().augment):
        made = PromptKD(epochs=1, teacher=visual, augment=augment, **SMALL).fit(encoder, task)
        assert torch.equal(made.weight, ZeroShot().fit(encoder, task).weight)
    cache = Tip(alpha=3.0, beta=1.0)
    made = PromptKD(epochs=1, teacher=cache, **SMALL).fit(encoder, task)
    assert torch.equal(made.weight, ZeroShot().fit(encoder, task).weight)
    teacher = cache.fit(encoder, task)
    assert made.about["pseudolabels"]["label"] == teacher(task.unlabelled.image).argmax(1).tolist()
    with pytest.raises(ValueError, match="this one needs tokens"):
        PromptKD(teacher=TokenZeroShot()).fit(encoder, task)


def test_what_the_teacher_chose_is_recorded(encoder):
    task = task_of(encoder)
    task = replace(task, validation=replace(task.support, pictures=None))
    teacher = Tip().fit(encoder, task)
    made = PromptKD(epochs=0, teacher=Tip(), **SMALL).fit(encoder, task)
    assert made.about["selection"] == {"split": "validation", "of": [teacher.about["selection"]]}
    assert made.about["selection"]["of"][0]["candidates"] == 4000
    assert PromptKD(epochs=0, **SMALL).fit(encoder, task).about["selection"] == {"split": "none"}


def test_heads(encoder):
    task = task_of(encoder)
    gaussian = Gda(alpha=1.0).fit(encoder, task)
    head, image = head_of(gaussian, encoder, task), task.unlabelled.image
    torch.testing.assert_close(head.scale * image @ head.weight.T + head.bias, gaussian(image).float())
    plain = ZeroShot().fit(encoder, task)
    plain.bias = torch.tensor([1.0, 2.0, 3.0])
    head = head_of(Restricted(plain, ("big old dog", "cat")), encoder, task)
    assert torch.equal(head.weight, plain.weight[[2, 0]])
    assert head.bias.tolist() == [3.0, 1.0]


def test_another_model_teaches(encoder, monkeypatch, tmp_path):
    wide = {**NANO, "embed_dim": 16}
    wide["text_cfg"] = {**NANO["text_cfg"], "context_length": 24}
    other = make_dual(wide, seed=5)
    other.tokenizer = encoder.dual.tokenizer
    monkeypatch.setattr(promptkd.trained, "load", lambda path: other if path == "big" else None)
    task, before = task_of(encoder), state_of(encoder)
    coop = CoOp(tokens=2, epochs=1)
    adapter = PromptKD(teacher=coop, teacher_model="big", epochs=1, **SMALL)
    made = adapter.fit(encoder, task)
    assert_untouched(encoder, before)
    assert made.weight.shape == (3, 16)
    assert made.learned["projector.first.weight"].shape == (16, encoder.dual.dim)
    assert made.about["teacher_weights"] != made.about["weights_hash"] == encoder.weights_hash
    assert made(pixels(encoder, task)).shape == (6, 3)
    with pytest.raises(ValueError, match="projector: none, but the student has"):
        PromptKD(teacher_model="big", projector="none").fit(encoder, task)
    with pytest.raises(ValueError, match="encodes the pictures anew, and only features were given"):
        PromptKD(teacher_model="big").fit(encoder, replace(task, unlabelled=Examples(task.unlabelled.image)))
    other.transform = other.transform.model_copy(update={"size": (48, 48)})
    with pytest.raises(ValueError, match="read pictures of 48 and 32 pixels"):
        adapter.fit(encoder, task)


def test_a_saved_one_is_the_same_and_takes_other_names(encoder, tmp_path):
    task = task_of(encoder)
    image = pixels(encoder, task)
    made = PromptKD(epochs=1, **SMALL).fit(encoder, task)
    made.save(tmp_path / "c")
    back = StudentClassifier.load(tmp_path / "c", encoder=encoder)
    assert torch.equal(back(image), made(image))
    assert (back.names, back.about, back.needs) == (NAMES, made.about, "pictures")
    moved = PromptKD().transfer(encoder, back, OTHER)
    assert torch.equal(moved.weight, ZeroShot().fit(encoder, OTHER).weight)
    torch.testing.assert_close(moved(image), encoder.scale * made.features(image) @ moved.weight.T)
    with pytest.raises(ValueError, match='reads "prompted_towers"'):
        TowerClassifier.load(tmp_path / "c", encoder=encoder)
    coop = CoOp(tokens=2, epochs=1)
    taught = PromptKD(epochs=1, teacher=coop, **SMALL).fit(encoder, task)
    moved = PromptKD().transfer(encoder, taught, OTHER)
    assert torch.equal(moved.weight, coop.transfer(encoder, coop.fit(encoder, task), OTHER).weight)
    taught.save(tmp_path / "t")
    with pytest.raises(NotImplementedError, match="come from the teacher CoOp"):
        PromptKD().transfer(encoder, StudentClassifier.load(tmp_path / "t", encoder=encoder), OTHER)


def test_the_projector_takes_single_pictures():
    made = Projector(4, 3, torch.Generator().manual_seed(0))
    made(torch.randn(5, 4, generator=torch.Generator().manual_seed(1)))
    mean = made.norm.running_mean.clone()
    alone = made(torch.ones(1, 4))
    assert torch.equal(made.norm.running_mean, mean)
    assert torch.equal(made.eval()(torch.ones(1, 4)), alone)


def test_published_settings():
    part = PromptKD()
    assert (part.lr, part.batch, part.usual_epochs(16), part.tokens, part.depth) == (0.005, 8, 20, 4, 9)
    assert (part.distil, part.temperature, part.projector) == (1000.0, 1.0, "mlp")
    assert PromptKD.wants == ("unlabelled",)
