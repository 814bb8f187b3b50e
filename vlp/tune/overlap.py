"""Pictures that stand in two splits, whatever their order and whatever stands beside them."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vlp.adapters.task import Examples
from vlp.pictures import read_picture

ROUNDING = 2.0**-22  # numbers of unit rows that are closer than this differ by how they were scaled and stored
NEAR = 1e-5  # the same of features of pictures, which depend on what stood beside them in the batch
LINES = 8  # directions that rows are compared along before they are compared whole
ROWS = 65536  # rows in fp64 at once


def shared_rows(own: Examples, other: Examples) -> list[int]:
    """Rows of `own` that are pictures of `other`, ascending.

    Features alone are the same where no number differs by more than rounding. Pictures must also be of the same bytes,
    which only those of equal features are read for. Rows are sorted along a random line, so that each is compared with
    the few that lie beside it there.
    """
    with_pictures = own.pictures is not None and other.pictures is not None
    near = NEAR if with_pictures else ROUNDING
    digests = [_Digests(part.pictures) for part in (own, other)]
    width = own.image.shape[1]
    lines = torch.randn(width, LINES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mine, theirs = (_along(part.image, lines / lines.norm(dim=0)) for part in (own, other))
    order = theirs[:, 0].argsort()
    theirs, reach = theirs[order], near * width**0.5  # how far apart the same rows can be along a unit line
    first = torch.searchsorted(theirs[:, 0].contiguous(), (mine[:, 0] - reach).contiguous())
    last = torch.searchsorted(theirs[:, 0].contiguous(), (mine[:, 0] + reach).contiguous(), right=True)
    found = torch.zeros(len(own), dtype=torch.bool)
    open_, step = torch.where(first < last)[0], 0
    while len(open_):
        place = first[open_] + step
        close = ((mine[open_] - theirs[place]).abs() <= reach).all(dim=1)
        rows, places = open_[close], order[place[close]]
        equal = ((own.image[rows] - other.image[places]).abs() <= near).all(dim=1)
        for row, twin in zip(rows[equal].tolist(), places[equal].tolist(), strict=True):
            found[row] = not with_pictures or digests[0][row] == digests[1][twin]
        step += 1
        open_ = open_[(first[open_] + step < last[open_]) & ~found[open_]]
    return torch.where(found)[0].tolist()


class _Digests(dict[int, bytes]):
    """Hash of each picture's content, made when it is asked for."""

    def __init__(self, pictures: Any) -> None:
        super().__init__()
        self.pictures = pictures

    def __missing__(self, row: int) -> bytes:
        content = read_picture(self.pictures[row])
        found = hashlib.sha256(content if isinstance(content, bytes) else content.tobytes()).digest()
        self[row] = found
        return found


def _along(image: Float[Tensor, "n D"], lines: Float[Tensor, "D L"]) -> Float[Tensor, "n L"]:
    return torch.cat([part.double() @ lines for part in image.split(ROWS)])
