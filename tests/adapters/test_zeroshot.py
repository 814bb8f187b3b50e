"""Prompt ensembles against a loop, and classifiers through a file."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from tests.eval.colours import ColourDual
from vlp.adapters import ADAPTERS
from vlp.adapters.classifier import LinearClassifier
from vlp.adapters.task import Task
from vlp.adapters.zeroshot import ZeroShot
from vlp.embed import Encoder

TASK = Task(("red", "green", "blue"), ("{}", "red {} blue", "a {c}."))


def test_weights_equal_the_loop_over_classes_and_templates():
    encoder = Encoder(ColourDual())
    classifier = ADAPTERS.build("zeroshot").fit(encoder, TASK)
    for row, name in enumerate(TASK.names):
        features = [encoder.texts([t.replace("{c}", name).replace("{}", name)])[0] for t in TASK.templates]
        want = normalize(torch.stack(features).mean(0), dim=0)
        assert torch.allclose(classifier.weight[row], want, atol=1e-6)
    image = normalize(torch.randn(4, 3), dim=1)
    assert torch.allclose(classifier(image), 10 * image @ classifier.weight.T, atol=1e-5)
    assert (classifier.needs, classifier.names) == ("features", TASK.names)


def test_all_prompts_go_through_the_tower_together_and_equal_ones_once():
    dual = ColourDual()
    ZeroShot().fit(Encoder(dual, batch_size=64), Task(("red", "green"), ("{}", "{}", "no slot")))
    assert [shape[0] for _, shape in dual.calls] == [3]


def test_a_classifier_survives_its_file(tmp_path):
    made = ZeroShot().fit(Encoder(ColourDual()), TASK)
    made.save(tmp_path / "c")
    back = LinearClassifier.load(tmp_path / "c")
    image = normalize(torch.randn(4, 3), dim=1)
    assert torch.equal(made(image), back(image))
    assert (back.names, back.about) == (made.names, made.about)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["classifier.json", "classifier.safetensors"]
    with pytest.raises(ValueError, match="holds no classifier"):
        LinearClassifier.load(tmp_path)


def test_tasks_and_classifiers_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="at least 2"):
        Task(("red",))
    with pytest.raises(ValueError, match="at least one template"):
        Task(("red", "blue"), ())
    with pytest.raises(ValueError, match="3 rows"):
        LinearClassifier(torch.zeros(3, 2), names=("a", "b"))
