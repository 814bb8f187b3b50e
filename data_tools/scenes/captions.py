"""Captions that are true of a scene, from one relation to a paragraph, and hard negatives that are false of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from data_tools.scenes import vocabulary
from data_tools.scenes.facts import OPPOSITE, Claim, Phrase, Scene, Thing, holds, place, relation
from data_tools.scenes.words import (
    COLOR_WORDS,
    COUNT_WORDS,
    GROUND_WORDS,
    PLACE_WORDS,
    RELATION_WORDS,
    SHAPE_WORDS,
    SIZE_WORDS,
    STYLE_WORDS,
    TEXTURE_WORDS,
    article,
    pick,
    sentence,
)


class Texts(NamedTuple):
    """All that is said of one scene."""

    caption: str  # one full sentence: every thing, relations, background
    captions: list[str]  # short to long; `caption` is one of them
    hard_negatives: list[str]  # one word or relation away from a true short caption, and false
    negative_kinds: list[str]


def write_texts(scene: Scene, rng: random.Random) -> Texts:
    """Texts of a scene; the same generator state gives the same texts."""
    order = list(scene.things)
    rng.shuffle(order)
    if scene.label is not None:
        order = list(scene.things)
    full = _full(scene, order, rng)
    negatives = _negatives(scene, order, rng)
    captions = [*_shorts(scene, order, rng), full, _detailed(scene, order, rng), _paragraph(scene, order, rng)]
    return Texts(full, captions, [text for _, text in negatives], [kind for kind, _ in negatives])


# ---- noun phrases


def describe(thing: Thing, *, size: bool = True, texture: bool = True) -> Phrase:
    """What a caption says of a thing; a solid texture and a medium size go without saying."""
    return Phrase(
        thing.color,
        thing.shape,
        thing.size if size and thing.size != "medium" else None,
        thing.texture if texture and thing.texture != "solid" else None,
    )


def noun(phrase: Phrase, rng: random.Random) -> str:
    """The phrase in words, without an article: "small dotted red star"."""
    parts = [
        pick(rng, SIZE_WORDS[phrase.size]) if phrase.size else "",
        pick(rng, TEXTURE_WORDS[phrase.texture]) if phrase.texture else "",
        pick(rng, COLOR_WORDS[phrase.color]),
        pick(rng, SHAPE_WORDS[phrase.shape]),
    ]
    return " ".join(part for part in parts if part)


def _a(thing: Thing, rng: random.Random) -> str:
    return article(noun(describe(thing), rng))


def claim_text(claim: Claim, rng: random.Random) -> str:
    """A claim in words: "a red star left of a blue ring"."""
    first = article(noun(claim.first, rng))
    if claim.relation is None or claim.second is None:
        return first
    return f"{first} {pick(rng, RELATION_WORDS[claim.relation])} {article(noun(claim.second, rng))}"


def _relate(a: Thing, b: Thing, rng: random.Random) -> str:
    return pick(rng, RELATION_WORDS[relation(a, b)])


# ---- captions


def _shorts(scene: Scene, order: list[Thing], rng: random.Random) -> list[str]:
    """Two short captions: one relation between two things each, or one thing and where it is."""
    if len(order) == 1:
        thing, ground = order[0], pick(rng, GROUND_WORDS[scene.background])
        where = _where(thing, rng)
        return [_join(_a(thing, rng), ground), _join(_a(thing, rng), where, ground)]
    pairs = [rng.sample(order, 2) for _ in range(2)]
    if pairs[0] == pairs[1]:
        pairs[1] = pairs[1][::-1]
    return [claim_text(Claim(describe(a), relation(a, b), describe(b)), rng) for a, b in pairs]


def _full(scene: Scene, order: list[Thing], rng: random.Random) -> str:
    """One sentence with every thing, how they lie, the background and mostly the style."""
    ground = pick(rng, GROUND_WORDS[scene.background])
    first = _a(order[0], rng)
    if len(order) == 1:
        body = _join(first, _where(order[0], rng))
    else:
        body = f"{first} {_relate(order[0], order[1], rng)} {_a(order[1], rng)}"
    if len(order) == 3:
        body += f", and {_a(order[2], rng)} {_where(order[2], rng)}".rstrip()
    if len(order) == 4:
        body += f", and {_a(order[2], rng)} {_relate(order[2], order[3], rng)} {_a(order[3], rng)}"
    style = pick(rng, STYLE_WORDS[scene.style])
    form = rng.random()
    if form < 0.5:
        return f"{style} of {body}, {ground}"
    return f"{body}, {ground}, {style}" if form < 0.7 else f"{body}, {ground}"


def _where(thing: Thing, rng: random.Random) -> str:
    spot = place(thing)
    return pick(rng, PLACE_WORDS[spot]) if spot else ""


def _detailed(scene: Scene, order: list[Thing], rng: random.Random) -> str:
    """Two sentences: what there is, then how it lies."""
    style, ground = pick(rng, STYLE_WORDS[scene.style]), pick(rng, GROUND_WORDS[scene.background])
    first = sentence(f"{style} of {_list([_a(t, rng) for t in order])}, {ground}")
    facts = [f"the {_short(a)} is {_relate(a, b, rng)} the {_short(b)}" for a, b in pairwise(order)]
    facts = facts or [f"the {_short(order[0])} is {_where(order[0], rng) or _surface(order[0])}"]
    return f"{first} {sentence(_list(facts))}"


def _paragraph(scene: Scene, order: list[Thing], rng: random.Random) -> str:
    """Several sentences on every thing, every neighbouring pair, sizes, background and style."""
    style, ground = pick(rng, STYLE_WORDS[scene.style]), pick(rng, GROUND_WORDS[scene.background])
    number = COUNT_WORDS[len(order)] + (" shape" if len(order) == 1 else " shapes")
    lines = [rng.choice((f"this is {style} with {number} {ground}", f"{style} shows {number} {ground}"))]
    for thing in order:
        spot = _where(thing, rng)
        lines.append(
            rng.choice(("there is {0} {1}", "{0} can be seen {1}", "we see {0} {1}")).format(_a(thing, rng), spot)
        )
        if thing.texture != "solid":
            lines.append(f"the {_short(thing)} is {_surface(thing)}")
    for a, b in pairwise(order):
        lines.append(f"the {_short(a)} lies {_relate(a, b, rng)} the {_short(b)}")
        if a.size != b.size:
            bigger, smaller = (a, b) if a.radius > b.radius else (b, a)
            lines.append(f"the {_short(bigger)} is {pick(rng, ('larger', 'bigger'))} than the {_short(smaller)}")
    return " ".join(sentence(" ".join(line.split())) for line in lines)


def _short(thing: Thing) -> str:
    return f"{thing.color} {thing.shape}"


def _surface(thing: Thing) -> str:
    return {
        "solid": "of one plain color",
        "striped": "covered with stripes",
        "dotted": "covered with dots",
        "outlined": "drawn with a thick edge",
    }[thing.texture]


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _list(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


# ---- hard negatives


def _negatives(scene: Scene, order: list[Thing], rng: random.Random) -> list[tuple[str, str]]:
    """(kind, text) of up to four claims, each one change from a true one and false of the scene."""
    if len(order) == 1:
        truth = Claim(describe(order[0]))
        kinds: dict[str, Callable[..., Claim]] = {"color": _recolor, "shape": _reshape}
    else:
        a, b = order[0], order[1]
        truth = Claim(describe(a), relation(a, b), describe(b))
        kinds = {"color_swap": _swap_colors, "relation": _reverse, "color": _recolor, "shape": _reshape}
    found = []
    for kind, change in kinds.items():
        for _ in range(6):
            claim = change(truth, rng)
            if not holds(claim, scene):
                found.append((kind, claim_text(claim, rng)))
                break
    return found


def _swap_colors(claim: Claim, rng: random.Random) -> Claim:
    assert claim.second is not None
    first, second = claim.first, claim.second
    return claim._replace(first=first._replace(color=second.color), second=second._replace(color=first.color))


def _reverse(claim: Claim, rng: random.Random) -> Claim:
    assert claim.relation is not None
    return claim._replace(relation=OPPOSITE[claim.relation])


def _recolor(claim: Claim, rng: random.Random) -> Claim:
    return claim._replace(first=claim.first._replace(color=rng.choice(tuple(vocabulary.COLORS))))


def _reshape(claim: Claim, rng: random.Random) -> Claim:
    return claim._replace(first=claim.first._replace(shape=rng.choice(tuple(vocabulary.SHAPES))))
