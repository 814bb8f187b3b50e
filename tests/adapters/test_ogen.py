"""OGEN: every term by loops, which classes are new, its ends, around every learner it knows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from tests.adapters.prompt_towers import PHOTO, TOWERS, assert_untouched, encoder_of, state_of, task_of
from vlp.adapters.cocoop import CoCoOp
from vlp.adapters.coop import CoOp
from vlp.adapters.feature_generator import FeatureGenerator, Imagined, nearest_classes, statistics
from vlp.adapters.ivlp import IVLP
from vlp.adapters.kgcoop import KgCoOp
from vlp.adapters.local_mean import LocalMean, span
from vlp.adapters.maple import MaPLe
from vlp.adapters.ogen import OGEN
from vlp.adapters.opened import OpenContext, opened
from vlp.adapters.promptsrc import PromptSRC
from vlp.adapters.stored import Stored
from vlp.adapters.task import Examples, Task
from vlp.adapters.vpt import VPT
from vlp.tune.fitting import traits

NAMES = ("cat", "tabby cat", "big old dog", "ant", "car")
NEW = ("dog", "old ant", "tree", "old car")
SHORT = {"epochs": 2, "lr": 0.05}
DEEP = {"tokens": 2, "visual_tokens": 2, "depth": 2, "visual_depth": 2}
LEARNERS = {
    "coop": CoOp(tokens=3, **SHORT),
    "specific": CoOp(tokens=3, specific=True, **SHORT),
    "kgcoop": KgCoOp(**SHORT),
    "vpt": VPT(tokens=2, depth=2, **SHORT),
    "ivlp": IVLP(**DEEP, **SHORT),
    "maple": MaPLe(tokens=2, depth=2, **SHORT),
    "promptsrc": PromptSRC(**DEEP, **SHORT, anchors="simple"),
}


@pytest.fixture(scope="module")
def encoder():
    return encoder_of()


def five(encoder, *, shots=2, seed=0):
    return task_of(encoder, shots=shots, seed=seed, names=NAMES)


class Plain(torch.nn.Module):
    """A generator without weights: the mean of everything, and no memory of how often it was asked."""

    def forward(self, query, key, value):
        mixed = query + (key + 2 * value).mean(dim=1, keepdim=True)
        return normalize(mixed, dim=-1).flatten(0, 1)


def terms_by_loops(image, label, weight, mean, std, *, old, novel, drawn, scale, k):
    """Explicit over pictures and neighbours; the same generator, one class at a time."""
    make = Plain()
    sums = {"unknown": [], "known": [], "novel": [], "unknown_distance": [], "known_distance": []}

    def tell(feature, names, target):
        return cross_entropy(scale * torch.stack([weight[n] @ feature for n in names])[None], torch.tensor([target]))

    for x, y in zip(image, label.tolist(), strict=True):
        if y not in old:
            continue
        near = sorted((c for c in old if c != y), key=lambda c: -float(mean[y] @ mean[c]))[:k]
        seen = [mean[c] + drawn * std[c] for c in near]
        words = [weight[c].detach() for c in near]
        made = make(weight[y].detach()[None, None], torch.stack(words)[None], torch.stack(seen)[None])[0]
        sums["unknown"].append(tell(made, old, old.index(y)))
        sums["unknown_distance"].append(((made - x) ** 2).sum())
        for c, picture in zip(near, seen, strict=True):
            made = make(weight[c].detach()[None, None], weight[y].detach()[None, None], x[None, None])[0]
            sums["known"].append(tell(made, old, old.index(c)))
            sums["known_distance"].append(((made - picture) ** 2).sum())
        closest = sorted(novel, key=lambda c: -float(weight[y].detach() @ weight[c].detach()))[:k]
        for c in closest:
            made = make(weight[c].detach()[None, None], weight[y].detach()[None, None], x[None, None])[0]
            sums["novel"].append(tell(made, novel, novel.index(c)))
    return {name: sum(values) / len(values) for name, values in sums.items()}


@pytest.mark.parametrize("mode", ["names", "held_out"])
def test_terms_equal_the_loops(encoder, mode):
    support = five(encoder, shots=3).support
    extra, held = (4, None) if mode == "names" else (0, 0.4)
    rng = torch.Generator().manual_seed(3)
    imagined = Imagined(
        Plain(),
        support,
        classes=5,
        extra=extra,
        held=held,
        neighbours=2,
        scale=encoder.scale,
        device=torch.device("cpu"),
        rng=rng,
    )
    width = support.image.shape[1]
    weight = normalize(torch.randn(5 + extra, width, generator=torch.Generator().manual_seed(1)), dim=1)
    weight.requires_grad_()
    image, label = support.image[:7].clone().requires_grad_(), support.known[:7]
    before = rng.get_state()
    found = imagined.terms(image, label, weight)
    drawn = torch.rand(image.shape[1], generator=torch.Generator().set_state(before))
    mean, std, seen = statistics(support, 5)
    assert seen.all()
    novel = imagined.novel.tolist()
    assert len(novel) == (4 if mode == "names" else 2)
    old = [c for c in range(5) if c not in novel]
    want = terms_by_loops(image, label, weight, mean, std, old=old, novel=novel, drawn=drawn, scale=encoder.scale, k=2)
    for name, value in want.items():
        torch.testing.assert_close(getattr(found, name), value, atol=1e-5, rtol=1e-4)
        if "distance" in name:  # what is made up takes no gradient from text features, and none from its aim
            one = getattr(found, name)
            assert (
                not one.requires_grad
                or torch.autograd.grad(one, [weight], retain_graph=True, allow_unused=True)[0] is None
            )
            continue
        grads = [torch.autograd.grad(loss, [weight], retain_graph=True)[0] for loss in (getattr(found, name), value)]
        torch.testing.assert_close(grads[0], grads[1], atol=1e-5, rtol=1e-3)


def test_statistics_and_neighbours_by_loops(encoder):
    support = five(encoder, shots=3).support.only(range(13))
    mean, std, seen = statistics(support, 6)
    assert seen.tolist() == [True] * 5 + [False]
    for c in range(5):
        own = [x for x, y in zip(support.image, support.known.tolist(), strict=True) if y == c]
        average = sum(own) / len(own)
        torch.testing.assert_close(mean[c], average)
        torch.testing.assert_close(std[c], (sum((x - average) ** 2 for x in own) / len(own)).sqrt())
    near = nearest_classes(mean, torch.tensor([True, True, False, True, True, False]), 3)
    for c in (0, 1, 3, 4):
        others = sorted({0, 1, 3, 4} - {c}, key=lambda other: -float(mean[c] @ mean[other]))
        assert near[c].tolist() == others[:3]


def test_the_generator_is_an_attention_and_a_residual():
    torch.manual_seed(0)
    made = FeatureGenerator(8, heads=2, dropout=0.0)
    query, key, value = torch.randn(3, 2, 8), torch.randn(3, 4, 8), torch.randn(3, 4, 8)
    w, b = made.attention.in_proj_weight.chunk(3), made.attention.in_proj_bias.chunk(3)
    for i in range(3):
        for j in range(2):
            q, k, v = query[i, j] @ w[0].T + b[0], key[i] @ w[1].T + b[1], value[i] @ w[2].T + b[2]
            heads = [(k[:, h] @ q[h] / 2).softmax(0) @ v[:, h] for h in (slice(0, 4), slice(4, 8))]
            seen = made.attention.out_proj(torch.cat(heads))
            torch.testing.assert_close(
                made(query, key, value)[2 * i + j], normalize(made.mlp(query[i, j]) + seen, dim=0)
            )
    with pytest.raises(ValueError, match="heads is 3, and features of 8 numbers cannot be parted so"):
        FeatureGenerator(8, heads=3, dropout=0.0)


@pytest.mark.parametrize("name", LEARNERS)
def test_around_every_learner(encoder, name, tmp_path):
    task, before = five(encoder), state_of(encoder)
    adapter = OGEN(of=LEARNERS[name], start=0.0, teacher=1.0, window=(1, 2))
    made, same = (adapter.fit(encoder, task) for _ in range(2))
    assert_untouched(encoder, before)
    plain = adapter.of.fit(encoder, task)
    assert type(made) is type(plain)
    assert (made.names, made.needs) == (NAMES, plain.needs)
    for key, tensor in made.learned.items():
        assert torch.equal(tensor, same.learned[key])
        assert not torch.equal(tensor, plain.learned[key])
    assert made.about["new_classes"] == {"mode": "held_out", "held": 0.3, "seen": "no names but the task's"}
    assert OGEN.model_validate(made.about["settings"]) == adapter
    made.save(tmp_path / "c")
    given = {} if made.needs == "features" else {"encoder": encoder}
    back = type(made).load(tmp_path / "c", **given)
    if name == "specific":
        with pytest.raises(NotImplementedError, match="specific: true"):
            OGEN().transfer(encoder, back, Task(NEW, PHOTO))
        return
    moved = OGEN().transfer(encoder, back, Task(NEW, PHOTO))
    assert (moved.names, moved.about["fitted"]) == (NEW, list(NAMES))
    torch.testing.assert_close(moved.weight, adapter.of.transfer(encoder, spoken(made, plain), Task(NEW, PHOTO)).weight)


def spoken(made, plain):
    """The classifier as the learner inside would have signed it."""
    made.about = plain.about
    return made


@pytest.mark.parametrize("name", LEARNERS)
def test_with_its_terms_off_it_is_the_learner(encoder, name):
    task = five(encoder)
    off = {"unknown": 0.0, "known": 0.0, "novel": 0.0, "matching": 0.0, "start": 0.0, "image": 1.0}
    made, plain = OGEN(of=LEARNERS[name], **off).fit(encoder, task), LEARNERS[name].fit(encoder, task)
    for key, tensor in plain.learned.items():
        torch.testing.assert_close(made.learned[key], tensor, atol=2e-5, rtol=1e-3)


def test_at_first_only_the_generator_learns(encoder):
    task = five(encoder)
    learner = CoOp(tokens=3, epochs=3, lr=0.05, weight_decay=0.0)
    made = OGEN(of=learner, start=1.0).fit(encoder, task)
    nothing = CoOp(tokens=3, epochs=0).fit(encoder, task)
    assert torch.equal(made.learned["context"], nothing.learned["context"])
    one = OGEN(of=learner, start=0.4, image=0.0, unknown=1.0).fit(encoder, task)  # from epoch 1 of 3 on
    assert not torch.equal(one.learned["context"], nothing.learned["context"])


@pytest.mark.parametrize("kind", TOWERS)
def test_nothing_learned_is_zero_shot(kind):
    encoder = encoder_of(kind)
    task = five(encoder)
    learner = CoOp(words="a photo of a", epochs=0)
    made = OGEN(of=learner).fit(encoder, task)
    assert torch.equal(made.weight, learner.fit(encoder, task).weight)


def test_names_of_new_classes_are_used_and_disclosed(encoder, tmp_path):
    task = five(encoder)
    settings = {"of": LEARNERS["coop"], "start": 0.0, "new": "names"}
    made = OGEN(names=NEW, **settings).fit(encoder, task)
    other = OGEN(names=NEW[:2], **settings).fit(encoder, task)
    assert not torch.equal(made.weight, other.weight)
    assert made.about["new_classes"]["names"] == list(NEW)
    (tmp_path / "new.txt").write_text("\n".join(NEW))
    assert torch.equal(OGEN(names=str(tmp_path / "new.txt"), **settings).fit(encoder, task).weight, made.weight)
    fixed = OGEN(of=LEARNERS["vpt"], new="names", names=NEW, start=0.0).fit(encoder, task)
    assert fixed.weight.shape[0] == 5
    judged = replace(task, validation=task.support, test=task.support)
    again = OGEN(of=LEARNERS["vpt"], new="names", names=NEW[:2], start=0.0).fit(encoder, judged)  # of which none is 4
    assert again.weight.shape[0] == 5
    with pytest.raises(ValueError, match='names: "ant" is a class of the task'):
        OGEN(names=("ant", "tree"), **settings).fit(encoder, task)
    with pytest.raises(ValueError, match="of 1 new class"):
        OGEN(names=("tree",), **settings).fit(encoder, task)
    for wrong in ({"new": "names"}, {"new": "held_out", "names": NEW}):
        with pytest.raises(ValueError, match="new: names goes with `names`"):
            OGEN(**wrong)


def test_held_out_classes_change_and_both_parts_stay_large_enough(encoder):
    support = five(encoder).support
    given = {"extra": 0, "held": 0.3, "neighbours": 3, "scale": 1.0, "device": torch.device("cpu")}
    imagined = Imagined(Plain(), support, classes=5, rng=torch.Generator().manual_seed(0), **given)
    drawn = []
    for epoch in range(8):
        imagined.begin(epoch)
        drawn.append(tuple(imagined.novel.tolist()))
        assert not set(imagined.near[imagined.old].flatten().tolist()) & set(drawn[-1])
        assert imagined.near.shape == (5, 2)
    assert len(set(drawn)) > 2
    only_new = imagined.terms(support.image[:1], imagined.novel[:1], normalize(torch.randn(5, support.image.shape[1])))
    assert [float(value) for value in only_new] == [0.0] * 5
    three = task_of(encoder, names=("a cat", "dog", "ant"))
    with pytest.raises(ValueError, match="new: held_out makes 2 of 3 classes new, and both parts need 2"):
        OGEN(of=LEARNERS["coop"]).fit(encoder, three)


def test_the_local_mean_by_hand(encoder):
    task = five(encoder)
    learner = CoOp(tokens=2, epochs=6)
    mean = LocalMean(opened(learner, encoder, task), (1, 3), 6)
    view, states = opened(learner, encoder, task), []
    for epoch in range(1, 7):
        with torch.no_grad():
            view.learned["context"].add_(epoch)
        mean.add(view.learned)
        states.append(view.learned["context"].detach().clone())
        window = math.floor((1 + math.cos((1 + epoch / 6) * math.pi)) / 2 * 2) + 1
        want = sum(states[-window:]) / len(states[-window:])
        torch.testing.assert_close(mean.view.learned["context"].detach(), want)
    assert [span(t, 10, (2, 9)) for t in (0, 5, 10)] == [2, 5, 9]


def test_what_cannot_be_wrapped(encoder):
    with pytest.raises(ValueError, match="CoCoOp cannot be opened"):
        OGEN(of=CoCoOp()).fit(encoder, five(encoder))
    with pytest.raises(ValueError, match="OGEN needs labelled pictures"):
        OGEN().fit(encoder, Task(NAMES))
    with pytest.raises(ValueError, match="stored features have no towers"):
        OGEN().fit(Stored(), Task(NAMES, support=Examples(torch.zeros(1, 4), torch.zeros(1).long())))
    with pytest.raises(ValueError, match=r"window is \[3, 2\]"):
        OGEN(window=(3, 2))
    view = opened(CoOp(tokens=2, specific=True), encoder, five(encoder))
    assert isinstance(view, OpenContext)
    with pytest.raises(ValueError, match="specific: true"):
        view.weights(NEW)


def test_published_settings_and_traits():
    part = OGEN()
    assert (part.neighbours, part.start, part.image, part.unknown, part.known, part.novel) == (
        3,
        0.2,
        0.25,
        0.25,
        0.25,
        0.5,
    )
    assert (part.heads, part.dropout, part.window) == (4, 0.1, (2, 9))
    assert (traits(part).level, traits(OGEN(of=VPT())).level, traits(part).views) == ("text", "towers", 8)
