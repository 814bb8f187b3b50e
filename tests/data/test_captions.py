from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from vlp.data.captions import Captions
from vlp.data.fields import Fields
from vlp.text.captions import sentences
from vlp.types import BadSampleError, Sample

LONG = {
    "caption": "Raw one. Raw two.",
    "short": {"a": "short a", "b": "short b"},
    "long": ["L1. L2. L3.", "M1. M2."],
    "txt": 3,
}


def fields(record: Any, **members: bytes) -> Fields:
    return Fields(Sample("k", {"json": json.dumps(record).encode(), **members}, "s.tar", 0))


def draw(captions: Captions, record: Any = LONG, seed: int | None = 0) -> list[str]:
    return captions.draw(fields(record), None if seed is None else np.random.default_rng(seed)).texts


def subcaptions(**settings: Any) -> Captions:
    given = {"fields": ("caption",), "pool": ("short", "long", "absent"), "count": 4}
    return Captions.model_validate({"pick": "subcaptions", **given, **settings})


def test_the_first_is_the_raw_caption_and_the_others_are_pieces_of_all_fields() -> None:
    pool = {"short a", "short b", "L1.", "L2.", "L3.", "M1.", "M2."}
    drawn = [draw(subcaptions(), seed=seed) for seed in range(300)]
    assert all(captions[0] == "Raw one. Raw two." and len(set(captions)) == 4 for captions in drawn)
    counts = Counter((place, text) for captions in drawn for place, text in enumerate(captions[1:]))
    assert {text for _, text in counts} == pool
    assert all(18 < counts[place, text] < 75 for place in range(3) for text in pool), "any piece in any place"
    assert draw(subcaptions(), seed=7) == drawn[7]
    assert draw(subcaptions(), seed=None) == ["Raw one. Raw two.", "short a", "short b", "L1."]


def test_default_pool_is_the_fields_and_unlike_them_all_that_exist() -> None:
    captions = Captions(pick="subcaptions", fields=("long", "caption"), count=9, replace="never", first="piece")
    assert set(draw(captions)) == {"L1.", "L2.", "L3.", "M1.", "M2.", "Raw one.", "Raw two."}
    assert draw(captions.model_copy(update={"first": "raw"}))[0] == "L1. L2. L3."


def test_short_pools() -> None:
    record = {"caption": "raw", "long": "only one."}
    assert draw(subcaptions(pool=("long",)), record) == ["raw"] + ["only one."] * 3
    assert draw(subcaptions(pool=("long",), replace="never"), record) == ["raw", "only one."]
    assert draw(subcaptions(pool=("long",)), record, seed=None) == ["raw", "only one."]
    assert draw(subcaptions(pool=("absent",)), record) == ["raw"]
    assert draw(subcaptions(pool=("absent",), first="piece"), record) == ["raw"]
    assert draw(subcaptions(pool=("caption",), count=1), record) == ["raw"]
    with pytest.raises(BadSampleError, match="no_caption"):
        draw(subcaptions(), {"long": "a piece."})


def test_merged_pieces_follow_each_other_in_one_text() -> None:
    found = {text for seed in range(60) for text in draw(subcaptions(merge=2), seed=seed)[1:]}
    assert found == {"short a", "short b", "L1. L2.", "L2. L3.", "M1. M2."}
    assert draw(subcaptions(merge=2, joint=" | ", pool=("long",)), seed=None)[1:] == [
        "L1. | L2.",
        "L2. | L3.",
        "M1. | M2.",
    ]
    mixed = subcaptions(merge=3, merge_how="mixed", first="piece", count=8)
    drawn = [text for seed in range(60) for text in draw(mixed, seed=seed)]
    assert len(drawn) == 480
    assert {"L1. L2. L3.", "L2.", "L1. L2."} <= set(drawn)
    assert any("short" in text and "L" in text for text in drawn), "any pieces together"
    assert max(len(sentences(text.replace("short a", "S.").replace("short b", "S."))) for text in drawn) == 3


def test_lead_texts_stand_before_every_caption() -> None:
    """Records of shops: title alone, title and one sentence, all of it."""
    shop = {"title": "Blue shirt", "description": "Cotton. Washable.", "bullets": ["S to L", "Made in Porto"]}
    assert draw(Captions(fields=("title",)), shop) == ["Blue shirt"]
    one = Captions(fields=("description", "title"), lead=("title",), pick="sentences")
    assert {draw(one, shop, seed)[0] for seed in range(20)} == {"Blue shirt Cotton.", "Blue shirt Washable."}
    assert draw(one, {"title": "Blue shirt"}) == ["Blue shirt"], "not twice"
    assert draw(one, {"description": "Cotton."}) == ["Cotton."]
    everything = Captions(fields=("description",), lead=("title", "bullets"), joint=", ")
    assert draw(everything, shop) == ["Blue shirt, S to L, Made in Porto, Cotton. Washable."]
    assert everything.texts(fields(shop)) == draw(everything, shop)


