"""The alignment of one picture and one caption as one picture, to be looked at or put into a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlp.report.alignment import HOW, Pair, Panel, panels, summary
from vlp.report.heat import scale_bar

SIDE, GAP, MARGIN, COLUMNS = 192, 18, 28, 5
_INK, _SOFT = (29, 31, 35), (93, 99, 109)
WIDTH = 2 * MARGIN + COLUMNS * SIDE + (COLUMNS - 1) * GAP


def draw(pair: Pair, picture: Any, *, trained: str) -> Any:
    """An RGB picture of all panels with words and scores, five in a row."""
    from PIL import Image, ImageDraw

    large, small = font(20), font(13)
    lines = [(line, large, _INK) for line in _wrapped(pair["text"], large)]
    lines += [(line, small, _SOFT) for text in (summary(pair), f"{trained} {HOW}") for line in _wrapped(text, small)]
    top = MARGIN + sum(_height(used) for _, used, _ in lines) + GAP
    shown = list(panels(pair, picture, side=SIDE))
    cell = max(panel.picture.height for panel in shown) + 2 * _height(small) + GAP
    rows = -(-len(shown) // COLUMNS)
    sheet = Image.new("RGB", (WIDTH, top + rows * cell + MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    y = MARGIN
    for line, used, colour in lines:
        pen.text((MARGIN, y), line, font=used, fill=colour)
        y += _height(used)
    for place, panel in enumerate(shown):
        _panel(sheet, pen, panel, MARGIN + place % COLUMNS * (SIDE + GAP), top + place // COLUMNS * cell, small)
    y = top + rows * cell - GAP // 2
    pen.text((MARGIN, y), "lowest", font=small, fill=_SOFT)
    pen.text((MARGIN + 2 * SIDE, y), "highest of each map", font=small, fill=_SOFT)
    start = MARGIN + round(small.getlength("lowest ")) + 4
    sheet.paste(scale_bar(MARGIN + 2 * SIDE - 8 - start, 10), (start, y + 4))
    return sheet


def _panel(sheet: Any, pen: Any, panel: Panel, x: int, y: int, used: Any) -> None:
    sheet.paste(panel.picture, (x, y))
    y += panel.picture.height + 4
    room = SIDE
    if panel.colour is not None:
        pen.rectangle((x, y + 3, x + 9, y + 12), fill=panel.colour)
        room -= 14
    title = _cut(panel.title, used, room - round(used.getlength(f" {panel.score}")))
    pen.text((x + SIDE - room, y), f"{title} {panel.score}", font=used, fill=_INK)
    pen.text((x, y + _height(used)), _cut(panel.note, used, SIDE), font=used, fill=_SOFT)


def font(size: int) -> Any:
    """A font that comes with matplotlib; it has no Chinese, Japanese or Korean."""
    from PIL import ImageFont

    return ImageFont.truetype(str(_font_file()), size)


def unseen(text: str) -> set[str]:
    """Characters of the text that the font of `draw` does not have."""
    from matplotlib.ft2font import FT2Font

    known = FT2Font(str(_font_file())).get_charmap()
    return {char for char in text if not char.isspace() and ord(char) not in known}


def _font_file() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


def _height(used: Any) -> int:
    return round(float(used.size) * 1.35)


def _wrapped(text: str, used: Any) -> list[str]:
    """Lines that fit between the margins; a word that is longer than a line is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if used.getlength(longer) <= WIDTH - 2 * MARGIN or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return [_cut(line, used, WIDTH - 2 * MARGIN) for line in lines]


def _cut(text: str, used: Any, room: int) -> str:
    if used.getlength(text) <= room:
        return text
    while text and used.getlength(text + "…") > room:
        text = text[:-1]
    return text + "…"
