"""Compositional tests: the true caption against captions that differ in one fact, and the true picture against others.

Both ask what a bag of words cannot answer. A tie counts as wrong (SugarCrepe, arXiv 2306.14610; NLVR, Suhr 2017).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from eval.benchmark import BenchmarkPart, Outcome
from eval.score import scores
from eval.view import View
from vlp.data.schema import DataError
from vlp.data.stages import Captions
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
    head: Literal["global", "tokens"] = "global"
    n_boot: int = Field(1000, ge=1)

    def measure(self, view: View) -> Outcome:
        """Accuracy over all pairs, accuracy_KIND, and accuracy_all: the caption beats every negative."""
        asked, skips = self._read(view)
        if not asked:
            raise DataError(f"{view.dataset}: no picture has both a caption and {self.negatives}: {skips}")
        words = [text for one in asked for text in (one.caption, *one.negatives)]
        rows = [one.row for one in asked for _ in range(1 + len(one.negatives))]
        found = scores(view, rows, words, head=self.head)
        wins, place, kinds, start = [], [], [], 0
        for number, one in enumerate(asked):
            stop = start + 1 + len(one.negatives)
            wins.append((found[start] > found[start + 1 : stop]).double())
            place += [number] * len(one.negatives)
            kinds += one.kinds
            start = stop
        return self._outcome(wins, torch.tensor(place), kinds, len(asked), skips)

    def _outcome(
        self, wins: list[Tensor], place: Tensor, kinds: list[str], images: int, skips: dict[str, int]
    ) -> Outcome:
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
        return Outcome(metrics=metrics, n=images, counts=counts, ci95=ci95, chance=chance, skips=skips)

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
    head: Literal["global", "tokens"] = "global"
    n_boot: int = Field(1000, ge=1)

    def measure(self, view: View) -> Outcome:
        """Accuracy over all pairs of all sentences; intervals draw sentences."""
        view.label_reads["scoring"] += 1
        groups: dict[Any, list[tuple[int, bool, str]]] = defaultdict(list)
        skips = Counter[str]()
        for row in range(len(view.encoded.kept)):
            fields = view.fields(row, (*self.captions.fields, self.label, self.group))
            label, group = fields.find(self.label), fields.find(self.group)
            if not isinstance(label, bool) or group is None:
                skips["no_label"] += 1
                continue
            groups[group].append((row, label, self.captions.texts(fields)[0]))
        usable = [members for members in groups.values() if len({label for _, label, _ in members}) == 2]
        skips["sentence_without_both"] = sum(map(len, groups.values())) - sum(map(len, usable))
        if not usable:
            raise DataError(f"{view.dataset}: no sentence has a true and a false picture ({self.label}, {self.group})")
        flat = [member for members in usable for member in members]
        found = scores(view, [row for row, _, _ in flat], [text for _, _, text in flat], head=self.head)
        wins, place, start = [], [], 0
        for number, members in enumerate(usable):
            score, label = found[start : start + len(members)], torch.tensor([label for _, label, _ in members])
            won = (score[label][:, None] > score[~label]).double().flatten()
            wins.append(won)
            place += [number] * len(won)
            start += len(members)
        values = torch.cat(wins)[:, None]
        return Outcome(
            metrics={"accuracy": float(values.mean())},
            n=len(flat),
            counts={"images": len(flat), "sentences": len(usable), "pairs": len(values)},
            ci95={"accuracy": of_means(values, groups=torch.tensor(place), n_boot=self.n_boot)[0]},
            chance={"accuracy": 0.5},
            skips={reason: count for reason, count in skips.items() if count},
        )


class _Asked(NamedTuple):
    """One picture's true caption and its false ones."""

    row: int
    caption: str
    negatives: list[str]
    kinds: list[str]
