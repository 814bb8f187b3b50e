"""What the model found: queries drawn by a fixed seed with their results, and the classes it mixes up."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from vlp.report.page import Html, figure, fold, section, table, tag
from vlp.report.read import Artefacts
from vlp.report.thumbnail import embedded, thumbnail

Entry = Mapping[str, Any]
QUERIES = 10  # of each direction and data set
SEED = 0
SIDE, LEAST = 128, 96  # longest side of a picture in the page, and how large a smaller one is shown
BUDGET = 4_500_000  # bytes of pictures in the whole page, base64 included


class Thumbnails:
    """Pictures of the page as data URIs, at most BUDGET bytes of them; `left_out` counts what did not fit."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._left = budget
        self.left_out = 0

    def picture(self, artefacts: Artefacts, row: int) -> Html:
        """An img of at most 128 px, or a box that says why there is none."""
        path = artefacts.folder / "thumbnails" / f"{row}.jpg"
        if not path.is_file():
            return tag("span", "not stored", class_="blank")
        small = thumbnail(path.read_bytes(), SIDE)
        if small is None:
            return tag("span", "unreadable", class_="blank")
        shown = embedded(small, alt=f"picture {row} of {artefacts.name}", least=LEAST)
        if len(shown) > self._left:
            self.left_out += 1
            return tag("span", "left out", class_="blank")
        self._left -= len(shown)
        return shown


def retrieval(artefacts: Artefacts, thumbnails: Thumbnails) -> Html:
    """Sampled queries of both directions with the five best each."""
    stored = [artefacts.retrieval.get(name) or [] for name in ("text_to_image", "image_to_text")]
    texts, images = sample(stored[0]), sample(stored[1])
    if not texts and not images:
        return Html("")
    num_images, num_texts = artefacts.retrieval.get("num_images"), artefacts.retrieval.get("num_texts")
    note = (
        f"{len(texts)} of {len(stored[0])} stored captions and {len(images)} of {len(stored[1])} stored pictures, "
        f"drawn with seed {SEED} and not chosen by result. Searched: all {figure(num_images)} pictures and "
        f"{figure(num_texts)} captions. "
        "Right answers are green; the rank is that of the best right answer."
    )
    captions = _captions(artefacts)
    parts = [tag("h3", "Caption → pictures")] if texts else []
    parts += [_text_query(query, artefacts, thumbnails) for query in texts]
    parts += [tag("h3", "Picture → captions")] if images else []
    parts += [_image_query(query, artefacts, thumbnails, captions) for query in images]
    return section(f"What queries find: {artefacts.name}", *parts, note=note)


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


def _text_query(query: Entry, artefacts: Artefacts, thumbnails: Thumbnails) -> Html:
    hits = [
        _picture(thumbnails.picture(artefacts, row), f"{score:.3f}", right=correct)
        for row, score, correct in zip(query["found"], query["scores"], query["correct"], strict=False)
    ]
    if not any(query["correct"]):
        truth = _picture(thumbnails.picture(artefacts, query["image"]), "the right one", right=True)
        hits.append(tag("div", truth, class_="apart"))
    count = artefacts.retrieval.get("num_images")
    ask = tag("div", cut(query["text"], 240), _rank(query, count), class_="ask")
    return tag("div", ask, tag("div", *hits, class_="pictures"), class_="query")


def _image_query(
    query: Entry, artefacts: Artefacts, thumbnails: Thumbnails, captions: Mapping[int, Sequence[str]]
) -> Html:
    hits = [
        tag("li", cut(text, 200), " ", tag("span", f"{score:.3f}", class_="score"), class_="right" if right else None)
        for text, score, right in zip(query["texts"], query["scores"], query["correct"], strict=False)
    ]
    truth = captions.get(int(query["image"]), [])
    own = tag("p", "Its own: ", cut(truth[0], 200), class_="note") if truth and not any(query["correct"]) else None
    count = artefacts.retrieval.get("num_texts")
    ask = tag("div", thumbnails.picture(artefacts, query["image"]), _rank(query, count), class_="ask")
    return tag("div", ask, tag("div", tag("ol", *hits, class_="texts"), own), class_="query")


def _rank(query: Entry, count: Any) -> Html:
    return tag("div", f"rank {figure(query.get('rank'))} of {figure(count)}", class_="rank")


def _picture(image: Html, caption: str, *, right: bool) -> Html:
    return tag("div", image, tag("div", caption, class_="cap"), class_="picture right" if right else "picture")


def cut(text: str, length: int) -> str:
    """The text on one line, shortened at a word with an ellipsis."""
    text = " ".join(str(text).split())
    return text if len(text) <= length else text[:length].rsplit(" ", 1)[0] + " …"


def confusion(artefacts: Artefacts, thumbnails: Thumbnails, *, pairs: int = 8) -> Html:
    """The pairs of classes mixed up most, with pictures, and the recall of every class."""
    names = [str(name) for name in artefacts.confusion.get("names") or []]
    if not names:
        return Html("")
    support, recall = artefacts.confusion.get("support") or [], artefacts.confusion.get("recall") or []
    worst = sorted(artefacts.confusion.get("pairs") or [], key=lambda pair: -pair["count"])[:pairs]
    rows = [_mixed(pair, names, support, artefacts, thumbnails) for pair in worst]
    head = ["Is", "Taken for", "Times", "Of", "For example"]
    parts = [tag("h3", "Most confused"), table(head, rows, numeric=(2, 3))] if rows else []
    return section(f"Classes: {artefacts.name}", *parts, _recalls(names, support, recall))


def _mixed(
    pair: Entry, names: Sequence[str], support: Sequence[int], artefacts: Artefacts, thumbnails: Thumbnails
) -> list[Any]:
    true, predicted = int(pair["true"]), int(pair["predicted"])
    pictures = [_picture(thumbnails.picture(artefacts, row), "", right=False) for row in pair["examples"][:4]]
    of = support[true] if true < len(support) else None
    shown = tag("div", *pictures, class_="pictures")
    return [names[true], names[predicted], figure(pair["count"]), figure(of), shown]


def _recalls(names: Sequence[str], support: Sequence[int], recall: Sequence[float]) -> Html:
    ordered = sorted(zip(names, support, recall, strict=False), key=lambda one: (-(one[2] or 0.0), one[0]))
    rows = [
        [name, _meter(value or 0.0), f"{100 * (value or 0.0):.1f} %", figure(count)] for name, count, value in ordered
    ]
    if not rows:
        return Html("")
    half = (len(rows) + 1) // 2 if len(rows) > 6 else len(rows)
    head = ["Class", "", "Accuracy", "n"]
    columns = [table(head, part, numeric=(2, 3)) for part in (rows[:half], rows[half:]) if part]
    shown = tag("div", *columns, class_="pair")
    title = "Accuracy of each class"
    return fold(f"{title} ({len(rows)})", shown) if len(rows) > 60 else Html(tag("h3", title) + shown)


def _meter(share: float) -> Html:
    return tag("span", tag("i", style=f"width:{100 * share:.1f}%"), class_="meter")
