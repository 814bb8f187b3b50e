"""The grammar's words: synonyms for what the vocabulary names, each picked by lot, the plain word most often."""

from __future__ import annotations

import random
from collections.abc import Sequence

SHAPE_WORDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "disc"),
    "square": ("square",),
    "triangle": ("triangle",),
    "diamond": ("diamond", "rhombus"),
    "hexagon": ("hexagon",),
    "star": ("star", "five-pointed star"),
    "ring": ("ring", "hoop"),
    "frame": ("frame", "hollow square"),
    "heart": ("heart",),
    "cross": ("cross", "plus sign"),
    "crescent": ("crescent", "moon"),
    "arrow": ("arrow", "right-pointing arrow"),
    "bolt": ("bolt", "lightning bolt"),
    "drop": ("drop", "teardrop"),
    "flower": ("flower", "daisy"),
    "semicircle": ("semicircle", "half disc"),
}
COLOR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red",),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "cyan": ("cyan", "turquoise"),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
    "pink": ("pink",),
    "brown": ("brown",),
    "white": ("white",),
    "black": ("black",),
    "gray": ("gray", "grey"),
}
SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium-sized", "mid-sized"),
    "large": ("large", "big", "huge"),
}
TEXTURE_WORDS: dict[str, tuple[str, ...]] = {
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted"),
    "outlined": ("outlined", "bordered"),
}
RELATION_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
    "above left": ("above and left of", "to the upper left of"),
    "above right": ("above and right of", "to the upper right of"),
    "below left": ("below and left of", "to the lower left of"),
    "below right": ("below and right of", "to the lower right of"),
    "inside": ("inside", "in the hole of", "enclosed by"),
    "around": ("around", "surrounding", "enclosing"),
}
PLACE_WORDS: dict[str, tuple[str, ...]] = {
    "top left": ("at the top left", "in the upper left corner"),
    "top": ("at the top", "near the top edge"),
    "top right": ("at the top right", "in the upper right corner"),
    "left": ("on the left", "on the left side"),
    "center": ("in the middle", "in the center"),
    "right": ("on the right", "on the right side"),
    "bottom left": ("at the bottom left", "in the lower left corner"),
    "bottom": ("at the bottom", "near the bottom edge"),
    "bottom right": ("at the bottom right", "in the lower right corner"),
}
GROUND_WORDS: dict[str, tuple[str, ...]] = {
    "white": ("on a white background", "on white"),
    "cream": ("on a cream background", "on cream"),
    "pale blue": ("on a pale blue background", "on pale blue"),
    "mint": ("on a mint background", "on mint green"),
    "lavender": ("on a lavender background", "on lavender"),
    "light gray": ("on a light gray background", "on light gray"),
    "navy": ("on a navy background", "on dark blue"),
    "dark green": ("on a dark green background", "on dark green"),
    "maroon": ("on a maroon background", "on dark red"),
    "charcoal": ("on a charcoal background", "on dark gray"),
    "sunset": ("in front of a sunset", "on a sunset background"),
    "blue sky": ("in front of a blue sky", "on a blue sky background"),
    "meadow": ("over a green meadow", "on a meadow background"),
    "grid paper": ("on grid paper", "on squared paper"),
    "checkered": ("on a checkered background", "on a checkerboard"),
}
STYLE_WORDS: dict[str, tuple[str, ...]] = {
    "flat": ("a flat drawing", "a clean graphic", "a flat picture"),
    "outline": ("an outline drawing", "a line drawing"),
    "crayon": ("a crayon drawing", "a crayon sketch"),
    "photo": ("a photo", "a noisy photo", "a photograph"),
    "pixel": ("pixel art", "a pixel picture"),
    "pastel": ("a pastel drawing", "a soft pastel"),
    "night": ("a night scene", "a scene at night"),
}
COUNT_WORDS = ("no", "one", "two", "three", "four")

PLAIN = 0.75  # how often the first, plain word is taken


def pick(rng: random.Random, options: Sequence[str]) -> str:
    """The first option with probability PLAIN, else any of the others."""
    if len(options) == 1 or rng.random() < PLAIN:
        return options[0]
    return options[1 + rng.randrange(len(options) - 1)]


def article(noun: str) -> str:
    """The noun phrase with "a" or "an" before it."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def sentence(text: str) -> str:
    """The text with a capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}."
