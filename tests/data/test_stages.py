from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.data.test_decode import encoded, photo
from vlp.data.augment import Augment
from vlp.data.captions import Captions
from vlp.data.decode import Limits
from vlp.data.fields import Fields
from vlp.data.labels import Labels
from vlp.data.stages import Item, drafted
from vlp.data.transforms import Preprocess
from vlp.types import BadSampleError, Sample

PICTURE = encoded(photo(40, 30))
PREPROCESS = Preprocess(size=32)


def prepare(one: Sample, **settings: Any) -> Item:
    return drafted(one, **settings).finished()


def sample(record: Any = None, **members: bytes) -> Sample:
    if record is not None:
        members["json"] = json.dumps(record).encode()
    return Sample(key="k1", members={"jpg": PICTURE, **members}, shard="s.tar", index=0)


def texts(captions: Captions, record: Any = None, **members: bytes) -> list[str]:
    return captions.texts(Fields(sample(record, **members)))


def reason(captions: Captions, record: Any = None, **members: bytes) -> str:
    with pytest.raises(BadSampleError) as error:
        texts(captions, record, **members)
    return error.value.reason


def test_fields_in_order_with_fallbacks() -> None:
    record = {"caption": " a cat ", "es": {"caption": "un gato"}, "captions": ["one", "", "two", None, 3]}
    assert texts(Captions(), record, txt=b"from txt") == ["a cat"]
    assert texts(Captions(fields=("txt", "caption")), record, txt=b"from txt\n") == ["from txt"]
    assert texts(Captions(fields=("es.caption", "caption")), record) == ["un gato"]
    assert texts(Captions(fields=("pl.caption", "caption")), record) == ["a cat"]
    assert texts(Captions(fields=("captions",)), record) == ["one", "two"]
    assert texts(Captions(fields=("json:caption",)), record, caption=b"member") == ["a cat"]
    assert texts(Captions(fields=("caption",)), record, caption=b"member") == ["member"]
    assert texts(Captions(), {"caption": "  ", "captions": ["x"]}) == ["x"]  # blank: the next field
    assert texts(Captions(fields=("txt",)), txt=b"\xef\xbb\xbfwith mark") == ["with mark"]


def test_items_of_a_list_that_are_no_texts_are_noted() -> None:
    def notes(record: Any) -> tuple[str, ...]:
        item = prepare(sample(record), captions=Captions(), preprocess=PREPROCESS, limits=Limits(max_caption_bytes=16))
        return item.notes

    assert notes({"captions": ["one", None, 3]}) == ("caption_not_text",)
    assert notes({"caption": [1], "captions": ["a sixteen and more"]}) == ("caption_not_text", "caption_cut")
    assert notes({"captions": {"en": "a cat", "words": 2}}) == ("caption_not_text",)
    assert notes({"captions": ["one", ""], "caption": 3}) == ()


def test_languages() -> None:
    record = {"texts": {"en": "a cat", "zh": "一只猫"}}
    assert texts(Captions(fields=("texts",)), record) == ["a cat", "一只猫"]
    assert texts(Captions(fields=("texts",), language="zh"), record) == ["一只猫"]
    assert texts(Captions(fields=("texts.zh",)), record) == ["一只猫"]
    assert reason(Captions(fields=("texts",), language="fr"), record) == "no_caption"


def test_reasons() -> None:
    assert reason(Captions()) == "no_caption"
    assert reason(Captions(), {"caption": None}) == "no_caption"
    assert reason(Captions(), {"caption": float("nan")}) == "no_caption"
    assert reason(Captions(), ["caption"]) == "no_caption"
    assert reason(Captions(), {"caption": ""}) == "empty_caption"
    assert reason(Captions(), {"captions": [" ", "\u200b"]}) == "empty_caption"
    assert reason(Captions(), txt=b" \x00\n") == "empty_caption"
    assert reason(Captions(), txt=b"\xff\xfe") == "bad_encoding"
    assert reason(Captions(), json=b'{"caption": "\xff"}') == "bad_encoding"
    assert reason(Captions(), json=b'{"caption": ') == "bad_json"
    assert reason(Captions(), json=b"[" * 100_000) == "bad_json"
    assert texts(Captions(encoding_errors="replace"), txt=b"a\xffb") == ["a\ufffdb"]


