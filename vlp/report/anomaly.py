"""Anomalies: the normal pictures that score most and the anomalous ones that score least, with where they score."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from vlp.report.grids import SIDE, Thumbnails, picture
from vlp.report.heat import heat
from vlp.report.page import Html, join, section, tag
from vlp.report.read import Artefacts

NOTE = (
    "The worst mistakes, so no fair picture of the whole. Beside each picture the scores of the patches that the model "
    "saw of it, from its own lowest, dark, to its own highest, light."
)
_HOW = {
    "anomaly": "",
    "anomaly_reference": "beside normal pictures",
    "anomaly_maskclip": "by value patches",
    "anomaly_reference_maskclip": "by value patches, beside normal pictures",
    "anomaly_adaptclip": "AdaptCLIP",
    "anomaly_adaptclip_reference": "AdaptCLIP beside normal pictures",
}


def anomalies(artefacts: Artefacts, thumbnails: Thumbnails) -> Html:
    """A section with words alone, and one with normal pictures for reference."""
    return join(
        _section(", ".join(filter(None, (artefacts.name, how))), artefacts.files.get(stem) or {}, artefacts, thumbnails)
        for stem, how in _HOW.items()
    )


def _section(title: str, file: Mapping[str, Any], artefacts: Artefacts, thumbnails: Thumbnails) -> Html:
    grid, examples, parts = file.get("grid"), file.get("examples") or [], []
    for anomalous, heading in ((False, "Normal, and scored most"), (True, "Anomalous, and scored least")):
        own = [one for one in examples if bool(one["anomalous"]) is anomalous]
        shown = [_example(one, grid, artefacts, thumbnails) for one in own]
        parts += [tag("h3", heading), tag("div", *shown, class_="pictures")] if shown else []
    return section(f"Anomalies: {title}", *parts, note=NOTE)


def _example(one: Mapping[str, Any], grid: Any, artefacts: Artefacts, thumbnails: Thumbnails) -> Html:
    plain = picture(thumbnails.picture(artefacts, one["row"]), f"{one['object']} {float(one['score']):.3f}")
    if one.get("map") is None or grid is None:
        return plain
    return tag(
        "div", plain, picture(_map(one, (int(grid[0]), int(grid[1])), thumbnails), "by patch"), class_="pictures"
    )


def _map(one: Mapping[str, Any], grid: tuple[int, int], thumbnails: Thumbnails) -> Html:
    """The scores over grey and not over the picture, of which the model may see a part."""
    from PIL import Image

    out = io.BytesIO()
    heat(Image.new("L", (grid[1], grid[0]), 128), one["map"], grid, side=SIDE).save(out, "PNG")
    return thumbnails.inside(out.getvalue(), alt=f"where picture {one['row']} scores", side=SIDE)
