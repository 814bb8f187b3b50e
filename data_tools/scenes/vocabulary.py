"""What scenes are made of: shapes as polygons, colours, sizes, textures, backgrounds, styles, and which go together."""

from __future__ import annotations

import math
from typing import NamedTuple

Color = tuple[int, int, int]
Point = tuple[float, float]


class Outline(NamedTuple):
    """A shape in the unit square [-1, 1]^2, y downwards: `solid` polygons minus `holes`."""

    solid: tuple[tuple[Point, ...], ...]
    holes: tuple[tuple[Point, ...], ...] = ()


class Background(NamedTuple):
    """Two colours (top and bottom, or the two of a pattern) and how they are laid out."""

    first: Color
    second: Color
    layout: str  # plain | gradient | horizon | grid | checks


def _circle(
    radius: float, x: float = 0.0, y: float = 0.0, *, start: float = 0.0, turn: float = 1.0
) -> tuple[Point, ...]:
    count = max(8, round(40 * turn))
    angles = [2 * math.pi * (start + turn * i / count) for i in range(count + (turn < 1))]
    return tuple((x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles)


def _polygon(corners: int, *, start: float, radius: float = 1.0, inner: float | None = None) -> tuple[Point, ...]:
    """A regular polygon, or a star when `inner` gives the radius of the points between."""
    steps = corners * (2 if inner else 1)
    radii = [radius if inner is None or i % 2 == 0 else inner for i in range(steps)]
    angles = [2 * math.pi * (start + i / steps) for i in range(steps)]
    return tuple((r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles))


def _heart() -> tuple[Point, ...]:
    angles = [2 * math.pi * i / 40 for i in range(40)]
    return tuple(
        (math.sin(a) ** 3, -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 15.5)
        for a in angles
    )


def _drop() -> tuple[Point, ...]:
    return ((0.0, -1.05), *_circle(0.68, 0.0, 0.32, start=-0.06, turn=0.62))


_PETALS = tuple(
    _circle(0.42, 0.58 * math.cos(2 * math.pi * i / 6), 0.58 * math.sin(2 * math.pi * i / 6)) for i in range(6)
)
_BOX = ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85))
_ARM = 0.34

SHAPES: dict[str, Outline] = {
    "circle": Outline((_circle(0.92),)),
    "square": Outline((_BOX,)),
    "triangle": Outline((((0.0, -0.95), (1.0, 0.8), (-1.0, 0.8)),)),
    "diamond": Outline((((0.0, -1.08), (0.72, 0.0), (0.0, 1.08), (-0.72, 0.0)),)),
    "hexagon": Outline((_polygon(6, start=0.0),)),
    "star": Outline((_polygon(5, start=-0.25, radius=1.1, inner=0.45),)),
    "ring": Outline((_circle(1.0),), (_circle(0.56),)),
    "frame": Outline((_BOX,), (tuple((0.55 * x, 0.55 * y) for x, y in _BOX),)),
    "heart": Outline((_heart(),)),
    "cross": Outline(
        (
            ((-_ARM, -1.0), (_ARM, -1.0), (_ARM, 1.0), (-_ARM, 1.0)),
            ((-1.0, -_ARM), (1.0, -_ARM), (1.0, _ARM), (-1.0, _ARM)),
        )
    ),
    "crescent": Outline((_circle(1.0),), (_circle(0.82, 0.52, -0.12),)),
    "arrow": Outline((((-1.0, -0.3), (0.05, -0.3), (0.05, -0.9), (1.05, 0.0), (0.05, 0.9), (0.05, 0.3), (-1.0, 0.3)),)),
    "bolt": Outline(
        (((0.25, -1.1), (-0.7, 0.15), (-0.08, 0.15), (-0.3, 1.1), (0.7, -0.25), (0.1, -0.25), (0.55, -1.1)),)
    ),
    "drop": Outline((_drop(),)),
    "flower": Outline((*_PETALS, _circle(0.45))),
    "semicircle": Outline((_circle(1.0, 0.0, 0.45, start=0.5, turn=0.5),)),
}
CONTAINERS = ("ring", "frame")

