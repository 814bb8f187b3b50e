"""Compositional tests: the true caption against captions that differ in one fact, and the true picture against others.

Both ask what a bag of words cannot answer. A tie counts as wrong (SugarCrepe, arXiv 2306.14610; NLVR, Suhr 2017).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from eval.benchmark import BenchmarkPart, Outcome
from eval.heads import Head
from eval.hits import hits_file, picture_keys
from eval.mistakes import Mistake, add_mistakes
from eval.score import scores
from eval.view import View
from vlp.data.captions import Captions
from vlp.data.schema import DataError
from vlp.kernels.late import PadMax
from vlp.metrics.interval import Interval, of_means
from vlp.types import BadSampleError


class Negatives(BenchmarkPart):
    """Share of (caption, negative) pairs of a picture whose caption scores higher, by kind of negative; chance is 1/2.

    `captions` gives the true caption, the first of its texts; `negatives` names the JSON list of false ones and `kinds`
    a list beside it that says what each of them changes.
    """

    task: ClassVar[str] = "compositional_captions"

    captions: Captions = Captions()
    negatives: str = "hard_negatives"
    kinds: str | None = "negative_kinds"
    head: Head = "global"
    pad_max: PadMax = "exclude"
    n_boot: int = Field(1000, ge=1)

    def measure(self, view: View) -> Outcome:
        """Accuracy over all pairs, accuracy_KIND, and accuracy_all: the caption beats every negative."""
        asked, skips = self._read(view)
        if not asked:
            raise DataError(f"{view.dataset}: no picture has both a caption and {self.negatives}: {skips}")
        words = [text for one in asked for text in (one.caption, *one.negatives)]
        rows = [one.row for one in asked for _ in range(1 + len(one.negatives))]
        found = scores(view, rows, words, head=self.head, pad_max=self.pad_max)
        wins, wrong, start = list[Tensor](), list[Mistake](), 0
        for one in asked:
            stop = start + 1 + len(one.negatives)
            wins.append((found[start] > found[start + 1 : stop]).double())
            for place in (wins[-1] == 0).nonzero().flatten().tolist():
                pair = found[[start, start + 1 + place]][None]
                wrong.append(Mistake((one.row,), (one.caption, one.negatives[place]), pair, one.kinds[place]))
            start = stop
        outcome = self._outcome(wins, [one.kinds for one in asked], skips)
        outcome.files = self._hits(view, asked, wins)
        add_mistakes(outcome, "caption_negatives", wrong, items=sum(map(len, wins)), head=self.head)
        return outcome

    def _hits(self, view: View, asked: list[_Asked], wins: list[Tensor]) -> dict[str, Any]:
        """One item a pair; whether a picture's caption beats all of its negatives stands at the first of them."""
        each, kinds = torch.cat(wins).tolist(), [kind for one in asked for kind in one.kinds]
        columns: dict[str, list[float | None]] = {"accuracy": each}
        for kind in sorted(set(kinds)):
            columns[f"accuracy_{kind}"] = [win if k == kind else None for win, k in zip(each, kinds, strict=True)]
        columns["accuracy_all"] = [x for win in wins for x in (float(win.amin()), *[None] * (len(win) - 1))]
        keys = picture_keys(view, [one.row for one in asked for _ in one.negatives])
        items = [f"{one.caption} | {text}" for one in asked for text in one.negatives]
        return hits_file("caption_negatives", keys, items, columns, head=self.head)

    def _outcome(self, wins: list[Tensor], by_image: list[list[str]], skips: dict[str, int]) -> Outcome:
        images, kinds = len(wins), [kind for own in by_image for kind in own]
        place = torch.arange(images).repeat_interleave(torch.tensor(list(map(len, wins))))
        pairs, every = torch.cat(wins)[:, None], torch.stack([win.amin() for win in wins])[:, None]
        metrics, ci95 = {"accuracy": float(pairs.mean())}, {"accuracy": self._interval(pairs, place)}
        chance = {"accuracy": 0.5}
        for kind in sorted(set(kinds)):
            chosen = torch.tensor([k == kind for k in kinds])
            name = f"accuracy_{kind}"
            metrics[name], chance[name] = float(pairs[chosen].mean()), 0.5
            ci95[name] = self._interval(pairs[chosen], place[chosen])
        metrics["accuracy_all"] = float(every.mean())
        ci95["accuracy_all"] = self._interval(every, torch.arange(images))
        chance["accuracy_all"] = float(torch.tensor([1 / (1 + len(win)) for win in wins]).mean())
        counts = {"images": images, "pairs": len(pairs)}
        return Outcome(metrics=metrics, n=images, counts=counts, ci95=ci95, chance=chance, skips=skips, head=self.head)

    def _interval(self, values: Tensor, groups: Tensor) -> Interval:
        return of_means(values, groups=groups, n_boot=self.n_boot)[0]

    def _read(self, view: View) -> tuple[list[_Asked], dict[str, int]]:
        view.label_reads["scoring"] += 1
        asked, skips = list[_Asked](), Counter[str]()
        for row in range(len(view.encoded.kept)):
            fields = view.fields(row, (*self.captions.fields, self.negatives, self.kinds or ""))
            try:
                caption = self.captions.texts(fields)[0]
            except BadSampleError as error:
                skips[error.reason] += 1
                continue
            negatives = fields.find(self.negatives)
            kinds = fields.find(self.kinds) if self.kinds else None
            if not isinstance(negatives, list) or not negatives:
                skips["no_negatives"] += 1
                continue
            kinds = [str(kind) for kind in kinds] if isinstance(kinds, list) else ["negative"] * len(negatives)
            if len(kinds) != len(negatives):
                skips["kinds_do_not_match"] += 1
                continue
            asked.append(_Asked(row, caption, [str(text) for text in negatives], kinds))
        return asked, dict(skips)


