"""Winoground (arXiv 2204.03162): two pictures and two captions of the same words, and which belongs to which."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from eval.benchmark import BenchmarkPart, Outcome
from eval.heads import Head
from eval.hits import Column, hits_file
from eval.listed import Names, read_items
from eval.mistakes import Mistake, add_mistakes
from eval.score import scores
from eval.two_stage import TOKEN_TIE
from eval.view import View
from vlp.data.captions import Captions
from vlp.data.fields import Fields
from vlp.data.schema import DataError
from vlp.kernels.late import PadMax
from vlp.metrics.interval import of_means
from vlp.metrics.recall import TIE
from vlp.types import BadSampleError

METRICS = ("text_acc", "image_acc", "acc")


class Winoground(BenchmarkPart):
    """Text, image and group score, by CLIP_benchmark's keys `text_acc`, `image_acc` and `acc`; ties are wrong.

    text: each picture prefers its own caption; image: each caption prefers its own picture; group: both. Chance is 1/4,
    1/4 and 1/6. An item is two samples that share `id`, each with its caption; or an entry of the JSON file `items` in
    Winoground's own fields, which names two pictures. `tag` names a field with one tag or a list: scores by tag.
    """

    task: ClassVar[str] = "image_caption_selection"

    id: str = "id"
    caption: Captions = Captions(fields=("caption",))
    items: str | None = None
    pictures: tuple[str, str] = ("image_0", "image_1")
    captions: tuple[str, str] = ("caption_0", "caption_1")
    key: str = "{}"  # makes a sample's key of what `pictures` hold
    tag: str | None = None
    head: Head = "global"
    pad_max: PadMax = "exclude"
    n_boot: int = Field(1000, ge=1)

    def measure(self, view: View) -> Outcome:
        """The three scores, and each by tag; intervals draw items."""
        if self.head != "global":
            view.image_tokens()  # first, so that one pass makes features and tokens
        view.label_reads["scoring"] += 1
        asked, skips = self._samples(view) if self.items is None else self._listed(view)
        if not asked:
            raise DataError(f"{view.dataset}: no item has two pictures and two captions: {dict(skips)}")
        rows = [row for one in asked for row in one.rows for _ in one.texts]
        texts = [text for one in asked for _ in one.rows for text in one.texts]
        found = scores(view, rows, texts, head=self.head, pad_max=self.pad_max).view(-1, 2, 2)
        won = matched(found, tie=TIE if self.head == "global" else TOKEN_TIE)
        outcome = Outcome(metrics={}, n=len(set(rows)), skips=dict(skips), head=self.head)
        outcome.counts = {"images": outcome.n, "items": len(asked)}
        columns: dict[str, Column] = {}
        for suffix, chosen in _by_tag(asked).items():
            names = [f"{name}{suffix}" for name in METRICS]
            outcome.metrics |= dict(zip(names, won[chosen].mean(0).tolist()))
            outcome.ci95 |= dict(zip(names, of_means(won[chosen], n_boot=self.n_boot)))
            outcome.chance |= dict(zip(names, (1 / 4, 1 / 4, 1 / 6)))
            those = set(chosen)
            for name, column in zip(names, won.T.tolist()):
                columns[name] = [hit if place in those else None for place, hit in enumerate(column)]
        keys, said = [one.key for one in asked], [" | ".join(one.texts) for one in asked]
        outcome.files = hits_file("winoground", keys, said, columns, head=self.head)
        wrong = [
            Mistake(one.rows, one.texts, score, ", ".join(one.tags) or None)
            for one, score, hits in zip(asked, found, won)
            if not hits[METRICS.index("acc")]
        ]
        add_mistakes(outcome, "winoground", wrong, items=len(asked), head=self.head)
        return outcome

    def _samples(self, view: View) -> tuple[list[_Asked], Counter[str]]:
        """Items of samples that share an id; skips count samples."""
        members: dict[str, list[tuple[int, str, tuple[str, ...]]]] = defaultdict(list)
        skips = Counter[str]()
        for row in range(len(view.encoded.kept)):
            fields = view.fields(row, (*self.caption.fields, self.id, *filter(None, (self.tag,))))
            try:
                key = fields.find(self.id)
                if key is None:
                    raise BadSampleError("no_id", f"no {self.id}")
                members[str(key)].append((row, self.caption.texts(fields)[0], self._tags(fields)))
            except BadSampleError as error:
                skips[error.reason] += 1
        asked = []
        for key, own in members.items():
            if len(own) == 2:
                (first, one, tags), (second, other, _) = own
                asked.append(_Asked(key, (first, second), (one, other), tags))
            else:
                skips["not_two_pictures"] += len(own)
        return asked, skips

    def _listed(self, view: View) -> tuple[list[_Asked], Counter[str]]:
        """Items of the file; skips count items."""
        assert self.items is not None
        names, asked, skips = Names(view, self.key), list[_Asked](), Counter[str]()
        for number, item in enumerate(read_items(self.items, self.data, view)):
            key = item.fields.find(self.id)
            try:
                first, second = (names.row(item.fields.find(name)) for name in self.pictures)
                one, other = self._captions(item.fields)
                tags = self._tags(item.fields)
            except BadSampleError as error:
                skips[error.reason] += 1
                continue
            asked.append(_Asked(str(number if key is None else key), (first, second), (one, other), tags))
        return asked, skips

    def _captions(self, fields: Fields) -> Iterator[str]:
        for name in self.captions:
            text = fields.find(name)
            if not isinstance(text, str) or not text.strip():
                raise BadSampleError("no_caption", f"no text in {name}")
            yield text.strip()

    def _tags(self, fields: Fields) -> tuple[str, ...]:
        value = fields.find(self.tag) if self.tag is not None else None
        every = value if isinstance(value, list) else [] if value is None else [value]
        return tuple(dict.fromkeys(map(str, every)))


def matched(found: Tensor, *, tie: float) -> Tensor:
    """Zeros and ones [n, 3] of METRICS, of scores [n, picture, caption] whose diagonal is right."""
    right = found.diagonal(dim1=1, dim2=2) - tie  # [n, 2]
    text = (right > torch.stack([found[:, 0, 1], found[:, 1, 0]], dim=1)).all(dim=1)
    image = (right > torch.stack([found[:, 1, 0], found[:, 0, 1]], dim=1)).all(dim=1)
    return torch.stack([text, image, text & image], dim=1).double()


class _Asked(NamedTuple):
    """One item: caption i is true of the picture in row i."""

    key: str
    rows: tuple[int, int]
    texts: tuple[str, str]
    tags: tuple[str, ...]


def _by_tag(asked: list[_Asked]) -> dict[str, list[int]]:
    """The items that each metric's suffix is about."""
    found: dict[str, list[int]] = {"": list(range(len(asked)))}
    for place, one in enumerate(asked):
        for tag in one.tags:
            found.setdefault(f"_{tag}", []).append(place)
    return found
