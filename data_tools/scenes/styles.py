"""Drawing styles, the domains of the scenes: how ink, surfaces, lines and the finished picture look."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from data_tools.scenes.vocabulary import Color


@dataclass(frozen=True)
class Style:
    """Plain, flat drawing; the settings and methods are what other styles change."""

    wobble: float = 0.0  # of the outline, in radii
    lined: bool = False  # a line of the thing's own colour around it
    tint: float = 0.0  # how far surfaces go towards white
    sheen: bool = False

    def ink(self, color: Color) -> Color:
        return color

    def body(self, ink: Color) -> Color:
        return _mix(ink, (255, 255, 255), self.tint)

    def line(self, side: int) -> int:
        return max(2, round(side * 0.028))

    def prepare(self, canvas: Image.Image, rng: random.Random) -> None:
        """What is drawn before the things."""

    def shade(self, canvas: Image.Image, stencil: Image.Image, corner: tuple[int, int]) -> None:
        """What is drawn under a thing."""

    def cover(self, stencil: Image.Image, rng: random.Random) -> Image.Image:
        """How dense the surface is, pixel by pixel."""
        return stencil

    def sheen_on(self, surface: Image.Image) -> Image.Image:
        return surface

    def finish(self, image: Image.Image, rng: random.Random) -> Image.Image:
        return image


class Crayon(Style):
    """Shaken outlines, strokes that leave paper showing through."""

    def cover(self, stencil: Image.Image, rng: random.Random) -> Image.Image:
        x, y = rng.randrange(_GRAIN // 2), rng.randrange(_GRAIN // 2)
        width = stencil.width
        grain = np.tile(_strokes(), (1 + (width + y) // _GRAIN, 1 + (width + x) // _GRAIN))[
            y : y + width, x : x + width
        ]
        return Image.fromarray((np.asarray(stencil, np.uint16) * grain // 255).astype(np.uint8))


class Photo(Style):
    """Soft shadows, round shading, uneven light, blur and noise."""

    def shade(self, canvas: Image.Image, stencil: Image.Image, corner: tuple[int, int]) -> None:
        shift = max(2, canvas.width // 40)
        soft = stencil.point(_HALF).filter(ImageFilter.BoxBlur(shift * 0.7))
        x, y = corner[0] + shift, corner[1] + shift
        canvas.paste((10, 10, 15), (x, y, x + soft.width, y + soft.height), soft)

    def sheen_on(self, surface: Image.Image) -> Image.Image:
        lit = np.asarray(surface, np.float32) * _sphere(surface.width)
        return Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))

    def finish(self, image: Image.Image, rng: random.Random) -> Image.Image:
        size = image.width
        noise = np.random.Generator(np.random.PCG64(rng.getrandbits(64)))
        pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(size / 110)), np.float32)
        pixels = pixels * _light(size)[rng.randrange(8)][..., None]
        pixels = pixels + noise.standard_normal((size, size, 1), dtype=np.float32) * 9
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


class Pixel(Style):
    """Square blocks, a thirty-second of the side each (finer above 128 pixels), without smooth edges."""

    def finish(self, image: Image.Image, rng: random.Random) -> Image.Image:
        blocks = max(32, image.width // 4)
        return image.resize((blocks, blocks), Image.Resampling.NEAREST).resize(image.size, Image.Resampling.NEAREST)


class Pastel(Style):
    """Colours a quarter of the way to white, on paper with a fine grain."""

    def ink(self, color: Color) -> Color:
        return _mix(color, (255, 255, 255), 0.25) if max(color) > 100 else color

    def finish(self, image: Image.Image, rng: random.Random) -> Image.Image:
        soft = np.asarray(image.filter(ImageFilter.BoxBlur(image.width / 128)), np.float32)
        x, y = rng.randrange(32), rng.randrange(32)
        paper = np.roll(_paper(image.width), (x, y), (0, 1))
        return Image.fromarray(np.clip(soft + paper[..., None], 0, 255).astype(np.uint8))


class Night(Style):
    """Dark sky with stars of a single pixel; things glow."""

    def prepare(self, canvas: Image.Image, rng: random.Random) -> None:
        side = canvas.width
        for _ in range(14):
            x, y = rng.randrange(side - 3), rng.randrange(side - 3)
            canvas.paste((200, 200, 190), (x, y, x + 3, y + 3))

    def shade(self, canvas: Image.Image, stencil: Image.Image, corner: tuple[int, int]) -> None:
        glow = stencil.filter(ImageFilter.BoxBlur(canvas.width / 26)).point(_THIRD)
        canvas.paste((235, 235, 255), (*corner, corner[0] + glow.width, corner[1] + glow.height), glow)


_HALF = [v // 2 for v in range(256)]
_THIRD = [v * 2 // 5 for v in range(256)]
_GRAIN = 96
_STYLES: dict[str, Style] = {
    "flat": Style(),
    "outline": Style(lined=True, tint=0.62),
    "crayon": Crayon(wobble=0.06, lined=True),
    "photo": Photo(sheen=True),
    "pixel": Pixel(),
    "pastel": Pastel(),
    "night": Night(),
}


def style_of(name: str) -> Style:
    return _STYLES[name]


def _mix(a: Color, b: Color, amount: float) -> Color:
    red, green, blue = (round(x * (1 - amount) + y * amount) for x, y in zip(a, b))
    return red, green, blue


@functools.lru_cache(maxsize=1)
def _strokes() -> np.ndarray:
    """Slanted crayon strokes, uint16 [_GRAIN, _GRAIN] of 0..255, seamless enough at its borders."""
    noise = np.random.Generator(np.random.PCG64(7)).random((_GRAIN, _GRAIN))
    y, x = np.mgrid[:_GRAIN, :_GRAIN]
    wave = np.mod((x + 2 * y) / 12, 1)
    return np.where(wave < 0.3, 90, 255).astype(np.uint16) - (noise * 60).astype(np.uint16)


@functools.lru_cache(maxsize=256)
def _sphere(width: int) -> np.ndarray:
    """Light from the upper left, float32 [width, width, 1]."""
    y, x = (np.mgrid[:width, :width].astype(np.float32) / width - 0.5) * 2
    light: np.ndarray = np.clip(1.15 - 0.45 * np.hypot(x + 0.3, y + 0.3), 0.62, 1.2)[..., None]
    return light


@functools.lru_cache(maxsize=4)
def _light(size: int) -> list[np.ndarray]:
    """Eight ways the light may fall off, float32 [size, size] each."""
    y, x = (np.mgrid[:size, :size].astype(np.float32) / size - 0.5) * 2
    falls = [(x * np.cos(a) + y * np.sin(a)) for a in np.arange(8) * np.pi / 4]
    return [(0.97 + 0.1 * fall - 0.08 * (x * x + y * y)).astype(np.float32) for fall in falls]


@functools.lru_cache(maxsize=4)
def _paper(size: int) -> np.ndarray:
    paper: np.ndarray = np.random.Generator(np.random.PCG64(11)).normal(0, 5, (size, size)).astype(np.float32)
    return paper