def test_picks() -> None:
    five = ["a.", "b.", "c. d.", "e.", "f."]
    rng = np.random.default_rng(0)
    assert Captions(pick="first").choose(five, rng) == ["a."]
    assert Captions(pick="all", count=3).choose(five, rng) == ["a.", "b.", "c. d."]
    assert Captions(pick="all", count=9).choose(five, rng) == five
    assert Captions(pick="random", count=2).choose(five, None) == ["a.", "b."]
    assert Captions(pick="sentences", count=9).choose(["One. Two.", "Three."], rng) == ["One.", "Two.", "Three."]
    drawn = [tuple(Captions(pick="random", count=2).choose(five, np.random.default_rng(seed))) for seed in range(400)]
    assert all(sorted(pair, key=five.index) == list(pair) and len(set(pair)) == 2 for pair in drawn)
    counts = Counter(text for pair in drawn for text in pair)
    assert all(110 < counts[text] < 210 for text in five)  # 160 expected, 4.9 standard deviations
    first = Captions(pick="random").choose(five, np.random.default_rng(3))
    assert first == Captions(pick="random").choose(five, np.random.default_rng(3))


def label(labels: Labels, record: Any = None, **members: bytes) -> int:
    return labels.index(Fields(sample(record, **members)))


def test_labels_as_index_and_as_name(tmp_path: Path) -> None:
    names = ("cat", "hot dog", "7up")
    assert label(Labels(classes=names), cls=b" 2\n") == 2
    assert label(Labels(field="class", classes=names), {"class": "hot dog"}) == 1
    assert label(Labels(field="a.b", classes=names), {"a": {"b": 0}}) == 0
    assert label(Labels(field="label"), {"label": 9}) == 9  # no names: any index
    (tmp_path / "names.json").write_text(json.dumps({"names": names}))
    assert label(Labels(field="class", classes=str(tmp_path / "names.json")), {"class": "7up"}) == 2
    for bad, expected in (
        ({"class": "dog"}, "bad_label"),
        ({"class": 3}, "bad_label"),
        ({"class": -1}, "bad_label"),
        ({"class": True}, "bad_label"),
        ({"class": 1.0}, "bad_label"),
        ({"class": "²"}, "bad_label"),
        ({"class": None}, "no_label"),
        ({"class": " "}, "no_label"),
        ({}, "no_label"),
    ):
        with pytest.raises(BadSampleError) as error:
            label(Labels(field="class", classes=names), bad)
        assert error.value.reason == expected
    with pytest.raises(BadSampleError, match='did you mean "hot dog"'):
        label(Labels(field="class", classes=names), {"class": "hotdog"})


def test_captions_from_class_names() -> None:
    labels = Labels(classes=("cat", "{0.x}"), templates=("a {}.", "the {c}!"))
    assert labels.texts(1, None) == ["a {0.x}."]
    drawn = {labels.texts(0, np.random.default_rng(seed))[0] for seed in range(20)}
    assert drawn == {"a cat.", "the cat!"}
    item = prepare(sample(cls=b"0"), captions=None, labels=labels, preprocess=PREPROCESS)
    assert item.label == 0
    assert item.captions == ["a cat."]
    with pytest.raises(ValueError, match=r"labels\.classes"):
        Labels().texts(0, None)
    with pytest.raises(ValidationError, match="no slot"):
        Labels(templates=("a photo",))
    with pytest.raises(ValidationError, match='did you mean "simple"'):
        Labels(templates="simpel")


def test_prepare_gives_picture_captions_and_label() -> None:
    record = {"caption": "a cat", "class": 1}
    item = prepare(sample(record), captions=Captions(), labels=Labels(field="class"), preprocess=PREPROCESS)
    assert torch.equal(item.image, PREPROCESS(PICTURE))
    assert (item.captions, item.label, item.key, item.notes, item.extra) == (["a cat"], 1, "k1", (), {})
    augmented = prepare(
        sample(record), captions=Captions(), preprocess=PREPROCESS, augment=Augment(), rng=np.random.default_rng(0)
    )
    assert augmented.label is None
    assert not torch.equal(augmented.image, item.image)


def test_prepare_refuses() -> None:
    def of(bad: Sample, **options: Any) -> str:
        with pytest.raises(BadSampleError) as error:
            prepare(bad, captions=Captions(), preprocess=PREPROCESS, **options)
        return error.value.reason

    assert of(Sample("k", {"txt": b"x"}, "s", 0)) == "no_image"
    assert of(sample(txt=b"x", jpg=PICTURE[:-9])) == "truncated_image"
    assert of(sample(txt=b"x"), limits=Limits(min_side=31)) == "too_small"
    with pytest.raises(ValueError, match="augment needs the generator"):
        prepare(sample(txt=b"x"), captions=Captions(), preprocess=PREPROCESS, augment=Augment())
    with pytest.raises(ValueError, match="needs `captions`, `labels`"):
        prepare(sample(txt=b"x"), captions=None, preprocess=PREPROCESS)


def test_long_captions_are_cut_and_noted() -> None:
    item = prepare(
        sample(txt="é".encode() * 20), captions=Captions(), preprocess=PREPROCESS, limits=Limits(max_caption_bytes=17)
    )
    assert item.captions == ["é" * 8]
    assert item.notes == ("caption_cut",)
