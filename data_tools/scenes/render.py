"""Facts to pixels: three-fold supersampled drawing with Pillow, finished by the style; masks from the same polygons."""

from __future__ import annotations

import functools
import math
import random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from data_tools.scenes import vocabulary as words
from data_tools.scenes.defects import Planted, plant
from data_tools.scenes.facts import Scene, Thing
from data_tools.scenes.styles import Style, style_of

OVER = 3  # supersampling


class Drawn(NamedTuple):
    """A picture; which thing each pixel shows (0: background, i + 1: things[i]); per thing its box and visibility.

    Where a part is missing, pixels show the background; boxes and visibility are those of the whole thing.
    """

    image: Image.Image  # RGB, size x size
    mask: np.ndarray  # uint8 [size, size]
    boxes: list[tuple[int, int, int, int]]  # x0, y0, x1, y1 (exclusive) of the whole thing, hidden parts included
    visible: list[float]  # share of the thing's pixels that no later thing covers
    defect: Planted | None = None


def draw(scene: Scene, size: int, rng: random.Random, *, flaw: tuple[str, random.Random] | None = None) -> Drawn:
    """The scene at `size` x `size` pixels; later things lie over earlier ones.

    flaw: kind of a defect to plant, and what it is drawn from, so that nothing else of the picture changes.
    """
    style = style_of(scene.style)
    canvas = _background(scene.background, size * OVER).copy()
    style.prepare(canvas, rng)
    bare = canvas.copy() if flaw else canvas
    index = np.zeros((size, size), np.uint8)
    shapes: list[np.ndarray] = []
    for number, thing in enumerate(scene.things, start=1):
        whole = _draw_thing(canvas, thing, scene, style, rng)
        shapes.append(whole)
        index[whole] = number
    defect = plant(canvas, bare, scene, index, *flaw) if flaw else None
    image = style.finish(canvas.reduce(OVER), rng)
    boxes = [_box(shape) for shape in shapes]
    visible = [float((index[s] == i).mean()) if s.any() else 0.0 for i, s in enumerate(shapes, start=1)]
    if defect is not None and defect.kind == "missing":
        index = np.where(defect.mask, 0, index).astype(np.uint8)
    return Drawn(image, index, boxes, [round(v, 4) for v in visible], defect)


