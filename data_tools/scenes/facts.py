"""What a scene is: things in places, the relations that hold between them, and how a scene is drawn by lot."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from data_tools.scenes import vocabulary as words


@dataclass(frozen=True, slots=True)
class Thing:
    """One object; position and radius are fractions of the picture's side."""

    shape: str
    color: str
    size: str
    texture: str
    x: float
    y: float
    radius: float
    turn: float  # radians, small

    @property
    def name(self) -> tuple[str, str]:
        return self.color, self.shape


@dataclass(frozen=True, slots=True)
class Scene:
    """All facts of one picture. No two things share colour and shape, so "the red star" is one thing."""

    things: tuple[Thing, ...]
    background: str
    style: str
    label: int | None = None  # index into vocabulary.CLASSES; the thing it names is things[0]


class Phrase(NamedTuple):
    """What a caption says of one thing; None: nothing said."""

    color: str
    shape: str
    size: str | None = None
    texture: str | None = None

    def fits(self, thing: Thing) -> bool:
        said = (self.size in (None, thing.size), self.texture in (None, thing.texture))
        return thing.name == (self.color, self.shape) and all(said)


class Claim(NamedTuple):
    """One statement: a thing, or a thing in relation to another."""

    first: Phrase
    relation: str | None = None
    second: Phrase | None = None


OPPOSITE = {
    "left": "right",
    "right": "left",
    "above": "below",
    "below": "above",
    "above left": "below right",
    "above right": "below left",
    "below left": "above right",
    "below right": "above left",
    "inside": "around",
    "around": "inside",
}


def relation(a: Thing, b: Thing) -> str:
    """The word for where `a` is, seen from `b`: one of eight sectors, or inside and around."""
    dx, dy = a.x - b.x, a.y - b.y
    if math.hypot(dx, dy) < 0.05:
        return "inside" if a.radius < b.radius else "around"
    vertical = "above" if dy < 0 else "below"
    horizontal = "left" if dx < 0 else "right"
    if abs(dx) > 1.7 * abs(dy):
        return horizontal
    return vertical if abs(dy) > 1.7 * abs(dx) else f"{vertical} {horizontal}"


def may_hold(claim: str, a: Thing, b: Thing) -> bool:
    """Whether a reader could accept the relation: a diagonal sector counts for each of its words."""
    actual = relation(a, b)
    return actual == claim or claim in actual.split() or actual in claim.split()


def holds(claim: Claim, scene: Scene) -> bool:
    """Whether some things of the scene make the claim true, read generously; a hard negative must fail even so."""
    firsts = [thing for thing in scene.things if claim.first.fits(thing)]
    if claim.relation is None or claim.second is None:
        return bool(firsts)
    seconds = [thing for thing in scene.things if claim.second.fits(thing)]
    return any(may_hold(claim.relation, a, b) for a in firsts for b in seconds if a is not b)


def place(thing: Thing) -> str | None:
    """One of nine places ("top left", "center", ...), or None when the thing lies between two of them."""
    column = _third(thing.x, ("left", "", "right"))
    row = _third(thing.y, ("top", "", "bottom"))
    if column is None or row is None:
        return None
    return " ".join(word for word in (row, column) if word) or "center"


def _third(value: float, names: tuple[str, str, str]) -> str | None:
    if value < 0.37:
        return names[0]
    if value > 0.63:
        return names[2]
    return names[1] if 0.43 < value < 0.57 else None


def draw_scene(rng: random.Random, *, styles: Sequence[str], labelled: bool) -> Scene:
    """A scene by lot. Labelled: one dominant thing, up to two small ones that share neither class nor size with it."""
    style = rng.choice(styles)
    background = rng.choice(words.backgrounds_of(style))
    label = rng.randrange(len(words.CLASSES)) if labelled else None
    while label is not None and words.CLASSES[label].split()[0] not in words.VISIBLE[background]:
        background = rng.choice(words.backgrounds_of(style))
    while True:
        things = _labelled(rng, label, background, style) if label is not None else _composed(rng, background, style)
        if things:
            return Scene(things, background, style, label)


def _composed(rng: random.Random, background: str, style: str) -> tuple[Thing, ...]:
    count = rng.choices((1, 2, 3, 4), weights=(12, 42, 28, 18))[0]
    if count == 1:
        return (_alone(rng, background, style),)
    sizes = [rng.choices(tuple(words.SIZES), weights=_SIZE_ODDS[count])[0] for _ in range(count)]
    if count <= 3 and rng.random() < 0.15:
        return _nested(rng, sizes[2:], background, style)
    return _scattered(rng, [], sizes, background, style)


