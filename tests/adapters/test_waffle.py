"""Random descriptors: seeded, the same for all classes, as many as descriptions have."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from tests.eval.colours import ColourDual
from vlp.adapters.descriptions import Descriptions
from vlp.adapters.task import Task
from vlp.adapters.waffle import WORDS, Waffle
from vlp.embed import Encoder

TASK = Task(("deep red", "light green", "blue"))


class Recorder(Encoder):
    """Keeps what it was asked to encode."""

    def texts(self, texts):
        self.asked = list(texts)
        return super().texts(texts)


def test_every_seed_of_a_task_draws_others():
    drawn = {seed: Waffle().descriptors(replace(TASK, seed=seed), 30) for seed in (0, 1, 2)}
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]
    assert Waffle(seed=1).descriptors(TASK, 30) != drawn[1]
    made = [Waffle().fit(Encoder(ColourDual()), replace(TASK, seed=seed)) for seed in (1, 2, 1)]
    assert [one.about["seed"] for one in made] == [1, 2, 1]
    assert made[0].about["prompts_hash"] == made[2].about["prompts_hash"] != made[1].about["prompts_hash"]


def test_descriptors_have_the_shape_of_the_names_and_depend_on_the_seed_alone():
    drawn = Waffle().descriptors(TASK, 30)
    words, characters = [text for _, text in drawn[::2]], [text for _, text in drawn[1::2]]
    cut = {word[:4] for word in WORDS}  # letters of a word of the names on average: ((4+3)/2 + (5+5)/2 + 4) / 3
    assert all(len(text.split()) == 2 and set(text.split()) <= cut for text in words)
    assert all(
        [len(part) for part in text.split(", ")] == [4, 4] and text.replace(", ", "").isalpha() for text in characters
    )
    assert {verb for verb, _ in drawn} == {"has", "is"}
    assert len(set(drawn)) == 30
    assert Waffle().descriptors(TASK, 30) == drawn
    assert Waffle().descriptors(TASK, 7) == drawn[:7]
    assert Waffle(seed=1).descriptors(TASK, 30) != drawn
    assert all(", " not in text for _, text in Waffle(kinds=("words",)).descriptors(TASK, 5))


@pytest.mark.parametrize("how", ["features", "scores"])
def test_every_class_gets_the_same_descriptors_and_weights_are_their_mean(how):
    encoder = Recorder(ColourDual())
    part = Waffle(draws=3, how=how)
    classifier = part.fit(encoder, TASK)
    want = [
        f"a photo of a {name}, which {verb} {text}." for name in TASK.names for verb, text in part.descriptors(TASK, 6)
    ]
    assert encoder.asked == want
    rows = encoder.texts(want).unflatten(0, (3, 6)).mean(dim=1)
    torch.testing.assert_close(classifier.weight, normalize(rows, dim=1) if how == "features" else rows)
    assert classifier.about["prompts"] == 18


def test_it_counts_as_the_descriptions_do(tmp_path):
    sentences = {"deep red": ["red", "red"], "light green": ["green"], "blue": ["blue"] * 5}
    (tmp_path / "s.json").write_text(json.dumps(sentences))
    encoder = Recorder(ColourDual())
    control = Waffle(like=str(tmp_path / "s.json")).fit(encoder, TASK)
    assert [sum(name in prompt for prompt in encoder.asked) for name in TASK.names] == [2, 1, 5]
    real = Descriptions(file=str(tmp_path / "s.json")).fit(encoder, TASK)
    assert control.about["prompts"] == real.about["prompts"] == 8
    (tmp_path / "s.json").write_text(json.dumps({"deep red": ["red"], "blue": ["b"]}))
    with pytest.raises(ValueError, match='no sentence for 1 of 3 classes: "light green"'):
        Waffle(like=str(tmp_path / "s.json")).fit(encoder, TASK)


def test_words_of_ones_own(tmp_path):
    (tmp_path / "words.txt").write_text("abcd\nabce\n")
    drawn = Waffle(words=str(tmp_path / "words.txt"), kinds=("words",)).descriptors(TASK, 8)
    assert {word for _, text in drawn for word in text.split()} == {"abcd", "abce"}
