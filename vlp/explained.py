"""`vlp explain`: a model, a picture and a caption to a sheet of heat maps on disk."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image

from vlp import trained
from vlp.embed import Encoder
from vlp.explain import Alignment, align
from vlp.losses.loss import Loss
from vlp.paths import refuse_url
from vlp.report.alignment import page, summary
from vlp.report.sheet import draw, unseen


class Explanation(NamedTuple):
    """What was found, what to say about it, and the files written."""

    alignment: Alignment
    remarks: list[str]
    files: list[Path]


def write_explanation(
    checkpoint: str,
    image: Path,
    caption: str,
    out: Path,
    *,
    html: bool = False,
    weights: Path | None = None,
    device: str | None = None,
) -> Explanation:
    """Writes the sheet to `out` (a format of Pillow by its ending) and, if asked, a page of the same name."""
    if not caption.strip():
        raise ValueError('the caption is empty; give some words, such as "a red circle"')
    refuse_unwritable(out)
    refuse_url(image)
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    encoder = Encoder(trained.load(checkpoint, weights=weights), device=chosen, quiet=True)
    found = align(encoder, image, caption)
    pair, picture = found.to_json(), Image.fromarray(found.picture.permute(1, 2, 0).contiguous().numpy())
    said = _trained(trained.losses_of(checkpoint) if weights is None else ())
    out.parent.mkdir(parents=True, exist_ok=True)
    draw(pair, picture, trained=said).save(out)
    files, remarks = [out], [summary(pair), said]
    if html:
        files.append(out.with_suffix(".html"))
        files[-1].write_text(page(pair, picture, trained=said), encoding="utf-8")
    elif missing := unseen(caption):
        remarks.append(f"the font of the picture lacks {''.join(sorted(missing)[:8])}: --html shows them")
    return Explanation(found, remarks, files)


def refuse_unwritable(out: Path) -> None:
    """ValueError where Pillow writes no RGB picture to a file of that ending: it only reads many formats."""
    written = Image.registered_extensions().get(out.suffix.lower())
    if written is None:
        raise ValueError(f'--out {out}: no picture format ends in "{out.suffix}"; take .png')
    try:
        Image.new("RGB", (64, 64)).save(io.BytesIO(), written)
    except (KeyError, OSError, ValueError):  # no writer; one whose library is not here; one without colours
        raise ValueError(f"--out {out}: Pillow writes no RGB picture as {written}; take .png") from None


def _trained(losses: tuple[Loss, ...]) -> str:
    """What the run compared of what the maps show."""
    if found := trained.compared(losses):
        return f"Trained with tokens: {'; '.join(found)}."
    if losses:
        return f"Not trained with tokens, only with {', '.join(loss.name for loss in losses)}: expect rough maps."
    return "No run's configuration lies beside this model, so whether it was trained with tokens is not known."
