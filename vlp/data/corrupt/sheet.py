"""One picture under every corruption, as a table of small pictures."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw
from torch import Tensor

from vlp.data.corrupt import CORRUPTIONS, SEVERITIES, corrupt

GAP, LABEL = 4, 112  # pixels between cells, and for the names at the left
HEAD = 16


def contact_sheet(
    image: Tensor,
    *,
    names: Sequence[str] = tuple(CORRUPTIONS),
    severities: Sequence[int] = SEVERITIES,
    cell: int = 112,
    key: str = "",
    seed: int = 0,
) -> Image.Image:
    """A row a corruption: its name, the picture as it is, and at every severity; cells at most `cell` pixels a side.

    image: uint8 [3, h, w]. Corruptions are applied at its own size and shrunk afterwards, so the cells show what
    `corrupt` makes.
    """
    columns = (0, *severities)
    size = (LABEL + len(columns) * (cell + GAP), HEAD + len(names) * (cell + GAP))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for column, severity in enumerate(columns):
        pen.text((LABEL + column * (cell + GAP), 2), f"severity {severity}" if severity else "clean", fill="black")
    for row, name in enumerate(names):
        top = HEAD + row * (cell + GAP)
        pen.text((2, top + cell // 2 - 6), name, fill="black")
        for column, severity in enumerate(columns):
            changed = corrupt(image, name, severity, key=key, seed=seed)
            small = Image.fromarray(changed.permute(1, 2, 0).contiguous().numpy())
            small.thumbnail((cell, cell))
            sheet.paste(small, (LABEL + column * (cell + GAP), top))
    return sheet
