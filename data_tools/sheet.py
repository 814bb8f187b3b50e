"""A contact sheet: pictures with their captions under them, to look at data before trusting it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

CELL = 168
LINES = 5
LINE = 13


def contact_sheet(pictures: Sequence[tuple[Image.Image, str]], *, columns: int = 8) -> Image.Image:
    """All pictures, each scaled to fit its cell, captions wrapped and cut to five lines."""
    rows = -(-len(pictures) // columns)
    height = CELL + LINES * LINE + 10
    sheet = Image.new("RGB", (columns * (CELL + 8) + 8, rows * height + 8), (255, 255, 255))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for number, (picture, caption) in enumerate(pictures):
        x, y = 8 + number % columns * (CELL + 8), 8 + number // columns * height
        scale = CELL / max(picture.size)
        method = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
        shown = picture.convert("RGB").resize([max(1, round(side * scale)) for side in picture.size], method)
        sheet.paste(shown, (x, y))
        for line, text in enumerate(textwrap.wrap(caption, 27)[:LINES]):
            pen.text((x, y + CELL + 2 + line * LINE), text, fill=(20, 20, 20), font=font)
    return sheet


def write_sheet(path: str | Path, pictures: Sequence[tuple[Image.Image, str]], *, columns: int = 8) -> None:
    """The contact sheet as a PNG file."""
    contact_sheet(pictures, columns=columns).save(path, "PNG")
