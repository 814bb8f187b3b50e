"""One local batch from its slots: read, prepare, label, collate. What loader workers run."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vlp.data.captions import Captions
from vlp.data.collate import collate, pictures
from vlp.data.heartbeat import Beat
from vlp.data.labels import Labels
from vlp.data.order import EMPTY, keyed_rng
from vlp.data.plan import Plan
from vlp.data.splits import hash64
from vlp.data.stages import Draft, Item, drafted
from vlp.data.stream import Stream
from vlp.data.transforms import Preprocess
from vlp.types import UNLABELLED, BadSampleError, Batch, Sample, Skip, Tokenizer

_SAMPLE = 4  # first key of a sample's generator
_AHEAD = 64  # samples whose bytes are held at once, before their pictures are decoded
CLASS_STRIDE = 1 << 24  # labels of source k are k * CLASS_STRIDE + class
SAMPLE_STRIDE = 1 << 36  # and UNLABELLED + k * SAMPLE_STRIDE + sample index
TEXT_LABELS = 1 << 61  # labels from here on are hashes of captions
EMPTY_LABELS = 1 << 62  # and these stand in slots that nothing came for


class Made(NamedTuple):
    """What became of one slot: its item, or None; its label; "shard:key"; why it was skipped; the sample's number."""

    item: Item | None
    label: int
    key: str
    skip: Skip | None = None
    sample: int = 0  # the same at every visit, and no other sample's; of a stream only until it begins again


class Begun(NamedTuple):
    """A slot whose picture is not decoded yet."""

    draft: Draft
    label: int
    source: int
    sample: int  # its place in the source
    place: tuple[int, int]  # epoch and index for the record of a skip
    shard: str
    key: str


class Server:
    """`server[step]` is the local batch of a step: a map-style data set whose items are whole batches.

    Beside what `collate` makes, extra has `sample` long [B], which knows a sample again whatever its label is now.
    """

    def __init__(self, plan: Plan, *, tokenizer: Tokenizer, preprocess: Preprocess) -> None:
        self.plan, self.tokenizer, self.preprocess = plan, tokenizer, preprocess
        self.blank = plan.data.blank(preprocess.size)
        self.beat: Beat | None = None  # in a loader worker: where it is, for the process that waits for it
        self.stages: list[tuple[Captions | None, Labels | None]] = [
            (part.caption_stage(), part.label_stage(records.classes)) for part, records in zip(plan.parts, plan.records)
        ]

    def __getitem__(self, step: int) -> Batch:
        slots = self.plan.slots(step)
        image = pictures(len(slots.source), self.preprocess.size)
        made = self.make(step, image)
        if self.beat:
            self.beat.collating(step)
        failures = [
            skip._replace(source=name)
            for name, records in zip(self.plan.names, self.plan.records)
            if isinstance(records, Stream)
            for skip in records.drain()
        ]
        batch = collate(
            [slot.item for slot in made],
            tokenizer=self.tokenizer,
            captions=self.plan.data.captions,
            negatives=self.plan.data.negatives,
            blank=self.blank,
            size=self.preprocess.size,
            labels=[slot.label for slot in made],
            sources=slots.source.tolist(),
            keys=[slot.key for slot in made],
            skips=[*(slot.skip for slot in made if slot.skip), *failures],
            image=image,
        )
        batch = batch.plus({"sample": torch.tensor([slot.sample for slot in made], dtype=torch.long)})
        if self.beat:
            self.beat.idle(step)
        return batch

    def make(self, step: int, image: Tensor | None = None) -> list[Made]:
        """The slots of a step before they are collated; each picture goes into its place in `image` at once.

        The texts and crops of some samples at a time, then their pictures: Python's own code stays in the processor's
        caches, which decoding empties, and so takes a third of the time.
        """
        slots = list(enumerate(zip(*(column.tolist() for column in self.plan.slots(step)))))
        made: list[Made] = []
        for first in range(0, len(slots), _AHEAD):
            begun = [self._begin(step, slot, *where) for slot, where in slots[first : first + _AHEAD]]
            targets = [None] * len(begun) if image is None else image[first : first + _AHEAD]
            made += [self._finish(step, one, target) for one, target in zip(begun, targets)]
        return made

    def _begin(self, step: int, slot: int, number: int, index: int, epoch: int) -> Made | Begun:
        """A slot up to its pixels; Made where there is nothing to decode."""
        if index == EMPTY:
            return Made(None, EMPTY_LABELS + slot, "")
        if self.beat:
            self.beat.reading(step, number, index)
        records, place, shard, key = self.plan.records[number], (epoch, index), "", ""
        try:
            if isinstance(records, Stream):
                sample = records.next()
                place, index = (-1, -1), sample.index  # it comes once, here
            else:
                sample = records.read(index)
            shard, key = sample.shard, sample.key
            draft = self._draft(sample, number, epoch, index)
            return Begun(draft, self._label(draft.item, number, index), number, index, place, shard, key)
        except BadSampleError as error:
            if not key and not isinstance(records, Stream):
                shard, key = records.name(index)
            return self._skipped(error, number, index, place, shard, key)

    def _finish(self, step: int, begun: Made | Begun, target: Tensor | None) -> Made:
        if isinstance(begun, Made):
            return begun
        draft, label, number, index, place, shard, key = begun
        if self.beat:
            self.beat.reading(step, number, index)
        try:
            item = draft.finished()
            if target is not None and target.shape == item.image.shape:  # collate says what is wrong with others
                item = item._replace(image=target.copy_(item.image))
            return Made(item, label, f"{shard}:{key}", sample=self._unlabelled(number, index))
        except BadSampleError as error:
            return self._skipped(error, number, index, place, shard, key)

    def _skipped(
        self, error: BadSampleError, number: int, index: int, place: tuple[int, int], shard: str, key: str
    ) -> Made:
        skip = Skip(error.reason, self.plan.names[number], shard, key, error.detail, *place)
        return Made(None, self._unlabelled(number, index), f"{shard}:{key}", skip)

    def _draft(self, sample: Sample, number: int, epoch: int, index: int) -> Draft:
        captions, labels = self.stages[number]
        data, part = self.plan.data, self.plan.parts[number]
        return drafted(
            sample,
            captions=captions,
            labels=labels,
            preprocess=self.preprocess,
            augment=data.augment,
            views=data.views,
            columns=part.columns,
            crop=part.crop,
            slots=data.captions,
            limits=data.limits,
            rng=keyed_rng(self.plan.seed, _SAMPLE, number, epoch, index),
        )

    def _label(self, item: Item, number: int, index: int) -> int:
        if self.plan.parts[number].kind == "label":
            assert item.label is not None
            if item.label >= CLASS_STRIDE:
                raise BadSampleError("bad_label", f"class {item.label}; classes are numbers below {CLASS_STRIDE}")
            return number * CLASS_STRIDE + item.label
        if self.plan.data.same_caption_same_label:
            return TEXT_LABELS + (hash64(" ".join(item.captions[0].split()).casefold()) & (TEXT_LABELS - 1))
        return self._unlabelled(number, index)

    def _unlabelled(self, number: int, index: int) -> int:
        return UNLABELLED + number * SAMPLE_STRIDE + index