_SIZE_ODDS = {2: (25, 35, 40), 3: (35, 40, 25), 4: (50, 40, 10)}


def _alone(rng: random.Random, background: str, style: str) -> Thing:
    size = rng.choices(tuple(words.SIZES), weights=(20, 35, 45))[0]
    radius = rng.uniform(*words.SIZES[size])
    x, y = (rng.choice((0.26, 0.5, 0.74)) + rng.uniform(-0.05, 0.05) for _ in range(2))
    return _thing(rng, size, radius, x, y, background, style, taken=())


def _nested(rng: random.Random, others: list[str], background: str, style: str) -> tuple[Thing, ...]:
    """A small thing in the hole of a large ring or frame, and perhaps one more beside it."""
    radius = rng.uniform(0.24, 0.27)
    x, y = (rng.uniform(radius + 0.02, 0.98 - radius) for _ in range(2))
    outer = _thing(rng, "large", radius, x, y, background, style, shape=rng.choice(words.CONTAINERS), taken=())
    inner = _thing(rng, "small", 0.1, x, y, background, style, taken=[outer.name, *_same_color(outer)])
    return _scattered(rng, [outer, inner], ["small" for _ in others], background, style)


def _same_color(thing: Thing) -> list[tuple[str, str]]:
    return [(thing.color, shape) for shape in words.SHAPES]


def _labelled(rng: random.Random, label: int, background: str, style: str) -> tuple[Thing, ...]:
    color, shape = words.CLASSES[label].split()
    radius = rng.uniform(*words.DOMINANT)
    x, y = (rng.uniform(radius + 0.01, 0.99 - radius) for _ in range(2))
    main = _thing(rng, "large", radius, x, y, background, style, shape=shape, color=color, taken=())
    sizes = ["small"] * rng.choices((0, 1, 2), weights=(35, 40, 25))[0]
    return _scattered(rng, [main], sizes, background, style)


def _scattered(
    rng: random.Random, things: list[Thing], sizes: list[str], background: str, style: str
) -> tuple[Thing, ...]:
    """`things` and one more per size, apart from each other by at least nine tenths of their radii; () if no room."""
    for size in sorted(sizes, key=list(words.SIZES).index, reverse=True):
        radius = rng.uniform(*words.SIZES[size])
        for _ in range(40):
            x, y = (rng.uniform(radius + 0.02, 0.98 - radius) for _ in range(2))
            if all(math.hypot(x - o.x, y - o.y) > 0.92 * (radius + o.radius) for o in things):
                break
        else:
            return ()
        taken = [thing.name for thing in things]
        for near in (o for o in things if math.hypot(x - o.x, y - o.y) < 1.15 * (radius + o.radius)):
            taken += _same_color(near)  # touching things of one colour would look like one
        things = [*things, _thing(rng, size, radius, x, y, background, style, taken=taken)]
    return tuple(things)


def _thing(
    rng: random.Random,
    size: str,
    radius: float,
    x: float,
    y: float,
    background: str,
    style: str,
    *,
    taken: Sequence[tuple[str, str]],
    shape: str | None = None,
    color: str | None = None,
) -> Thing:
    """A thing whose colour stands out from the background and whose (colour, shape) is not taken."""
    visible = words.VISIBLE[background]
    name = (color or rng.choice(visible), shape or rng.choice(tuple(words.SHAPES)))
    while name in taken:
        name = (color or rng.choice(visible), shape or rng.choice(tuple(words.SHAPES)))
    texture = _texture(rng, name[0], size, background, style)
    return Thing(name[1], name[0], size, texture, x, y, radius, rng.uniform(-0.12, 0.12))


def _texture(rng: random.Random, color: str, size: str, background: str, style: str) -> str:
    """Patterns need room and contrast: none on small things; no black line on black, none where all is outlined."""
    edge = "white" if background in words.DARK else "black"
    edged = style not in ("outline", "crayon", "pixel") and color != edge
    odds = (60, 16 if size != "small" else 0, 12 if size != "small" else 0, 12 if edged else 0)
    return rng.choices(words.TEXTURES, weights=odds)[0]
