"""R@10 of storybook pages by language, of single runs and of ensembles: means over seeds, intervals over pages.

    python runs/storybook_table.py OUT     (OUT: what runs/storybook.sh wrote)

"both" is the mean of text to image and image to text of each page; the intervals draw pages (10,000 times), the runs
averaged first. In bold: above chance.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from vlp.metrics.interval import of_means

LANGUAGES = ("en", "sw", "fr", "pt", "de", "zh")
TOP = 10
WAYS = ("text_to_image", "image_to_text")


def main() -> None:
    out = Path(sys.argv[1])
    for arm in ("sentencepiece", "bpe"):
        for kind, pattern in (("runs", f"{arm}-seed*"), ("ensembles", f"ensembles/{arm}-*")):
            folders = sorted(out.glob(pattern + "/eval"))
            if folders:
                print(f"\n{arm}, mean of {len(folders)} {kind}\n")
                print(
                    "| language | gallery | chance | text to image | image to text | both |\n|---|---|---|---|---|---|"
                )
                for language in LANGUAGES:
                    print(row(language, [folder / f"storybook-test-{language}" for folder in folders]))


def row(language: str, folders: list[Path]) -> str:
    """One line of the table."""
    to_image, to_text = (torch.stack([hits(folder, way) for folder in folders]).mean(dim=0) for way in WAYS)
    chance = TOP / len(to_image)
    cells = [said(part, chance) for part in (to_image, to_text, (to_image + to_text) / 2)]
    return " | ".join([f"| {language}", str(len(to_image)), f"{100 * chance:.1f}", *cells]) + " |"


def hits(folder: Path, way: str) -> Tensor:
    """Of every page whether the right answer was among the first ten; a page has one caption of a language."""
    ranks = json.loads((folder / "ranks.json").read_text(encoding="utf-8"))
    if ranks["caption_image"] != list(range(len(ranks["keys"]))):
        raise ValueError(f"{folder}: a page has several captions, which the mean of both ways cannot pair")
    return (torch.tensor(ranks[way]) <= TOP).double()


def said(each: Tensor, chance: float) -> str:
    """The mean in percent with its interval, bold where this lies above chance."""
    (interval,) = of_means(each[:, None], n_boot=10_000)
    text = f"{100 * float(each.mean()):.1f} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"
    return f"**{text}**" if interval.low > chance else text


if __name__ == "__main__":
    main()
