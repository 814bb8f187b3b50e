"""Draws follow from seed and keys, are balanced, nested and written as a value."""

from __future__ import annotations

import itertools
import json
import random

import pytest

from vlp.probe.draw import draw, held_out, read_draws, rows_of

LABEL = [name for name in ("cat", "dog", "owl") for _ in range(12)]
KEYS = [f"p{number:03d}" for number in range(36)]


def shuffled(seed):
    pairs = list(zip(LABEL, KEYS))
    random.Random(seed).shuffle(pairs)
    return [label for label, _ in pairs], [key for _, key in pairs]


def test_the_order_of_the_data_does_not_matter_and_the_seed_does():
    first = draw(LABEL, KEYS, shots=(2, 4), seeds=(1, 2))
    assert draw(*shuffled(0), shots=(2, 4), seeds=(1, 2)) == first
    assert first.draws[0].train != first.draws[2].train
    assert [(one.seed, one.shots) for one in first.draws] == [(1, 2), (1, 4), (2, 2), (2, 4)]


def test_the_first_pictures_of_a_seed_are_known():
    assert draw(LABEL, KEYS, shots=(2,), seeds=(1,)).draws[0].train["cat"] == (
        "p001",
        "p008",
    )  # the same on every machine


def test_draws_are_balanced_nested_and_apart_from_their_validation_pictures():
    of = dict(zip(KEYS, LABEL))
    draws = draw(LABEL, KEYS, shots=(1, 2, 8), seeds=(3,)).draws
    for one, held in zip(draws, (1, 2, 4)):
        for name in ("cat", "dog", "owl"):
            train, validation = one.train[name], one.validation[name]
            assert len(set(train)) == one.shots
            assert len(set(validation)) == held
            assert not set(train) & set(validation)
            assert {of[key] for key in (*train, *validation)} == {name}
        assert one.short == 0
    for small, large in itertools.pairwise(draws):
        assert all(large.train[name][: small.shots] == keys for name, keys in small.train.items())


def test_other_classes_change_nothing():
    cats = [key for key, label in zip(KEYS, LABEL) if label == "cat"]
    alone = draw(["cat"] * len(cats), cats, shots=(4,), seeds=(1,)).draws[0].train["cat"]
    assert alone == draw(LABEL, KEYS, shots=(4,), seeds=(1,)).draws[0].train["cat"]


def test_small_classes_give_what_they_have_and_are_counted():
    one = draw([*LABEL, "rare", "rare"], [*KEYS, "a", "b"], shots=(4,), seeds=(1,)).draws[0]
    assert set(one.train["rare"]) == {"a", "b"}
    assert one.validation["rare"] == ()
    assert one.short == 1


def test_validation_data_of_their_own_leave_train_alone():
    other = ["v1", "v2", "v3"]
    one = draw(LABEL, KEYS, shots=(2,), seeds=(1,), validation=(["cat"] * 3, other)).draws[0]
    assert set(one.validation) == {"cat"}
    assert set(one.validation["cat"]) < set(other)
    assert len(one.validation["cat"]) == 2


def test_held_out_is_stratified_and_never_takes_a_class_whole():
    label, keys = [*LABEL, "rare", "one", "one"], [*KEYS, "a", "b", "c"]
    held = held_out(label, keys, fraction=0.25, seed=0)
    of = dict(zip(keys, label))
    counts = {name: sum(of[key] == name for key in held) for name in set(label)}
    assert counts == {"cat": 3, "dog": 3, "owl": 3, "rare": 0, "one": 1}
    assert held == held_out(label[::-1], keys[::-1], fraction=0.25, seed=0)
    assert held != held_out(label, keys, fraction=0.25, seed=1)
    assert len(held_out(label, keys, fraction=0.99, seed=0)) == 33 + 1


def test_a_file_gives_the_same_draws_and_rows(tmp_path):
    draws = draw(LABEL, KEYS, shots=(2,), seeds=(1,))
    path = tmp_path / "draws.json"
    path.write_text(json.dumps(draws.model_dump(mode="json", by_alias=True)))
    assert read_draws(path) == draws
    rows = rows_of(draws.draws[0].train, LABEL, KEYS)
    assert [LABEL[row] for row in rows] == ["cat", "cat", "dog", "dog", "owl", "owl"]
    assert [KEYS[row] for row in rows[:2]] == list(draws.draws[0].train["cat"])


def test_a_wrong_file_or_picture_says_what_is_wrong(tmp_path):
    path = tmp_path / "draws.json"
    path.write_text('{"schema": 1, "draws": [{"seed": 1, "shots": 0, "train": {}}]}')
    with pytest.raises(ValueError, match=r"draws\.json: not a file of draws.*draws\.0\.shots"):
        read_draws(path)
    with pytest.raises(ValueError, match='class "cat": picture "gone" of the draw is not in the data'):
        rows_of({"cat": ("gone",)}, LABEL, KEYS)
    with pytest.raises(ValueError, match='class "dog": picture "p000" of the draw is of class "cat" here'):
        rows_of({"dog": ("p000",)}, LABEL, KEYS)
