"""Directions between two sets of pictures: against the formula, as a classifier, and in words."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from tests.adapters.blobs import ENCODER, accuracy, blobs
from tests.eval.colours import ColourDual
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.concept import Concept, concept_direction, nearest_words
from vlp.adapters.task import Examples, Task
from vlp.embed import Encoder


def test_the_direction_is_the_unit_difference_of_the_means():
    task, _ = blobs(classes=2)
    negative, positive = (task.support.image[task.support.known == label] for label in (0, 1))
    total = [sum(float(row[place]) for row in positive) / 6 - sum(float(row[place]) for row in negative) / 6
             for place in range(12)]  # fmt: skip
    length = sum(value**2 for value in total) ** 0.5
    found = concept_direction(positive, negative)
    assert found.tolist() == pytest.approx([value / length for value in total])
    assert float(found.norm()) == pytest.approx(1)
    torch.testing.assert_close(concept_direction(negative, positive), -found)
    with pytest.raises(ValueError, match="pictures on both sides, got 0 and 6"):
        concept_direction(positive[:0], negative)
    with pytest.raises(ValueError, match="the same mean"):
        concept_direction(positive, positive.flip(0))


def test_two_classes_are_parted_half_way_between_their_projections(tmp_path):
    task, held = blobs(classes=2, counts=(3, 9), held=30)
    classifier = Concept().fit(ENCODER, task)
    negative, positive = (task.support.image[task.support.known == label].double() for label in (0, 1))
    direction = concept_direction(positive, negative)
    low, high = float((negative @ direction).mean()), float((positive @ direction).mean())
    logits = classifier(held.image).double()
    want = 20 * (held.image.double() @ direction - (low + high) / 2)
    torch.testing.assert_close(logits[:, 1] - logits[:, 0], want, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits.sum(dim=1), torch.zeros(60, dtype=torch.float64), atol=1e-4, rtol=0)
    assert classifier.about["level"] == {"class 0": pytest.approx(low), "class 1": pytest.approx(high)}
    assert accuracy(classifier, held) > 0.9
    classifier.save(tmp_path)
    assert torch.equal(LinearClassifier.load(tmp_path)(held.image), classifier(held.image))


def test_words_say_what_the_pictures_differ_in(tmp_path):
    encoder = Encoder(ColourDual(), quiet=True)
    colours = normalize(torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.1, 0.1], [0.0, 0.0, 1.0], [0.1, 0.1, 0.9]]), dim=1)
    task = Task(("warm", "cold"), support=Examples(colours, torch.tensor([0, 0, 1, 1])))
    words = ("red", "green", "blue", "white")
    found = Concept(words=words, count=1).fit(encoder, task).about["words"]
    assert [word for word, _ in found["warm"]] == ["red"]
    assert [word for word, _ in found["cold"]] == ["blue"]
    direction = concept_direction(colours[2:], colours[:2])
    along = {word: float(encoder.texts([word])[0].double() @ direction) for word in words}
    for word, value in nearest_words(encoder, direction, words):
        assert value == pytest.approx(along[word] - sum(along.values()) / 4, abs=1e-6)
    file = tmp_path / "words.txt"
    file.write_text("\n".join(words) + "\n")
    assert Concept(words=str(file), count=1).fit(encoder, task).about["words"] == found
    with pytest.raises(ValueError, match='words:3: class name "red" stands already on line 1'):
        Concept(words=("red", "green", "red")).fit(encoder, task)
    with pytest.raises(ValueError, match="stored features have no text tower"):
        Concept(words=words).fit(ENCODER, task)


def test_other_numbers_of_classes_are_refused():
    task, _ = blobs()
    with pytest.raises(ValueError, match="tells two classes apart, and the task has 4"):
        Concept().fit(ENCODER, task)
    two, _ = blobs(classes=2)
    with pytest.raises(ValueError, match="1 of 2 have none: class 1"):
        Concept().fit(ENCODER, replace(two, support=two.support.only([0, 1])))