def _draw_thing(canvas: Image.Image, thing: Thing, scene: Scene, style: Style, rng: random.Random) -> np.ndarray:
    """Draws into `canvas`; the thing's own pixels at output size, bool [size, size]."""
    side = canvas.width
    outline = words.SHAPES[thing.shape]
    place = functools.partial(_place, thing=thing, side=side, wobble=style.wobble, rng=rng)
    solid, holes = [place(p) for p in outline.solid], [place(p) for p in outline.holes]
    reach = math.ceil(thing.radius * side * 1.25) + 2
    corner = (round(thing.x * side) - reach, round(thing.y * side) - reach)
    stencil = _stencil(solid, holes, corner, 2 * reach)
    ink = style.ink(words.COLORS[thing.color])
    edge = _edge_color(thing, scene, style, ink)
    style.shade(canvas, stencil, corner)
    canvas.paste(_fill(thing, ink, style, canvas, corner, 2 * reach), corner, style.cover(stencil, rng))
    if edge is not None:
        _stroke(canvas, stencil, corner, edge, width=style.line(side))
    full = Image.new("L", (side, side))
    full.paste(stencil, corner)
    whole: np.ndarray = np.asarray(full)[OVER // 2 :: OVER, OVER // 2 :: OVER] > 127
    return whole


def _place(
    points: tuple[words.Point, ...], *, thing: Thing, side: int, wobble: float, rng: random.Random
) -> list[float]:
    """Flat pixel coordinates of unit-square points, turned, scaled, moved, and shaken by `wobble` radii."""
    cos, sin = math.cos(thing.turn) * thing.radius * side, math.sin(thing.turn) * thing.radius * side
    flat: list[float] = []
    for x, y in points:
        if wobble:
            x, y = x + rng.uniform(-wobble, wobble), y + rng.uniform(-wobble, wobble)
        flat += (thing.x * side + x * cos - y * sin, thing.y * side + x * sin + y * cos)
    return flat


def _stencil(solid: list[list[float]], holes: list[list[float]], corner: tuple[int, int], width: int) -> Image.Image:
    stencil = Image.new("L", (width, width))
    pen = ImageDraw.Draw(stencil)
    for value, polygons in ((255, solid), (0, holes)):
        for polygon in polygons:
            moved = [c - corner[i % 2] for i, c in enumerate(polygon)]
            pen.polygon(moved, fill=value)
    return stencil


def _fill(
    thing: Thing, ink: words.Color, style: Style, canvas: Image.Image, corner: tuple[int, int], width: int
) -> Image.Image:
    """The thing's surface: its ink, with stripes or dots of a clearly lighter or darker ink."""
    color = style.body(ink)
    surface = Image.new("RGB", (width, width), color)
    if thing.texture in ("striped", "dotted"):
        light = 0.299 * ink[0] + 0.587 * ink[1] + 0.114 * ink[2]
        toward = (20, 20, 24) if light > 150 else (255, 255, 255)
        second = tuple(round(0.45 * a + 0.55 * b) for a, b in zip(ink, toward))
        surface.paste(second, (0, 0, width, width), _pattern(thing.texture, canvas.width, width))
    if style.sheen:
        surface = style.sheen_on(surface)
    return surface


@functools.lru_cache(maxsize=512)
def _pattern(texture: str, side: int, width: int) -> Image.Image:
    """Level stripes or staggered dots, centred, with a period that survives at output size."""
    period = side * 0.078
    y, x = np.mgrid[:width, :width] - (width - 1) / 2
    if texture == "striped":
        on = np.mod(y / period + 0.25, 1) < 0.42
    else:
        row = np.floor(y / period + 0.5)
        dx = np.mod(x / period + 0.5 * np.mod(row, 2), 1) - 0.5
        dy = np.mod(y / period + 0.5, 1) - 0.5
        on = dx * dx + dy * dy < 0.105
    return Image.fromarray((on * 255).astype(np.uint8))


def _edge_color(thing: Thing, scene: Scene, style: Style, ink: words.Color) -> words.Color | None:
    if thing.texture == "outlined":
        return (255, 255, 255) if scene.background in words.DARK else (16, 16, 18)
    return ink if style.lined else None


def _stroke(
    canvas: Image.Image, stencil: Image.Image, corner: tuple[int, int], color: words.Color, *, width: int
) -> None:
    """A line just inside the shape's border, so that masks stay true."""
    solid = np.asarray(stencil) > 127
    inner = solid.copy()
    for _ in range(width):
        inner[1:-1, 1:-1] &= inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    canvas.paste(color, (*corner, corner[0] + stencil.width, corner[1] + stencil.height), _mask(solid & ~inner))


def _mask(on: np.ndarray) -> Image.Image:
    return Image.fromarray((on * 255).astype(np.uint8))


def _box(shape: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
    if not len(rows):
        return (0, 0, 0, 0)
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@functools.lru_cache(maxsize=64)
def _background(name: str, side: int) -> Image.Image:
    spot = words.BACKGROUNDS[name]
    first, second = (np.array(c, np.float32) for c in (spot.first, spot.second))
    y, x = np.mgrid[:side, :side].astype(np.float32) / side
    amount = {
        "plain": lambda: 0 * y,
        "gradient": lambda: y,
        "horizon": lambda: (y > 0.55).astype(np.float32),
        "grid": lambda: ((np.mod(x * 8, 1) < 0.13) | (np.mod(y * 8, 1) < 0.13)).astype(np.float32),
        "checks": lambda: np.mod(np.floor(x * 8) + np.floor(y * 8), 2),
    }[spot.layout]()[..., None]
    return Image.fromarray((first * (1 - amount) + second * amount + 0.5).astype(np.uint8))
