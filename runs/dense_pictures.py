"""Sheets (PNG) of what evaluations of pixels left: overlays of classes, and maps of anomalies beside their pictures.

    python runs/dense_pictures.py runs/out/dense/nuclei runs/out/dense/defects --out runs/out/dense/pictures

Overlays have the true classes on the left and those found on the right. Of anomalies the picture stands over its map,
from its own lowest, dark, to its own highest, light; anomalous pictures spread evenly, not chosen by result.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from vlp.report.heat import heat

SIDE, GAP = 160, 6


def stacked(pictures: list[Any], *, columns: int) -> Any:
    """The pictures in rows on white."""
    width, height = (max(picture.size[axis] for picture in pictures) + GAP for axis in (0, 1))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (width * columns, height * rows), (255, 255, 255))
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % columns * width, number // columns * height))
    return sheet


def overlays(file: dict[str, Any]) -> list[Any]:
    """The overlays of a segmentation file."""
    return [Image.open(io.BytesIO(base64.b64decode(one["png"]))).convert("RGB") for one in file["overlays"]]


def maps(file: dict[str, Any], thumbnails: Path) -> list[Any]:
    """Pictures over their maps, of an anomaly file that has maps."""
    if file["grid"] is None:
        return []
    down, across = file["grid"]
    made = []
    for one in file["spread"]:
        with Image.open(thumbnails / f"{one['row']}.jpg") as opened:
            picture = opened.convert("RGB").resize((SIDE, SIDE))
        shown = heat(Image.new("L", (SIDE, SIDE), 128), one["map"], (down, across), side=SIDE).convert("RGB")
        made.append(stacked([picture, shown], columns=1))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="folders of `vlp eval --out`")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for folder in given.results:
        for path in sorted(folder.glob("eval/*/*.json")):
            kind = path.stem.partition("_")[0]
            if kind not in ("segmentation", "anomaly"):
                continue
            file = json.loads(path.read_text(encoding="utf-8"))
            found = overlays(file) if kind == "segmentation" else maps(file, path.parent / "thumbnails")
            if found:
                stacked(found, columns=2 if kind == "segmentation" else 6).save(
                    given.out / f"{path.parent.name}-{path.stem}.png"
                )


if __name__ == "__main__":
    main()