COLORS: dict[str, Color] = {
    "red": (222, 28, 36),
    "orange": (247, 138, 16),
    "yellow": (252, 218, 36),
    "green": (34, 158, 62),
    "cyan": (30, 205, 215),
    "blue": (28, 76, 222),
    "purple": (128, 40, 172),
    "pink": (252, 120, 184),
    "brown": (124, 72, 30),
    "white": (255, 255, 255),
    "black": (16, 16, 18),
    "gray": (132, 132, 134),
}
SIZES: dict[str, tuple[float, float]] = {"small": (0.098, 0.115), "medium": (0.148, 0.168), "large": (0.208, 0.235)}
DOMINANT = (0.27, 0.33)  # radius of the one large object of a labelled picture
TEXTURES = ("solid", "striped", "dotted", "outlined")

BACKGROUNDS: dict[str, Background] = {
    "white": Background((250, 250, 248), (250, 250, 248), "plain"),
    "cream": Background((250, 236, 200), (250, 236, 200), "plain"),
    "pale blue": Background((196, 222, 250), (196, 222, 250), "plain"),
    "mint": Background((196, 240, 214), (196, 240, 214), "plain"),
    "lavender": Background((220, 204, 246), (220, 204, 246), "plain"),
    "light gray": Background((206, 206, 208), (206, 206, 208), "plain"),
    "navy": Background((22, 28, 74), (22, 28, 74), "plain"),
    "dark green": Background((16, 62, 42), (16, 62, 42), "plain"),
    "maroon": Background((92, 16, 34), (92, 16, 34), "plain"),
    "charcoal": Background((52, 52, 58), (52, 52, 58), "plain"),
    "sunset": Background((255, 196, 128), (196, 110, 140), "gradient"),
    "blue sky": Background((150, 200, 250), (236, 244, 255), "gradient"),
    "meadow": Background((206, 230, 250), (140, 200, 110), "horizon"),
    "grid paper": Background((252, 252, 250), (168, 200, 232), "grid"),
    "checkered": Background((236, 236, 232), (198, 198, 202), "checks"),
}
DARK = frozenset({"navy", "dark green", "maroon", "charcoal"})

STYLES = ("flat", "outline", "crayon", "photo", "pixel", "pastel", "night")


def distance(a: Color, b: Color) -> float:
    """Weighted RGB distance ("redmean"), 0 to about 765: near enough to what eyes tell apart for clean colours."""
    mean = (a[0] + b[0]) / 2
    dr, dg, db = a[0] - b[0], a[1] - b[1], a[2] - b[2]
    return math.sqrt((2 + mean / 256) * dr * dr + 4 * dg * dg + (2 + (255 - mean) / 256) * db * db)


def colors_on(background: str) -> tuple[str, ...]:
    """Names of the colours that stand out from every part of a background."""
    spot = BACKGROUNDS[background]
    return tuple(n for n, c in COLORS.items() if min(distance(c, spot.first), distance(c, spot.second)) > 185)


VISIBLE: dict[str, tuple[str, ...]] = {name: colors_on(name) for name in BACKGROUNDS}


def backgrounds_of(style: str) -> tuple[str, ...]:
    """Backgrounds a style is drawn on: night is dark, the others take all."""
    return tuple(sorted(DARK)) if style == "night" else tuple(BACKGROUNDS)


# Labelled variant: every combination is a class, and captions teach both words.
CLASS_COLORS = ("red", "yellow", "green", "blue", "purple")
CLASS_SHAPES = ("circle", "square", "star", "heart", "arrow")
CLASSES: tuple[str, ...] = tuple(f"{color} {shape}" for shape in CLASS_SHAPES for color in CLASS_COLORS)
TEMPLATES = (
    "a {c}.",
    "a big {c}.",
    "a picture of a {c}.",
    "a drawing of a {c}.",
    "a large {c} in the middle.",
    "a large {c} on a plain background.",
)
