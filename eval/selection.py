"""Caption selection: one true caption of a picture, n - 1 false ones (SugarCrepe, arXiv 2306.14610; ARO 2210.01936)."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from eval.benchmark import BenchmarkPart, Outcome
from eval.heads import Head, file_name
from eval.hits import Column, hits_file, picture_keys
from eval.listed import Box, Cutter, Files, Names, cut_out, read_box, read_items
from eval.mistakes import Mistake, add_mistakes
from eval.score import scores
from eval.two_stage import TOKEN_TIE
from eval.view import View
from vlp.data.fields import Fields
from vlp.data.schema import DataError
from vlp.kernels.late import PadMax
from vlp.metrics.interval import Interval, of_means
from vlp.metrics.recall import TIE
from vlp.types import BadSampleError


class Selection(BenchmarkPart):
    """Share of items whose true caption scores higher than every false one; chance 1/n, ties are wrong.

    An item is a sample, or an entry of the JSON file `items`, whose field `picture` names a sample's key; files by name
    (SugarCrepe's seven) give `acc_NAME` each. The first of `captions` and of `negatives` that is there counts; the
    latter may be a list. `options` instead names one field with all texts, the true one first: a list (ARO's order) or
    lines (`txt` in CLIP_benchmark's webdatasets). `box` is what is cut out of the picture, as ARO does for its Visual
    Genome parts. `macro_acc` is the mean over the values of `group` (a list's values are joined by "_") with at least
    `min_group` items, or else over the files.
    """

    task: ClassVar[str] = "image_caption_selection"

    items: Files | None = None
    picture: tuple[str, ...] = ("filename", "image_path", "image")
    key: str = "{}"  # makes a sample's key of what `picture` holds
    captions: tuple[str, ...] = ("caption", "true_caption")
    negatives: tuple[str, ...] = ("negative_caption", "false_caption")
    options: str | None = None
    box: str | tuple[str, str, str, str] | None = None  # field or fields with left, top, width, height
    group: str | None = None
    min_group: int = Field(1, ge=1)
    head: Head = "global"
    pad_max: PadMax = "exclude"
    n_boot: int = Field(1000, ge=1)

    def measure(self, view: View) -> Outcome:
        """CLIP_benchmark's `acc`, acc_FILE and macro_acc; intervals draw pictures."""
        if self.head != "global" and self.box is None:
            view.image_tokens()  # first, so that one pass makes features and tokens
        asked, skips = self._read(view)
        cut = cut_out(view, [(one.row, one.box) for one in asked], Cutter())
        if self.head != "global":
            cut.view.image_tokens()
        rows = cut.rows()
        usable = [one for one in asked if (one.row, one.box) in rows]
        skips = skips + Counter(unreadable_crop=len(asked) - len(usable)) + Counter(cut.skips())
        if not usable:
            raise DataError(f"{view.dataset}: no item has a picture, a true and a false caption: {dict(skips)}")
        own = [rows[one.row, one.box] for one in usable]
        repeated = [row for row, one in zip(own, usable) for _ in one.texts]
        words = [text for one in usable for text in one.texts]
        found = scores(cut.view, repeated, words, head=self.head, pad_max=self.pad_max)
        tie = TIE if self.head == "global" else TOKEN_TIE
        each = found.split([len(one.texts) for one in usable])
        won = [bool(score[0] - tie > score[1:].amax()) for score in each]
        outcome = self._outcome(usable, torch.tensor(won).double())
        outcome.skips = dict(skips)
        outcome.files |= self._hits(picture_keys(cut.view, own), usable, won)
        wrong = [_mistake(one, score) for one, score, hit in zip(usable, each, won) if not hit]
        add_mistakes(outcome, "caption_selection", wrong, items=len(usable), head=self.head)
        return outcome

    def _outcome(self, asked: list[_Asked], won: Tensor) -> Outcome:
        groups = torch.tensor([one.row for one in asked])
        outcome = Outcome(metrics={}, n=len(set(groups.tolist())), head=self.head)
        outcome.counts = {"images": outcome.n, "items": len(asked)}
        for name, chosen in _columns(asked).items():
            outcome.metrics[name] = float(won[chosen].mean())
            outcome.chance[name] = _chance([asked[i] for i in chosen])
            outcome.ci95[name] = of_means(won[chosen][:, None], groups=groups[chosen], n_boot=self.n_boot)[0]
        same = sum(one.texts[0] in one.texts[1:] for one in asked)
        outcome.counts |= {"true_among_false": same} if same else {}
        members = _members([one.group for one in asked])
        if members:
            self._macro(outcome, asked, won, members)
        return outcome

    def _macro(self, outcome: Outcome, asked: list[_Asked], won: Tensor, members: dict[str, list[int]]) -> None:
        """Adds the mean over groups; each group's own number goes into a file, since ARO has hundreds."""
        large = {name: places for name, places in members.items() if len(places) >= self.min_group}
        if not large:
            raise DataError(f"min_group: {self.min_group}, but the largest group has {max(map(len, members.values()))}")
        chosen = [place for places in large.values() for place in places]
        kinds = torch.tensor([number for number, places in enumerate(large.values()) for _ in places])
        rows = torch.tensor([asked[place].row for place in chosen])
        outcome.metrics["macro_acc"] = math.fsum(float(won[places].mean()) for places in large.values()) / len(large)
        each = [_chance([asked[place] for place in places]) for places in large.values()]
        outcome.chance["macro_acc"] = math.fsum(each) / len(large)
        outcome.ci95["macro_acc"] = macro_interval(won[chosen], kinds, rows, n_boot=self.n_boot)
        outcome.counts |= {"groups": len(large), "small_groups": len(members) - len(large)}
        table = {name: self._group_row(asked, won, own) for name, own in members.items()}
        outcome.files[file_name("caption_selection", self.head)] = {"schema": 1, "groups": table}

    def _group_row(self, asked: list[_Asked], won: Tensor, own: list[int]) -> dict[str, Any]:
        rows = torch.tensor([asked[place].row for place in own])
        interval = of_means(won[own][:, None], groups=rows, n_boot=self.n_boot)[0]
        chance = _chance([asked[place] for place in own])
        return {"items": len(own), "acc": float(won[own].mean()), "ci95": list(interval), "chance": chance}

    def _hits(self, keys: list[str], asked: list[_Asked], won: list[bool]) -> dict[str, Any]:
        columns: dict[str, Column] = {}
        for name, chosen in _columns(asked).items():
            those = set(chosen)
            columns[name] = [float(hit) if place in those else None for place, hit in enumerate(won)]
        return hits_file("caption_selection", keys, [" | ".join(one.texts) for one in asked], columns, head=self.head)

    def _read(self, view: View) -> tuple[list[_Asked], Counter[str]]:
        view.label_reads["scoring"] += 1
        asked, skips, names = list[_Asked](), Counter[str](), Names(view, self.key)
        for part, row, fields in self._entries(view):
            try:
                if row is None:
                    row = names.row(_first(fields, self.picture))
                asked.append(_Asked(row, self._box(fields), self._texts(fields), part, self._group(fields, part)))
            except BadSampleError as error:
                skips[error.reason] += 1
        if not asked:
            raise DataError(
                f"{view.dataset}: none of the items can be asked: {dict(skips)}; a sample's key is {names.example}, "
                f"texts are looked for in {self.options or ', '.join((*self.captions, *self.negatives))}"
            )
        return asked, skips

    def _entries(self, view: View) -> Iterator[tuple[str | None, int | None, Fields]]:
        """Part, row (None: the item names its picture) and fields of every item."""
        if self.items is not None:
            yield from ((item.part, None, item.fields) for item in read_items(self.items, self.data, view))
            return
        boxes = [self.box] if isinstance(self.box, str) else self.box or ()
        wanted = (*self.captions, *self.negatives, *boxes, *filter(None, (self.options, self.group)))
        yield from ((None, row, view.fields(row, wanted)) for row in range(len(view.encoded.kept)))

    def _texts(self, fields: Fields) -> list[str]:
        """The true caption and the false ones; BadSampleError no_caption or no_negatives."""
        if self.options is not None:
            value = fields.find(self.options)
            texts = _as_texts(value.splitlines() if isinstance(value, str) else value)
        else:
            true = _as_texts(_first(fields, self.captions))[:1]
            texts = [*true, *_as_texts(_first(fields, self.negatives))] if true else []
        if len(texts) < 2:
            raise BadSampleError("no_negatives" if texts else "no_caption")
        return texts

    def _box(self, fields: Fields) -> Box | None:
        if self.box is None:
            return None
        return read_box(fields.find(self.box) if isinstance(self.box, str) else [fields.find(n) for n in self.box])

    def _group(self, fields: Fields, part: str | None) -> str | None:
        if self.group is None:
            return part
        value = fields.find(self.group)
        if value is None:
            raise BadSampleError("no_group", f"no {self.group}")
        return "_".join(map(str, value)) if isinstance(value, list) else str(value)


def macro_interval(
    hits: Float[Tensor, "n"],
    kinds: Int[Tensor, "n"],
    groups: Int[Tensor, "n"],
    *,
    n_boot: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of the mean over kinds of each kind's mean, where whole groups are drawn (Efron 1979).

    A kind of which a resample holds nothing is left out of that resample's mean.
    """
    place = torch.unique(groups, return_inverse=True)[1]
    shape = int(place.max()) + 1, int(kinds.max()) + 1
    sums, counts = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    sums.index_put_((place, kinds), hits.double(), accumulate=True)
    counts.index_put_((place, kinds), torch.ones_like(hits, dtype=torch.float64), accumulate=True)
    rng, means = np.random.default_rng(seed), []
    for _ in range(n_boot):
        drawn = torch.from_numpy(np.bincount(rng.integers(0, shape[0], shape[0]), minlength=shape[0])).double()
        means.append(float((drawn @ sums / (drawn @ counts)).nanmean()))  # 0 / 0 where nothing was drawn
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


class _Asked(NamedTuple):
    """One item: the row of its picture, what of it is shown, and its texts, the true one first."""

    row: int
    box: Box | None
    texts: list[str]
    part: str | None
    group: str | None


def _mistake(one: _Asked, score: Tensor) -> Mistake:
    """The true caption, and of the false ones that which scores highest."""
    best = 1 + int(score[1:].argmax())
    return Mistake((one.row,), (one.texts[0], one.texts[best]), score[[0, best]][None], one.group, one.box)


def _columns(asked: Sequence[_Asked]) -> dict[str, list[int]]:
    """The items that each metric is about."""
    parts = _members([one.part for one in asked])
    return {"acc": list(range(len(asked))), **{f"acc_{part}": chosen for part, chosen in parts.items()}}


def _members(names: Sequence[str | None]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(names):
        if name is not None:
            found[name].append(place)
    return dict(found)


def _chance(asked: Sequence[_Asked]) -> float:
    """Mean of 1/n, exact where all items have n texts."""
    sizes = Counter(len(one.texts) for one in asked)
    return float(sum((Fraction(count, size) for size, count in sizes.items()), Fraction()) / len(asked))


def _first(fields: Fields, names: Sequence[str]) -> Any:
    """The value of the first field that is there."""
    return next((value for name in names if (value := fields.find(name)) is not None), None)


def _as_texts(value: Any) -> list[str]:
    """The texts of a text or a list without blanks; BadSampleError caption_not_text for anything else in it."""
    texts = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(text, str) for text in texts):
        raise BadSampleError("caption_not_text", f"{value!r}")
    return [text.strip() for text in texts if text.strip()]