def test_places_of_the_captions_in_their_field() -> None:
    record = {"captions": ["a", " ", 3, "b", "c"]}
    captions = Captions(fields=("captions",), pick="random", count=2)
    for seed in range(10):
        drawn = captions.draw(fields(record), np.random.default_rng(seed))
        assert drawn.of == 5
        assert [record["captions"][row] for row in drawn.rows] == drawn.texts
        assert drawn.notes == ("caption_not_text",)


def false_texts(captions: Captions, record: Any, seed: int | None = 0) -> list[str]:
    rng = None if seed is None else np.random.default_rng(seed)
    said = fields(record)
    return captions.false_texts(said, captions.draw(said, None).texts, rng)


def test_negatives_from_fields_and_by_rule() -> None:
    record = {
        "caption": "a red cat on a blue mat",
        "hard_negatives": ["n1", "n2", "a red cat on a blue mat", "n1", "n3"],
    }
    stored = Captions(negatives=2, negative_fields=("hard_negatives",))
    drawn = [false_texts(stored, record, seed) for seed in range(60)]
    assert {text for texts in drawn for text in texts} == {"n1", "n2", "n3"}
    assert all(len(set(texts)) == 2 for texts in drawn)
    assert false_texts(stored, record, None) == ["n1", "n2"]
    assert false_texts(stored, {"caption": "x"}) == []
    swap = Captions(negatives=9, negative_rule="swap")
    assert set(false_texts(swap, record)) == {"a blue cat on a red mat", "a red mat on a blue cat"}
    both = Captions(negatives=4, negative_fields=("hard_negatives",), negative_rule="swap")
    texts = false_texts(both, record)
    assert set(texts[:3]) == {"n1", "n2", "n3"}
    assert texts[3] in {"a blue cat on a red mat", "a red mat on a blue cat"}


def test_stored_negatives_are_led_like_captions() -> None:
    record = {"title": "Zoo", "caption": "a cat", "wrong": ["a dog", "Zoo"]}
    captions = Captions(lead=("title",), joint=": ", negatives=2, negative_fields=("wrong",))
    assert draw(captions, record) == ["Zoo: a cat"]
    assert false_texts(captions, record, None) == ["Zoo: a dog", "Zoo"]


def test_no_true_caption_is_served_as_a_false_one() -> None:
    """Not those that were not drawn, nor those of other fields, of the pool, or their sentences; nor by a swap."""
    record = {
        "captions": ["a cat on a mat", "a red mat. It is new.", "a mat on a cat"],
        "more": ["said elsewhere"],
        "long": ["One. Two."],
        "wrong": ["a red mat. It is new.", "It is new.", "said elsewhere", "Two.", "a dog", "One. Two."],
    }
    settings = {"fields": ("captions", "more"), "pick": "subcaptions", "pool": ("long",), "negatives": 6}
    stored = Captions(negative_fields=("wrong",), negative_rule="swap", **settings)
    assert false_texts(stored, record, None) == ["a dog"]
    assert false_texts(stored, {**record, "captions": ["a cat on a mat"]}, None) == [
        "a red mat. It is new.",
        "It is new.",
        "a dog",
        "a mat on a cat",
    ]
    led = Captions(fields=("captions",), lead=("more",), negatives=9, negative_rule="swap")
    assert "said elsewhere a mat on a cat" not in false_texts(led, record)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"merge": 2}, "merge: only with pick: subcaptions"),
        ({"pick": "sentences", "pool": ["a"], "first": "piece"}, "pool, first: only with"),
        ({"pick": "subcaptions", "merge_how": "mixed", "replace": "never"}, "each caption by itself"),
        ({"count": 2}, "count: 2, but pick: first takes one text"),
        ({"negatives": 1}, "set negative_fields, negative_rule"),
        ({"negative_rule": "swap"}, "set negatives"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Captions.model_validate(settings)


def test_a_dumped_part_is_the_same_part() -> None:
    for part in (Captions(), subcaptions(merge=2), Captions(negatives=1, negative_rule="swap")):
        assert Captions.model_validate(part.model_dump(mode="json")) == part
        assert hash(part) == hash(part.model_copy())
