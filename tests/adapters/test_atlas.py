"""Compositions of task vectors against loops, and what their coefficients learn."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.adapters.weight_towers import (
    RESNET,
    assert_untouched,
    batch,
    examples,
    make_encoder,
    make_task,
    trace,
    zero_shot_logits,
)
from vlp.adapters.adapter import class_weights
from vlp.adapters.atlas import Atlas, Composition
from vlp.adapters.atlas_tta import AtlasTTA, AtlasUFM, pseudo_labels, trust
from vlp.adapters.finetune import Finetune
from vlp.adapters.selection import score
from vlp.adapters.tuned import HEAD, features_and_weights
from vlp.adapters.wise_ft import WiseFT

FAST = Finetune(epochs=6, lr=3e-3, batch_size=6, train_head=False)
PLAIN = {"augment": None, "batch_size": 16}


@pytest.fixture
def saved(tmp_path):
    """Encoder, task, and two models tuned on other tasks."""
    encoder = make_encoder()
    task = make_task(encoder, held=4)
    paths = []
    for seed in (1, 2):
        other = replace(
            task, names=("x", "y", "z"), support=examples(encoder, 3, seed=seed), validation=None, seed=seed
        )
        paths.append(str(tmp_path / str(seed)))
        FAST.fit(encoder, other).save(tmp_path / str(seed))
    return encoder, task, tuple(paths)


def toy(masks: int) -> tuple[Composition, dict, list[dict]]:
    rng = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(4, 3, generator=rng), "b": torch.randn(4, generator=rng), HEAD: torch.zeros(1)}
    states = [{name: torch.randn(base[name].shape, generator=rng) for name in names} for names in ("wb", "w")]
    return Composition(base, states, masks=masks, rng=rng), base, states


@pytest.mark.parametrize("masks", [1, 3])
def test_a_composition_is_the_loop_over_vectors_blocks_and_numbers(masks):
    made, base, states = toy(masks)
    c = torch.randn(2, 2, masks)
    found = made.at(c)
    for row in range(4):
        for column in range(3):
            part = int(made.part["w"][row, column]) if masks > 1 else 0
            want = float(base["w"][row, column])
            for vector, state in enumerate(states):
                want += float(c[vector, 0, part] * (state["w"][row, column] - base["w"][row, column]))
            assert float(found["w"][row, column]) == pytest.approx(want, abs=1e-5)
        want = float(base["b"][row] + c[0, 1, 0] * (states[0]["b"][row] - base["b"][row]))
        assert float(found["b"][row]) == pytest.approx(want, abs=1e-5)
    if masks > 1:
        assert set(made.part) == {"w"}
        assert len(set(made.part["w"].flatten().tolist())) > 1


def test_all_at_zero_is_the_backbone_and_all_of_one_is_its_model(saved):
    encoder, task, paths = saved
    vectors = Atlas(files=paths).composition(encoder, task)
    zero = vectors.at(vectors.start().detach())
    own = encoder.dual.state_dict()
    assert all(torch.equal(zero[name], own[name]) for name in vectors.blocks)
    one = vectors.start().detach()
    one[0] = 1.0
    tuned = Finetune.fit(
        FAST, encoder, replace(task, names=("x", "y", "z"), support=examples(encoder, 3, seed=1), seed=1)
    )
    for name, tensor in vectors.at(one).items():
        if name != HEAD:
            torch.testing.assert_close(tensor, tuned.state[name], atol=1e-6, rtol=0)


def test_without_epochs_it_is_zero_shot_bit_for_bit_and_never_touches_the_model(saved):
    encoder, task, paths = saved
    before = trace(encoder.dual)
    made = Atlas(files=paths, epochs=0).fit(encoder, task)
    assert torch.equal(made(batch(task.validation)), zero_shot_logits(encoder, task, task.validation))
    Atlas(files=paths, epochs=1).fit(encoder, task)
    assert_untouched(encoder.dual, before)


def test_one_step_is_adamw_on_the_gradient_of_every_coefficient(saved):
    """Against finite differences of the loss; a first step of AdamW is its rate against the sign."""
    encoder, task, paths = saved
    adapter = Atlas(files=paths, epochs=1, lr=0.01, weight_decay=0.0, **PLAIN)
    vectors = adapter.composition(encoder, task)
    coefficients = vectors.start()
    adapter.descend(
        encoder,
        coefficients,
        lambda rows, step: loss_of(encoder, vectors, coefficients, task),
        steps=1,
        rows=9,
        rng=torch.Generator().manual_seed(0),
    )
    checked = 0
    for place in range(0, len(vectors.blocks), 4):
        for vector in range(2):
            apart = vectors.start().detach()
            apart[vector, place] = 0.1
            with torch.no_grad():
                slope = float(loss_of(encoder, vectors, apart, task) - loss_of(encoder, vectors, -apart, task)) / 0.2
            if abs(slope) > 1e-3:
                want = -0.01 if slope > 0 else 0.01
                assert float(coefficients.detach()[vector, place, 0]) == pytest.approx(want, rel=1e-2)
                checked += 1
    assert checked > 4


def loss_of(encoder, vectors, coefficients, task):
    features, weight = features_and_weights(encoder, vectors.at(coefficients), batch(task.support))
    return cross_entropy(encoder.scale * features @ weight.T, task.support.known)


def test_the_epoch_is_the_best_on_validation_and_the_start_is_among_them(saved):
    encoder, task, paths = saved
    adapter = Atlas(files=paths, epochs=4, masks=2, **PLAIN)
    made = adapter.fit(encoder, task)
    vectors = adapter.composition(encoder, task)
    scores = []
    for coefficients in adapter._learn(encoder, task, vectors):
        made_then = type(made)(encoder, vectors.at(coefficients), names=task.names)
        scores.append(score(made_then(batch(task.validation)), task.validation.known))
    assert len(scores) == 5
    assert made.about["epoch"] == max(range(5), key=scores.__getitem__)
    assert made.about["selection"]["acc1"] == max(scores).accuracy >= scores[0].accuracy
    last = adapter.fit(encoder, make_task(encoder, shots=1, held=0))
    assert (last.about["epoch"], last.about["selection"]["split"]) == (4, "none")
    folded = Atlas(of=(FAST,), epochs=1, **PLAIN).fit(encoder, make_task(encoder, shots=2, held=0))
    assert folded.about["selection"]["split"] == "train"


def test_it_learns_and_equal_seeds_give_equal_bits(saved):
    encoder, task, paths = saved
    alone = replace(task, support=task.support, validation=None)
    adapter = Atlas(of=(FAST,), files=paths, epochs=4, masks=2)
    vectors = adapter.composition(encoder, alone)
    learned = adapter._learn(encoder, alone, vectors)
    values = []
    for coefficients in (learned[0], learned[-1]):
        values.append(float(loss_of(encoder, vectors, coefficients, alone).detach()))
    assert values[1] < 0.9 * values[0]
    again = adapter._learn(encoder, alone, adapter.composition(encoder, alone))
    assert all(torch.equal(one, two) for one, two in zip(learned, again))


def test_only_vectors_of_the_image_tower_are_composed_and_statistics_stay():
    encoder = make_encoder()
    task = make_task(encoder)
    with pytest.raises(ValueError, match="changes the text tower too"):
        Atlas(of=(FAST.model_copy(update={"towers": "both"}),)).fit(encoder, task)
    with pytest.raises(ValueError, match="atlas has nothing to merge"):
        Atlas().fit(encoder, task)
    resnet = make_encoder(RESNET)
    vectors = Atlas(of=(FAST,)).composition(resnet, make_task(resnet))
    assert not any("running" in name for name in vectors.blocks)


def test_what_its_vectors_chose_is_in_its_record(saved):
    encoder, task, paths = saved
    part = WiseFT(of=FAST)
    found = Atlas(of=(part,), epochs=1, **PLAIN).fit(encoder, task).about["selection"]
    assert (found["split"], found["of"]) == ("validation", [part.fit(encoder, task).about["selection"]])
    bare = replace(task, validation=None, unlabelled=task.support.unlabelled())
    assert AtlasUFM(files=paths, epochs=0).fit(encoder, bare).about["selection"]["split"] == "none"
    own = AtlasUFM(of=(part,), epochs=0).fit(encoder, bare).about["selection"]
    assert (own["split"], own["of"][0]["candidates"]) == ("train", 21)


# -- without labels ---------------------------------------------------------------------------------------------------


def test_trusted_are_the_most_probable_of_every_class():
    rng = torch.Generator().manual_seed(0)
    probabilities = torch.rand(60, 3, generator=rng).softmax(dim=1)
    probabilities[7] = torch.tensor([0.8, 0.1, 0.1])
    found, most = trust(probabilities), 60 // 3 // 10
    want = [-1] * 60
    for row in range(60):
        best = -1.0
        for c in range(3):
            rank = sum(float(probabilities[other, c]) > float(probabilities[row, c]) for other in range(60))
            if rank < most and float(probabilities[row, c]) > best:
                want[row], best = c, float(probabilities[row, c])
    assert found.tolist() == want
    assert found[7] == 0
    assert (found != -1).sum() == 6
    assert (trust(probabilities[:2]) != -1).sum() <= 2  # fewer pictures than classes
    assert (trust(torch.rand(9000, 3, generator=rng)) != -1).sum() <= 300


def test_other_pictures_have_a_label_where_the_model_is_sure():
    probabilities = torch.tensor([[0.995, 0.005], [0.98, 0.02], [0.4, 0.6]])
    assert pseudo_labels(probabilities, torch.tensor([-1, -1, 0]), threshold=0.99).tolist() == [0, -1, 0]


def test_a_loss_without_labels_equals_the_loop(saved):
    encoder, task, paths = saved
    adapter = AtlasUFM(files=paths, threshold=0.6, **PLAIN)
    pool, rng = examples(encoder, 5, seed=7), torch.Generator().manual_seed(3)
    vectors = adapter.composition(encoder, task)
    coefficients = 0.2 * torch.randn(vectors.start().shape, generator=rng)
    loss = adapter._loss(encoder, pool.unlabelled(), task, vectors, coefficients, per_epoch=10, rng=rng)
    drawn, rows = torch.Generator().set_state(rng.get_state()), torch.tensor([11, 2, 7, 4, 13, 0, 9])
    found = float(loss(rows, 0))
    dual = copy.deepcopy(encoder.dual).eval()
    dual.load_state_dict({name: x for name, x in vectors.at(coefficients).items() if name != HEAD}, strict=False)
    with torch.no_grad():
        said = (encoder.scale * dual.encode_image(batch(pool)) @ class_weights(encoder, task).T).double().softmax(dim=1)
    first = [max(range(15), key=lambda row, c=c: float(said[row, c])) for c in range(3)]  # k = 15 / 3 / 10, at least 1
    sure = sorted(set(first))
    half = [sure[place] for place in torch.randint(len(sure), (4,), generator=drawn).tolist()]
    costs = []
    for row in [*half, *rows[4:].tolist()]:
        own = [c for c in range(3) if first[c] == row] or [c for c in range(3) if said[row, c] > 0.6]
        costs += [-math.log(max(float(said[row, c]) for c in own))] if own else []
    assert 4 < len(costs) < 7  # of the three that are not trusted some have a label and some have none
    assert found == pytest.approx(sum(costs) / len(costs), abs=1e-4)


@pytest.mark.parametrize(("adapter", "source"), [(AtlasUFM, "unlabelled"), (AtlasTTA, "query")])
def test_labels_are_never_seen_and_trust_is_learned_from(saved, adapter, source):
    encoder, task, paths = saved
    bare = replace(task, support=None, validation=None, **{source: task.support.unlabelled()})
    assert adapter.wants == (source,)
    assert adapter.transductive == (source == "query")
    before = trace(encoder.dual)
    made = adapter(files=paths, epochs=2, lr=0.02).fit(encoder, bare)
    assert_untouched(encoder.dual, before)
    same = adapter(files=paths, epochs=2, lr=0.02).fit(encoder, bare)
    image = batch(task.support)
    assert torch.equal(made(image), same(image))
    zero = zero_shot_logits(encoder, task, task.support)
    off = adapter(files=paths, epochs=0).fit(encoder, bare)
    assert torch.equal(off(image), zero)
    trusted = trust(zero.softmax(dim=1))
    sure = trusted != -1
    assert cross_entropy(made(image)[sure], trusted[sure]) < cross_entropy(zero[sure], trusted[sure])
    with pytest.raises(ValueError, match="needs"):
        adapter(files=paths).fit(encoder, task)
