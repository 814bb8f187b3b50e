"""Captions are true of the scene and hard negatives false, judged by a reader that knows only words and coordinates."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest

from data_tools.scenes import words
from data_tools.scenes.facts import Scene, Thing
from data_tools.scenes.tool import Scenes


def _reverse(table: dict[str, tuple[str, ...]]) -> dict[str, str]:
    return {spoken: name for name, spellings in table.items() for spoken in spellings}


SHAPE, COLOR, SIZE, TEXTURE = map(
    _reverse, (words.SHAPE_WORDS, words.COLOR_WORDS, words.SIZE_WORDS, words.TEXTURE_WORDS)
)
RELATION, PLACE, GROUND, STYLE = map(
    _reverse, (words.RELATION_WORDS, words.PLACE_WORDS, words.GROUND_WORDS, words.STYLE_WORDS)
)


def _any(options: dict[str, str]) -> str:
    return "|".join(sorted(map(re.escape, options), key=len, reverse=True))


NOUN = (
    rf"\b(?:(?:an?|the) )(?:(?P<s>{_any(SIZE)}) )?(?:(?P<t>{_any(TEXTURE)}) )?"
    rf"(?P<c>{_any(COLOR)}) (?P<h>{_any(SHAPE)})\b"
)


class Said(NamedTuple):
    things: list[dict[str, str | None]]
    between: list[str]  # text after each thing, up to the next


def parse(text: str) -> Said:
    """Every noun phrase, and the words after it."""
    found = list(re.finditer(NOUN, text, re.IGNORECASE))
    ends = [*(match.start() for match in found[1:]), len(text)]
    things = [
        {
            "size": SIZE.get((m["s"] or "").lower()),
            "texture": TEXTURE.get((m["t"] or "").lower()),
            "color": COLOR[m["c"].lower()],
            "shape": SHAPE[m["h"].lower()],
        }
        for m in found
    ]
    return Said(things, [text[m.end() : end] for m, end in zip(found, ends)])


def fits(said: dict[str, str | None], thing: Thing) -> bool:
    return all(value is None or getattr(thing, name) == value for name, value in said.items())


def true_relation(word: str, a: Thing, b: Thing) -> bool:
    dx, dy = a.x - b.x, a.y - b.y
    if word in ("inside", "around"):
        inner, outer = (a, b) if word == "inside" else (b, a)
        return abs(dx) + abs(dy) < 0.06 and inner.radius < outer.radius
    checks = {"left": dx < -0.02, "right": dx > 0.02, "above": dy < -0.02, "below": dy > 0.02}
    return all(checks[part] for part in word.split())


def relation_in(text: str) -> str | None:
    """The relation a stretch of text between two things begins with."""
    match = re.match(rf" (?:is |lies )?({_any(RELATION)}) $", text)
    return RELATION[match[1]] if match else None


def true(text: str, scene: Scene) -> bool:
    """Every thing named is there, and every relation between two that follow each other holds of some such pair."""
    said = parse(text)
    assert said.things, text
    for thing in said.things:
        if not any(fits(thing, real) for real in scene.things):
            return False
    for first, second, text_between in zip(said.things, said.things[1:], said.between):
        word = relation_in(text_between)
        if word is not None:
            pairs = [
                (a, b) for a in scene.things for b in scene.things if fits(first, a) and fits(second, b) and a != b
            ]
            if not any(true_relation(word, a, b) for a, b in pairs):
                return False
    return True


def places_true(text: str, scene: Scene) -> bool:
    """Each "at the top left" after a thing is where that thing is."""
    said = parse(text)
    for thing, after in zip(said.things, said.between):
        match = re.match(rf" (?:is )?({_any(PLACE)})\b", after)
        if match:
            word = PLACE[match[1]]
            real = next(r for r in scene.things if fits(thing, r))
            x = "left" if real.x < 0.4 else "right" if real.x > 0.6 else ""
            y = "top" if real.y < 0.4 else "bottom" if real.y > 0.6 else ""
            if (f"{y} {x}".strip() or "center") != word:
                return False
    return True


def draws(count: int, **settings: object) -> list[tuple[Scene, object]]:
    scenes = Scenes(count=count, **settings)
    return [scenes.scene(index) for index in range(count)]


@pytest.mark.parametrize("variant", ["captions", "labelled"])
def test_every_caption_is_true(variant):
    relations = 0
    for scene, texts in draws(400, variant=variant, seed=5):
        for caption in texts.captions:
            assert true(caption, scene), (caption, scene)
            assert places_true(caption, scene), (caption, scene)
            relations += sum(relation_in(text) is not None for text in parse(caption).between)
    assert relations > 800


def test_hard_negatives_are_false_and_close():
    kinds: dict[str, int] = {}
    for scene, texts in draws(400, seed=6):
        assert len(texts.hard_negatives) == len(texts.negative_kinds) >= 2
        for kind, text in zip(texts.negative_kinds, texts.hard_negatives):
            kinds[kind] = kinds.get(kind, 0) + 1
            assert not true(text, scene), (kind, text, scene)
            assert len(parse(text).things) == min(2, len(scene.things))
    assert set(kinds) == {"color_swap", "relation", "color", "shape"}
    assert min(kinds.values()) > 200


def test_the_reader_itself_tells_true_from_false():
    star = Thing("star", "red", "small", "solid", 0.2, 0.5, 0.1, 0.0)
    ring = Thing("ring", "blue", "large", "striped", 0.8, 0.5, 0.2, 0.0)
    scene = Scene((star, ring), "white", "flat")
    assert true("a small red star left of a striped blue hoop", scene)
    assert not true("a small red star right of a blue ring", scene)
    assert not true("a blue star left of a red ring", scene)
    assert not true("a large red star", scene)
    assert not true("a dotted blue ring", scene)


def test_the_caption_names_everything_and_long_ones_say_more():
    for scene, texts in draws(300, seed=7):
        assert len(parse(texts.caption).things) == len(scene.things)
        assert texts.caption in texts.captions
        assert any(ground in texts.caption for ground in words.GROUND_WORDS[scene.background])
        assert len(texts.caption.split()) <= 48
        assert len(texts.captions[0].split()) <= len(texts.captions[-1].split())
        assert texts.captions[-1].count(".") >= 2
        assert any(style in texts.captions[-1].lower() for style in words.STYLE_WORDS[scene.style])


def test_larger_than_is_true():
    found = 0
    for scene, texts in draws(200, seed=8):
        for bigger, smaller in re.findall(
            r"The (\w+ \w+) is (?:larger|bigger) than the (\w+ \w+)\.", texts.captions[-1]
        ):
            radius = {" ".join(thing.name): thing.radius for thing in scene.things}
            assert radius[bigger] > radius[smaller]
            found += 1
    assert found > 50
