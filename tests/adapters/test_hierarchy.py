"""Subclasses that vote for their class, against the paper's rule in loops; parents in prompts."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.functional import normalize

from tests.eval.colours import ColourDual
from vlp.adapters.hierarchy import Hierarchy, parent_paths, subclasses
from vlp.adapters.task import Task
from vlp.adapters.zeroshot import ZeroShot
from vlp.embed import Encoder

# "warm" and "cold" are words that the model does not know; their colours it does
PARENTS = {"red": "warm", "yellow": "warm", "green": ["cold"], "blue": "cold", "white": "cold/pale"}
TASK = Task(("warm", "cold"), ("a {}.", "{} yellow"))


def by_loops(encoder, image, *, reweight, below):
    names = [name for group in below for name in group]
    owner = [place for place, group in enumerate(below) for _ in group]
    sub = ZeroShot().fit(encoder, Task(names, TASK.templates))(image).double().softmax(dim=1)
    top = ZeroShot().fit(encoder, TASK)(image).double().softmax(dim=1)
    scores = torch.zeros(len(image), 2, dtype=torch.float64)
    for row in range(len(image)):
        for place, upper in enumerate(owner):
            value = sub[row, place] * (top[row, upper] if reweight else 1.0)
            scores[row, upper] = max(scores[row, upper], value)
    return scores


@pytest.mark.parametrize("reweight", [True, False])
@pytest.mark.parametrize("with_class", [True, False])
def test_the_best_subclass_decides(reweight, with_class):
    encoder = Encoder(ColourDual())
    image = normalize(torch.rand(20, 3), dim=1)
    classifier = Hierarchy(parents=PARENTS, reweight=reweight, with_class=with_class).fit(encoder, TASK)
    below = [["red", "yellow"], ["green", "blue", "white"]]
    if with_class:
        below = [[*group, name] for group, name in zip(below, TASK.names)]
    want = by_loops(encoder, image, reweight=reweight, below=below)
    torch.testing.assert_close(classifier(image).double().exp(), want, atol=1e-6, rtol=1e-4)
    assert (classifier.needs, classifier.names) == ("features", TASK.names)
    assert classifier.about["subclasses"] == (7 if with_class else 5)


def test_a_class_finds_pictures_that_its_name_does_not():
    encoder = Encoder(ColourDual())
    image = normalize(torch.eye(3), dim=1)  # red, green, blue
    found = Hierarchy(parents=PARENTS, reweight=False).fit(encoder, Task(("warm", "cold")))(image)
    assert found.argmax(dim=1).tolist() == [0, 1, 1]


def test_parents_stand_in_the_prompt():
    encoder = Encoder(ColourDual())
    tree = {"red": "white", "green": "yellow/blue"}
    task = Task(("red", "green"), ("a {}.",))
    named = Hierarchy(parents=tree, how="parents").fit(encoder, task)
    torch.testing.assert_close(named.weight, encoder.texts(["a red, a type of white.", "a green, a type of blue."]))
    assert named.names == task.names
    every = Hierarchy(parents=tree, how="parents", phrase="{name} ({parents})").fit(encoder, task)
    torch.testing.assert_close(every.weight, encoder.texts(["red (white)", "green (blue, yellow)"]))


def test_leaves_below_a_name():
    tree = parent_paths({**PARENTS, "pale": "cold"}, where="t")
    assert tree["white"] == ("cold", "pale")
    assert subclasses("cold", tree) == ["green", "blue", "white"]  # pale has something below it
    assert subclasses("pale", tree) == ["white"]
    assert subclasses("red", tree) == ["red"]
    assert subclasses("hot", tree) == []


def test_a_class_that_the_tree_does_not_know_is_named_or_stands_for_itself(tmp_path):
    encoder = Encoder(ColourDual())
    (tmp_path / "tree.json").write_text(json.dumps(PARENTS))
    file = str(tmp_path / "tree.json")
    task = Task(("warmer", "cold"))
    with pytest.raises(ValueError, match=r'no subclass for 1 of 2 classes: "warmer"; did you mean "warm"'):
        Hierarchy(file=file).fit(encoder, task)
    with pytest.raises(ValueError, match='no parent for 1 of 2 classes: "cold"'):
        Hierarchy(file=file, how="parents").fit(encoder, Task(("red", "cold")))
    assert Hierarchy(file=file, missing="itself").fit(encoder, task).owner.tolist() == [0, 1, 1, 1]
    alone = Hierarchy(file=file, how="parents", missing="itself").fit(encoder, Task(("red", "cold")))
    torch.testing.assert_close(alone.weight, encoder.texts(["red, a type of warm", "cold"]))
    for wrong in ({"red": 3}, {"red": ["warm", ""]}, {"red": "a//b"}):
        with pytest.raises(ValueError, match='"red".*is no path'):
            parent_paths(wrong, where="t")
    with pytest.raises(ValueError, match="give either"):
        Hierarchy()
    with pytest.raises(ValueError, match="no slot is called {parnt}"):
        Hierarchy(parents=PARENTS, phrase="{name} {parnt}")
