"""Planted defects: a scratch, a missing part or a blob of the wrong colour on one thing of a scene, with its pixels."""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from data_tools.scenes import vocabulary as words
from data_tools.scenes.facts import Scene, Thing

KINDS = ("scratch", "missing", "blob")
LEAST, MOST = 0.03, 0.4  # of the thing's visible pixels that a defect takes
TRIES = 60


class Planted(NamedTuple):
    """A defect in a picture: its kind, the thing it is on, and the pixels that show it."""

    kind: str
    thing: int  # place in the scene's things
    mask: np.ndarray  # bool [size, size]
    share: float  # of the thing's visible pixels


def draw_kind(rng: random.Random, share: float) -> str | None:
    """A kind by lot with this probability, else None: no defect."""
    return rng.choice(KINDS) if rng.random() < share else None


def plant(
    canvas: Image.Image, bare: Image.Image, scene: Scene, index: np.ndarray, kind: str, rng: random.Random
) -> Planted:
    """Draws the defect into the canvas, which is larger than `index` (0: background, i + 1: things[i]), and says where.

    bare: the canvas before anything stood on it, which shows where a part is missing. On a labelled scene the defect is
    on the thing that the label names, else on the one that shows most. What is drawn is tried until it takes between
    3 % and 40 % of the thing, so that people can see it; the middle of all tries is taken if none does.
    """
    over = canvas.width // index.shape[1]
    number = 0 if scene.label is not None else int(np.bincount(index.ravel(), minlength=2)[1:].argmax())
    visible = index == number + 1
    drawn: list[tuple[float, Image.Image]] = []
    for _ in range(TRIES):
        stencil = _stencil(kind, scene.things[number], canvas.width, rng)
        share = float((_at_output(stencil, over) & visible).sum() / max(1, visible.sum()))
        drawn.append((share, stencil))
        if LEAST <= share <= MOST:
            break
    else:
        drawn.sort(key=lambda one: abs(one[0] - (LEAST + MOST) / 2), reverse=True)
    share, stencil = drawn[-1]
    on = visible.repeat(over, 0).repeat(over, 1) & (np.asarray(stencil) > 127)
    where = Image.fromarray((on * 255).astype(np.uint8))
    if kind == "missing":
        canvas.paste(bare, (0, 0), where)
    else:
        canvas.paste(_wrong_color(scene.things[number], kind, rng), (0, 0, *canvas.size), where)
    return Planted(kind, number, _at_output(where, over), round(share, 4))


def _at_output(stencil: Image.Image, over: int) -> np.ndarray:
    """The middle of each output pixel, as masks of things are sampled."""
    found: np.ndarray = np.asarray(stencil)[over // 2 :: over, over // 2 :: over] > 127
    return found


def _stencil(kind: str, thing: Thing, side: int, rng: random.Random) -> Image.Image:
    """Where the defect may be, whatever of it lies on the thing."""
    stencil = Image.new("L", (side, side))
    pen = ImageDraw.Draw(stencil)
    radius, turn = thing.radius * side, rng.uniform(0, 2 * math.pi)
    x, y = thing.x * side, thing.y * side
    if kind == "scratch":
        middle = rng.uniform(-0.5, 0.5) * radius  # the line's distance from the centre
        points = []
        for step in (-1.2, -0.4, 0.4, 1.2):
            off = middle + rng.uniform(-0.12, 0.12) * radius
            points.append(
                (
                    x + step * radius * math.cos(turn) - off * math.sin(turn),
                    y + step * radius * math.sin(turn) + off * math.cos(turn),
                )
            )
        pen.line(points, fill=255, width=max(4, round(0.1 * radius)), joint="curve")
        return stencil
    far, size = (rng.uniform(0.7, 1.0), rng.uniform(0.35, 0.6)) if kind == "missing" else (rng.uniform(0, 0.6), 0.0)
    size = size or rng.uniform(0.2, 0.35)
    stretch = rng.uniform(0.75, 1.0)
    middle_x, middle_y = x + far * radius * math.cos(turn), y + far * radius * math.sin(turn)
    wide, high = size * radius, size * radius * stretch
    pen.ellipse((middle_x - wide, middle_y - high, middle_x + wide, middle_y + high), fill=255)
    return stencil


def _wrong_color(thing: Thing, kind: str, rng: random.Random) -> words.Color:
    """Of a scratch black or white, whichever stands out from the thing more; of a blob one that stands out."""
    own = words.COLORS[thing.color]
    if kind == "scratch":
        return max(((16, 16, 18), (255, 255, 255)), key=lambda color: words.distance(color, own))
    return rng.choice([color for color in words.COLORS.values() if words.distance(color, own) > 250])
