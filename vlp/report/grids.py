"""What the model found: queries drawn by a fixed seed, with their results; and the pictures of a page."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from vlp.report.page import Html, figure, join, section, tag
from vlp.report.read import Artefacts
from vlp.report.thumbnail import embedded, thumbnail

Entry = Mapping[str, Any]
QUERIES = 10  # of each direction and data set
SEED = 0
SIDE, LEAST = 128, 96  # longest side of a picture in the page, and how large a smaller one is shown
_LABELLED = {"text_to_image": "Caption", "class_to_image": "Class", "image_to_image": "Picture"}
BUDGET = 4_500_000  # bytes of pictures in the whole page, base64 included
TYPICAL = 5_000  # bytes of one of them


class Thumbnails:
    """Pictures of the page as data URIs, at most BUDGET bytes of them; `left_out` counts what did not fit."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._left = self._allowed = budget
        self.left_out = 0

    def share(self, parts: int) -> None:
        """From here on no more than one of `parts` equal parts of what is left, so that the last gets its own."""
        self._allowed = self._left // max(1, parts)

    def fits(self, each: int, most: int) -> int:
        """How many rows of `each` pictures half of the share has room for, 1 to `most`: rows are whole or not there."""
        return max(1, min(most, self._allowed // (2 * TYPICAL * each)))

    def picture(self, artefacts: Artefacts, row: int) -> Html:
        """An img of at most 128 px, or a box that says why there is none."""
        path = artefacts.folder / "thumbnails" / f"{int(row)}.jpg"
        if not path.is_file():
            return tag("span", "not stored", class_="blank")
        return self.inside(path.read_bytes(), alt=f"picture {row} of {artefacts.name}", side=SIDE, least=LEAST)

    def inside(self, data: bytes, *, alt: str, side: int, least: int = 0) -> Html:
        """The picture, written anew as a JPEG of at most `side` pixels, or a box that says why there is none."""
        small = thumbnail(data, side)
        if small is None:
            return tag("span", "unreadable", class_="blank")
        shown = embedded(small, alt=alt, least=least)
        if len(shown) > self._allowed:
            self.left_out += 1
            return tag("span", "left out", class_="blank")
        self._left -= len(shown)
        self._allowed -= len(shown)
        return shown


def retrieval(artefacts: Artefacts, thumbnails: Thumbnails) -> Html:
    """Sampled queries of both directions with the five best each, a section a head; and those that ask by label."""
    found = [_found(title, file, artefacts, thumbnails) for title, file in artefacts.by_heads("retrieval")]
    labelled = [_labelled(title, file, artefacts, thumbnails) for title, file in artefacts.by_heads("label_retrieval")]
    return join(found + labelled)


def _found(title: str, file: Entry, artefacts: Artefacts, thumbnails: Thumbnails) -> Html:
    stored = [file.get(name) or [] for name in ("text_to_image", "image_to_text")]
    count = thumbnails.fits(7, QUERIES)  # five found, the right one, and the picture of a query the other way
    texts, images = sample(stored[0], count), sample(stored[1], count)
    if not texts and not images:
        return Html("")
    pictures, captions = figure(file.get("num_images")), figure(file.get("num_texts"))
    note = (
        f"{len(texts)} of {len(stored[0])} stored captions and {len(images)} of {len(stored[1])} stored pictures, "
        f"drawn with seed {SEED} and not chosen by result. Searched: all {pictures} pictures and "
        f"{captions} captions. "
        "Right answers are green; the rank is that of the best right answer."
    )
    own = _captions(artefacts)
    parts = [tag("h3", "Caption → pictures")] if texts else []
    parts += [_text_query(query, artefacts, thumbnails, count=pictures) for query in texts]
    parts += [tag("h3", "Picture → captions")] if images else []
    parts += [_image_query(query, artefacts, thumbnails, own, count=captions) for query in images]
    return section(f"What queries find: {title}", *parts, note=note)


def _labelled(title: str, file: Entry, artefacts: Artefacts, thumbnails: Thumbnails) -> Html:
    """Queries to which every picture of their label is a right answer."""
    count, parts = figure(file.get("num_images")), []
    for kind, heading in _LABELLED.items():
        if queries := sample(file.get(kind) or [], thumbnails.fits(6, QUERIES)):
            shown = [_text_query(query, artefacts, thumbnails, count=count) for query in queries]
            parts += [tag("h3", f"{heading} → pictures of the same label"), *shown]
    note = f"At most {QUERIES} queries of each kind, drawn with seed {SEED} and not chosen by result. Right are green."
    return section(f"What queries find: {title}, by label", *parts, note=note)


def sample(queries: Sequence[Entry], count: int = QUERIES) -> list[Entry]:
    """The same `count` queries every time, whatever the model found for them."""
    order = random.Random(SEED).sample(range(len(queries)), min(count, len(queries)))
    return [queries[i] for i in order]


def _captions(artefacts: Artefacts) -> dict[int, list[str]]:
    """Captions by row of the picture they describe."""
    found: dict[int, list[str]] = {}
    items = artefacts.items
    for text, row in zip(items.get("captions") or [], items.get("caption_image") or [], strict=False):
        found.setdefault(int(row), []).append(str(text))
    return found


def _text_query(query: Entry, artefacts: Artefacts, thumbnails: Thumbnails, *, count: str) -> Html:
    hits = [
        picture(thumbnails.picture(artefacts, row), f"{score:.3f}", right=correct)
        for row, score, correct in zip(query["found"], query["scores"], query["correct"], strict=False)
    ]
    if not any(query["correct"]):
        truth = picture(thumbnails.picture(artefacts, query["image"]), "the right one", right=True)
        hits.append(tag("div", truth, class_="apart"))
    row, label = query.get("query"), query.get("label")  # the picture that asks, and what for, of queries by label
    said = cut(query["text"], 240) if row is None else thumbnails.picture(artefacts, row)
    word = tag("div", f"label {label}", class_="rank") if label is not None else None
    ask = tag("div", said, word, _rank(query, count), class_="ask")
    return tag("div", ask, tag("div", *hits, class_="pictures"), class_="query")


def _image_query(
    query: Entry, artefacts: Artefacts, thumbnails: Thumbnails, captions: Mapping[int, Sequence[str]], *, count: str
) -> Html:
    hits = [
        tag("li", cut(text, 200), " ", tag("span", f"{score:.3f}", class_="score"), class_="right" if right else None)
        for text, score, right in zip(query["texts"], query["scores"], query["correct"], strict=False)
    ]
    truth = captions.get(int(query["image"]), [])
    own = tag("p", "Its own: ", cut(truth[0], 200), class_="note") if truth and not any(query["correct"]) else None
    ask = tag("div", thumbnails.picture(artefacts, query["image"]), _rank(query, count), class_="ask")
    return tag("div", ask, tag("div", tag("ol", *hits, class_="texts"), own), class_="query")


def _rank(query: Entry, count: str) -> Html:
    return tag("div", f"rank {figure(query.get('rank'))} of {count}", class_="rank")


def picture(image: Html, caption: Any, *, right: bool = False) -> Html:
    """A picture over its caption, framed where it is the right one."""
    return tag("div", image, tag("div", caption, class_="cap"), class_="picture right" if right else "picture")


def cut(text: str, length: int) -> str:
    """The text on one line, shortened at a word with an ellipsis."""
    text = " ".join(str(text).split())
    return text if len(text) <= length else text[:length].rsplit(" ", 1)[0] + " …"