class TrueFalse(BenchmarkPart):
    """Share of (true picture, false picture) pairs of a sentence whose true picture scores higher; chance one half.

    Pictures with equal `group` share a sentence; `label` says of which it is true. Sentences that lack one of the two
    are left out and counted.
    """

    task: ClassVar[str] = "compositional_pictures"

    captions: Captions = Captions(fields=("sentence",))
    label: str = "label"
    group: str = "group"
    head: Head = "global"
    pad_max: PadMax = "exclude"
    n_boot: int = Field(1000, ge=1)

    def measure(self, view: View) -> Outcome:
        """Accuracy over all pairs of all sentences; intervals draw sentences."""
        usable, skips = self._read(view)
        flat = [member for members in usable.values() for member in members]
        rows, texts = [member.row for member in flat], [member.sentence for member in flat]
        found = scores(view, rows, texts, head=self.head, pad_max=self.pad_max)
        name = dict(zip(rows, picture_keys(view, rows), strict=True))
        won, place, items, lost, start = list[bool](), list[int](), list[str](), list[Mistake](), 0
        for number, members in enumerate(usable.values()):
            score = found[start : start + len(members)].tolist()
            start += len(members)
            for right, high in zip(members, score, strict=True):
                for wrong, low in zip(members, score, strict=True):
                    if right.label and not wrong.label:
                        won.append(high > low)
                        place.append(number)
                        items.append(f"{name[right.row]} | {name[wrong.row]}")
                        if not won[-1]:
                            lost.append(
                                Mistake((right.row, wrong.row), (right.sentence,), torch.tensor([[high], [low]]))
                            )
        values, sentences = torch.tensor(won).double()[:, None], list(map(str, usable))
        outcome = Outcome(
            metrics={"accuracy": float(values.mean())},
            n=len(flat),
            counts={"images": len(flat), "sentences": len(usable), "pairs": len(values)},
            ci95={"accuracy": of_means(values, groups=torch.tensor(place), n_boot=self.n_boot)[0]},
            chance={"accuracy": 0.5},
            head=self.head,
            skips=skips,
            files=hits_file("true_false", [sentences[n] for n in place], items, {"accuracy": won}, head=self.head),
        )
        add_mistakes(outcome, "true_false", lost, items=len(won), head=self.head)
        return outcome

    def _read(self, view: View) -> tuple[dict[Any, list[_Shown]], dict[str, int]]:
        """The pictures of each sentence that has both kinds, and why others are left out."""
        view.label_reads["scoring"] += 1
        groups: dict[Any, list[_Shown]] = defaultdict(list)
        skips = Counter[str]()
        for row in range(len(view.encoded.kept)):
            fields = view.fields(row, (*self.captions.fields, self.label, self.group))
            label, group = fields.find(self.label), fields.find(self.group)
            if not isinstance(label, bool) or group is None:
                skips["no_label"] += 1
                continue
            try:
                groups[group].append(_Shown(row, label, self.captions.texts(fields)[0]))
            except BadSampleError as error:
                skips[error.reason] += 1
        usable = {group: members for group, members in groups.items() if len({one.label for one in members}) == 2}
        skips["sentence_without_both"] = sum(map(len, groups.values())) - sum(map(len, usable.values()))
        if not usable:
            raise DataError(f"{view.dataset}: no sentence has a true and a false picture ({self.label}, {self.group})")
        return usable, {reason: count for reason, count in skips.items() if count}


class _Shown(NamedTuple):
    """One picture of a sentence, and whether the sentence is true of it."""

    row: int
    label: bool
    sentence: str


class _Asked(NamedTuple):
    """One picture's true caption and its false ones."""

    row: int
    caption: str
    negatives: list[str]
    kinds: list[str]
