"""Which patches go with which words: heat maps of one caption over one picture, as HTML and as one picture."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vlp.report.heat import COLOURS, NOBODY, enlarged, heat, regions
from vlp.report.page import Html, document, section, tag
from vlp.report.read import Artefacts
from vlp.report.thumbnail import embedded, thumbnail

Pair = Mapping[str, Any]  # what `vlp.explain.Alignment.to_json` says
SIDE = 128  # of a picture in the page
HOW = (
    "A word's map is the cosine of its tokens with each patch (mean over its tokens), from the lowest, dark, to the "
    "highest, light, of that map; both are written below it. A word's score is the mean over its tokens of their best "
    "patch. The caption's map is the cosine of the patches with the pooled text. Grey patches fit the marks of start "
    "and end best. A tower that reads from left to right lets a word speak of those before it, too."
)
TAUGHT = (
    "The words' maps are what the loss filip trains. wukong compares words with mixtures of the patches, dreamlip "
    "patches with whole captions, flair these through projections of its own: in their models no loss has made the "
    "words' maps."
)


class Panel(NamedTuple):
    """One picture of the sheet; of a word also its score and its colour among the patches."""

    picture: Any
    title: str
    note: str
    score: str = ""
    colour: tuple[int, int, int] | None = None


def panels(pair: Pair, picture: Any, *, side: int) -> Iterator[Panel]:
    """The picture, the caption's map, the best word of each patch, then each word's map."""
    rows, columns = pair["grid"]
    colours = _colours(pair)
    yield Panel(enlarged(picture, side=side), "the picture", f"{rows} x {columns} patches")
    yield Panel(heat(picture, pair["phrase"], (rows, columns), side=side), "whole caption", _range(pair["phrase"]))
    best = [colours.get(number, NOBODY) for number in pair["best"]]
    yield Panel(regions(picture, best, (rows, columns), side=side), "best word of a patch", _shares(pair))
    for number, word in enumerate(pair["words"]):
        if not word["special"]:
            shown = heat(picture, word["map"], (rows, columns), side=side)
            yield Panel(shown, word["text"], _range(word["map"]), f"{word['score']:.3f}", colours.get(number))


def summary(pair: Pair) -> str:
    """The similarities in one line."""
    tokens = f", over {pair['reduced']} tokens made of the patches" if pair.get("reduced") else ""
    return (
        f"cosine of the pooled features {pair['cosine']:.3f}; by tokens: picture to caption "
        f"{pair['image_to_text']:.3f}, caption to picture {pair['text_to_image']:.3f}{tokens}"
    )


def grids(artefacts: Artefacts) -> Html:
    """The stored pairs of a data set, or nothing where there are none."""
    pairs = artefacts.alignment.get("pairs") or []
    shown = [_block(pair, _opened(pair["picture"])) for pair in pairs]
    note = f"{len(pairs)} pairs, evenly spread over the data set and not chosen by result. {HOW} {TAUGHT}"
    return section(f"What words look at: {artefacts.name}", *shown, note=note)


def page(pair: Pair, picture: Any, *, trained: str) -> str:
    """A page about one pair, which needs nothing beside itself."""
    return document(
        f"vlp explain: {pair['text']}", section(pair["text"], _block(pair, picture), note=f"{trained} {HOW}")
    )


def _block(pair: Pair, picture: Any) -> Html:
    shown = [
        tag(
            "div",
            _image(panel),
            tag(
                "div", _chip(panel.colour), tag("b", panel.title), " ", panel.score, tag("br"), panel.note, class_="cap"
            ),
            class_="picture",
        )
        for panel in panels(pair, picture, side=SIDE)
    ]
    return tag(
        "div",
        tag("h3", pair["text"]),
        tag("p", summary(pair), class_="note"),
        tag("div", *shown, class_="pictures"),
    )


def _image(panel: Panel) -> Html:
    jpeg = thumbnail(panel.picture, SIDE)
    assert jpeg is not None
    return embedded(jpeg, alt=f"{panel.title}: {panel.note}", least=SIDE)


def _chip(colour: tuple[int, int, int] | None) -> Html | None:
    if colour is None:
        return None
    style = f"display:inline-block;width:9px;height:9px;border-radius:2px;margin-right:4px;background:rgb{colour}"
    return tag("span", style=style)


def _opened(picture: str) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(picture)))


def _colours(pair: Pair) -> dict[int, tuple[int, int, int]]:
    """Of each word that fits a patch best, by its number; those of most patches surely differ."""
    return {number: COLOURS[place % len(COLOURS)] for place, (number, _) in enumerate(_winners(pair))}


def _winners(pair: Pair) -> list[tuple[int, int]]:
    """Numbers of words, without the marks of start and end, with their patches; most patches first."""
    counts: Counter[int] = Counter(n for n in pair["best"] if n >= 0 and not pair["words"][n]["special"])
    return counts.most_common()


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.3f} to {max(values):.3f}"


def _shares(pair: Pair) -> str:
    """How many patches fit no word best, and the word that has most."""
    winners = _winners(pair)
    grey = len(pair["best"]) - sum(count for _, count in winners)
    said = [f"{pair['words'][number]['text']} {count}" for number, count in winners[:1]]
    return ", ".join([*said, *([f"grey {grey}"] if grey else [])])
