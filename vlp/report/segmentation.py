"""Segmentation: intersection over union by class, and the classes found laid over pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vlp.report.bars import percent
from vlp.report.classes import ByClass, by_class
from vlp.report.corruptions import decoded
from vlp.report.grids import Thumbnails
from vlp.report.page import Html, join, section, tag
from vlp.report.progress import number
from vlp.report.read import Artefacts

SHOWN, SIDE, LEAST = 12, 460, 256
_NOTE = "The classes of the mask on the left, those found on the right; pictures are not chosen by result."


def segmentation(artefacts: Artefacts, thumbnails: Thumbnails) -> Html:
    """A section a file `segmentation*.json`, as benchmarks with several ways to segment leave several."""
    files = {stem: file for stem, file in artefacts.files.items() if stem.startswith("segmentation")}
    return join(_section(stem, file, artefacts, thumbnails) for stem, file in files.items())


def _section(stem: str, file: Mapping[str, Any], artefacts: Artefacts, thumbnails: Thumbnails) -> Html:
    how = str(file.get("name") or stem.removeprefix("segmentation").replace("_", " ").strip())
    known = {str(name): number(value) for name, value in (file.get("iou") or {}).items()}
    pixels = file.get("pixels") or {}
    rows = [ByClass(name, value, pixels.get(name)) for name, value in known.items()]
    shown = [_overlay(one, artefacts, thumbnails) for one in (file.get("overlays") or [])[:SHOWN]]
    pictures = tag("div", *shown, class_="pair") if shown else None
    title = f"Segmentation: {artefacts.name}" + (f", {how}" if how else "")
    table = by_class("Intersection over union by class", ("IoU", "Pixels"), rows)
    return section(title, pictures, table or None, note=_NOTE if shown else None)


def _overlay(one: Mapping[str, Any], artefacts: Artefacts, thumbnails: Thumbnails) -> Html:
    row, right = int(one["row"]), number(one.get("pixel_accuracy"))
    alt = f"true classes and classes found in picture {row} of {artefacts.name}"
    over = thumbnails.inside(decoded(one["png"]), alt=alt, side=SIDE, least=LEAST)
    said = f"{percent(right)} of the pixels right " if right is not None else None
    chips = [_chip(str(name), str(colour)) for name, colour in (one.get("legend") or {}).items()]
    return tag("div", over, tag("div", said, *chips, class_="cap"), class_="picture overlay")


def _chip(name: str, colour: str) -> Html:
    """A class's name behind a spot of its colour."""
    known = colour if re.fullmatch(r"#[0-9a-f]{6}", colour) else "transparent"
    return tag("span", tag("i", style=f"background:{known}"), name, class_="chip")
