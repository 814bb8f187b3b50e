"""What a model that was trained with tokens relates to what, for a few test pairs: alignment.json."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from eval.view import View
from vlp.explain import Alignment, align
from vlp.trained import knows_tokens

SHOWN_PAIRS, SHOWN_WORDS = 4, 24
SIDE = 224  # longest side of a stored picture


def alignments(view: View, rows: Tensor, place: Tensor, captions: list[str]) -> dict[str, Any] | None:
    """Pairs evenly spread over the data set, each with its picture as the model sees it; None for other models.

    rows: rows of the pictures with captions; place [M]: which of these each caption describes.
    """
    if not knows_tokens(view.encoder.dual):
        return None
    pairs = []
    for number in torch.linspace(0, len(rows) - 1, min(SHOWN_PAIRS, len(rows))).round().long().tolist():
        row, caption = int(rows[number]), int((place == number).nonzero()[0])
        found = align(view.encoder, view.opened.records[view.encoded.kept[row]], captions[caption])
        pairs.append({"image": row, "caption": caption, "picture": _jpeg(found), **_short(found).to_json()})
    return {"schema": 1, "pairs": pairs}


def _short(found: Alignment) -> Alignment:
    """With at most SHOWN_WORDS words: those that fit most patches best, then by score; patches of others get -1."""
    won = torch.bincount(found.best, minlength=len(found.words)).tolist()
    order = sorted(range(len(found.words)), key=lambda n: (won[n], found.words[n].score), reverse=True)
    kept = sorted(order[:SHOWN_WORDS])
    number = torch.full((len(found.words),), -1)
    number[kept] = torch.arange(len(kept))
    return found._replace(words=[found.words[n] for n in kept], best=number[found.best])


def _jpeg(found: Alignment) -> str:
    """The picture as base64 of a JPEG."""
    picture = Image.fromarray(found.picture.permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()
