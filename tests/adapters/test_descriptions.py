"""Descriptions against loops over classes and sentences; what is missing is named."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.functional import normalize

from tests.eval.colours import ColourDual
from vlp.adapters.descriptions import Descriptions, fill_phrase
from vlp.adapters.task import Task
from vlp.adapters.zeroshot import ZeroShot
from vlp.embed import Encoder

TASK = Task(("red", "green", "blue"), ("{}", "a {c} white."))
SENTENCES = {"red": ["red", "red yellow", "red white white"], "green": ["green white"], "blue": ["blue", "blue white"]}


@pytest.fixture
def file(tmp_path):
    (tmp_path / "sentences.json").write_text(json.dumps({**SENTENCES, "pink": ["red white"]}))
    return str(tmp_path / "sentences.json")


@pytest.mark.parametrize("how", ["features", "scores"])
def test_weights_equal_the_loop_over_classes_and_sentences(file, how):
    encoder = Encoder(ColourDual())
    classifier = Descriptions(file=file, how=how).fit(encoder, TASK)
    image = normalize(torch.rand(5, 3), dim=1)
    for row, name in enumerate(TASK.names):
        features = [encoder.texts([sentence])[0] for sentence in SENTENCES[name]]
        if how == "features":
            want = encoder.scale * image @ normalize(torch.stack(features).mean(0), dim=0)
        else:
            want = sum(encoder.scale * image @ feature for feature in features) / len(features)
        torch.testing.assert_close(classifier(image)[:, row], want)
    assert (classifier.needs, classifier.names) == ("features", TASK.names)
    assert (classifier.about["prompts"], classifier.about["unused"]) == (6, 1)


def test_everything_goes_through_the_tower_at_once_and_inline_is_the_same(file):
    dual = ColourDual()
    read = Descriptions(file=file).fit(Encoder(dual, batch_size=64), TASK)
    assert [shape[0] for _, shape in dual.calls] == [6]
    inline = Descriptions(sentences=SENTENCES).fit(Encoder(ColourDual()), TASK)
    assert torch.equal(read.weight, inline.weight)


def test_a_phrase_wraps_and_templates_join():
    encoder = Encoder(ColourDual())
    wrapped = Descriptions(sentences={name: ["white"] for name in TASK.names}, phrase="a {name} {text}.")
    assert torch.equal(
        wrapped.fit(encoder, TASK).weight, ZeroShot().fit(encoder, Task(TASK.names, ("a {} white.",))).weight
    )
    joined = Descriptions(sentences=SENTENCES, templates=True).fit(encoder, TASK)
    prompts = [*SENTENCES["red"], "red", "a red white."]
    torch.testing.assert_close(joined.weight[0], normalize(encoder.texts(prompts).mean(0), dim=0))


def test_classes_without_a_sentence_are_named_or_stand_by_their_templates():
    encoder = Encoder(ColourDual())
    some = Descriptions(sentences={"red": ["red"], "Green": ["green"], "blue": []})
    with pytest.raises(ValueError, match=r'no sentence for 2 of 3 classes: "green"; did you mean "Green"\?, "blue"'):
        some.fit(encoder, TASK)
    classifier = some.model_copy(update={"missing": "template"}).fit(encoder, TASK)
    plain = ZeroShot().fit(encoder, TASK)
    torch.testing.assert_close(classifier.weight[1:], plain.weight[1:])
    assert not torch.allclose(classifier.weight[0], plain.weight[0])
    assert classifier.about["by_template_alone"] == ["green", "blue"]


def test_files_that_say_nothing_clear_are_refused(tmp_path):
    place = tmp_path / "s.json"
    for text, message in {
        '{"red": ["a"], "red": ["b"]}': '"red" stands there twice',
        '{"red": "a"}': '"red": wanted a list of sentences',
        '{"red": [" "]}': "none of them empty",
        '["a"]': "wanted a JSON object",
        "{": "s.json: Expecting",
    }.items():
        place.write_text(text)
        with pytest.raises(ValueError, match=message):
            Descriptions(file=str(place)).fit(Encoder(ColourDual()), TASK)
    with pytest.raises(ValueError, match=r'no file .*did you mean "s.json"'):
        Descriptions(file=str(tmp_path / "s.jsn")).fit(Encoder(ColourDual()), TASK)
    for wrong in ({}, {"file": "a", "sentences": {}}):
        with pytest.raises(ValueError, match="give either"):
            Descriptions(**wrong)


def test_phrases_are_filled_literally_and_checked():
    assert fill_phrase("{name}: {text}", {"name": "{text}", "text": "x"}) == "{text}: x"
    for phrase, message in {"x": "no slot {text}", "{text} {nam}": 'did you mean "name"', "{text} {": "braces"}.items():
        with pytest.raises(ValueError, match=message):
            Descriptions(sentences=SENTENCES, phrase=phrase)
