"""Soups: what joins, and what comes out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.adapters.weight_towers import RESNET, assert_untouched, batch, make_encoder, make_task, trace
from vlp.adapters.finetune import Finetune
from vlp.adapters.selection import folds, score
from vlp.adapters.soup import Soup, greedy
from vlp.adapters.tuned import HEAD, features_and_weights, measured_again
from vlp.adapters.weights import mean
from vlp.adapters.wise_ft import WiseFT

FAST = Finetune(epochs=4, lr=3e-3, batch_size=6)
HARD = FAST.model_copy(update={"lr": 0.3})  # far too much: an ingredient that spoils a soup


def reached(made, task) -> float:
    return score(made(batch(task.validation)), task.validation.known).accuracy


def test_a_uniform_soup_is_the_loop_over_ingredients():
    encoder = make_encoder()
    task = make_task(encoder)
    before = trace(encoder.dual)
    made = Soup(of=(FAST,), seeds=3, how="uniform").fit(encoder, task)
    assert_untouched(encoder.dual, before)
    states = [FAST.fit(encoder, replace(task, seed=seed)).state for seed in range(3)]
    for name, tensor in made.state.items():
        total = torch.zeros_like(tensor)
        for state in states:
            total = total + state[name]
        torch.testing.assert_close(tensor, total / 3, atol=1e-6, rtol=0)
    assert made.about["taken"] == made.about["ingredients"]
    assert made.about["selection"]["split"] == "none"


def test_equal_ingredients_make_the_ingredient_bit_for_bit(tmp_path):
    encoder = make_encoder()
    task = make_task(encoder)
    one = FAST.fit(encoder, task)
    one.save(tmp_path)
    for how in ("uniform", "greedy"):
        made = Soup(of=(), files=(str(tmp_path),) * 3, how=how).fit(encoder, task)
        assert all(torch.equal(tensor, one.state[name]) for name, tensor in made.state.items())
        assert made.about["taken"] == [str(tmp_path)] * 3  # `ge`: none makes it worse
    alone = Soup(of=(), files=(str(tmp_path),) * 3, accept="gt").fit(encoder, task)
    assert alone.about["taken"] == [str(tmp_path)]


@pytest.mark.parametrize("accept", ["ge", "gt"])
def test_a_greedy_soup_is_written_out_and_never_below_its_best_ingredient(accept):
    encoder = make_encoder()
    task = make_task(encoder, held=5)
    made = Soup(of=(FAST, HARD), seeds=2, accept=accept).fit(encoder, task)
    states, single = [], []
    for part in (FAST, HARD):
        for seed in range(2):
            tuned = part.fit(encoder, replace(task, seed=seed))
            states.append(tuned.state)
            single.append(reached(tuned, task))
    order = sorted(range(4), key=lambda place: -single[place])
    taken, best = [order[0]], single[order[0]]
    for place in order[1:]:
        soup = type(made)(encoder, mean([states[p] for p in [*taken, place]]), names=task.names)
        now = reached(soup, task)
        if now > best or (accept == "ge" and now == best):
            taken, best = [*taken, place], now
    names = made.about["ingredients"]
    assert made.about["taken"] == [names[place] for place in taken]
    assert reached(made, task) == best == made.about["selection"]["acc1"] >= max(single)
    assert made.about["selection"]["split"] == "validation"


def test_greedy_goes_by_the_accuracy_it_is_told():
    worth = {(0,): 0.5, (1,): 0.7, (2,): 0.6, (1, 2): 0.7, (1, 2, 0): 0.6, (1, 0): 0.8}
    accuracy = lambda state: worth[state["places"]]  # noqa: E731
    mixed = lambda places: {"places": tuple(places)}  # noqa: E731
    assert greedy(3, mixed, accuracy, accept="ge")[0] == [1, 2]
    taken, seen = greedy(3, mixed, accuracy, accept="gt")
    assert (taken, max(seen)) == ([1, 0], 0.8)


def test_without_validation_a_part_of_the_support_is_held_out():
    encoder = make_encoder()
    task = make_task(encoder, shots=4, held=0)
    made = Soup(of=(FAST,), seeds=1).fit(encoder, task)
    learn = folds(task).folds[0].learn
    alone = FAST.fit(encoder, replace(task, support=learn))
    assert all(torch.equal(tensor, alone.state[name]) for name, tensor in made.state.items())
    assert made.about["selection"]["split"] == "train"
    with pytest.raises(ValueError, match="needs held-out pictures"):
        Soup(of=(FAST,)).fit(encoder, make_task(encoder, shots=1, held=0))
    with pytest.raises(ValueError, match="soup has nothing to merge"):
        Soup(of=()).fit(encoder, task)


def test_one_tower_and_two_mix_and_words_are_encoded_again():
    encoder = make_encoder()
    task = make_task(encoder)
    both = FAST.model_copy(update={"towers": "both"})
    made = Soup(of=(FAST, both), how="uniform", seeds=1).fit(encoder, task)
    one, two = FAST.fit(encoder, task).state, both.fit(encoder, task).state
    own = encoder.dual.state_dict()
    name = "text.text_projection"
    torch.testing.assert_close(made.state[name], (own[name] + two[name]) / 2, atol=1e-6, rtol=0)
    assert not torch.allclose(made.state[HEAD], (one[HEAD] + two[HEAD]) / 2, atol=1e-3)


def test_statistics_of_batchnorm_are_those_of_the_support_under_the_mean():
    encoder = make_encoder(RESNET)
    task = make_task(encoder)
    before = trace(encoder.dual)
    made = Soup(of=(FAST,), seeds=2, how="uniform").fit(encoder, task)
    assert_untouched(encoder.dual, before)
    seen = {}

    def hook(module, args):
        seen["mean"] = args[0].mean(dim=(0, 2, 3))

    handle = encoder.dual.visual.bn1.register_forward_pre_hook(hook)
    features_and_weights(encoder, made.state, batch(task.support)[:5])
    first = seen["mean"]
    features_and_weights(encoder, made.state, batch(task.support)[5:])
    handle.remove()
    want = (first + seen["mean"]) / 2  # 9 pictures for batches of 8: 5 and 4
    torch.testing.assert_close(made.state["visual.bn1.running_mean"], want, atol=1e-5, rtol=0)
    some = {name: x for name, x in made.state.items() if not name.endswith(("running_var", "tracked"))}
    again = measured_again(encoder, some, batch(task.support))  # as of a model that has these from the backbone
    torch.testing.assert_close(again["visual.bn1.running_var"], made.state["visual.bn1.running_var"])
    single = FAST.fit(encoder, task).state
    assert made.state["visual.bn1.num_batches_tracked"] == single["visual.bn1.num_batches_tracked"]


@pytest.mark.parametrize("how", ["uniform", "greedy"])
def test_what_its_ingredients_chose_is_in_its_record(how):
    encoder = make_encoder()
    task = make_task(encoder, held=3)
    made = Soup(of=(WiseFT(of=FAST), FAST), seeds=1, how=how).fit(encoder, task)
    chosen, plain = made.about["selection"]["of"]
    assert made.about["selection"]["split"] == "validation"
    assert chosen == WiseFT(of=FAST).fit(encoder, task).about["selection"]
    assert plain["split"] == "none"
