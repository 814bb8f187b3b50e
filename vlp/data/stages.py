"""From a raw sample to what goes into a batch: its captions, its label, its pictures, its columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vlp.data.augment import Augment, Views
from vlp.data.captions import Captions, Drawn
from vlp.data.columns import Column, read_columns
from vlp.data.decode import Limits
from vlp.data.fields import Fields, image_bytes
from vlp.data.labels import Labels
from vlp.data.order import branch
from vlp.data.transforms import Preprocess
from vlp.text.captions import cut_bytes
from vlp.types import Sample

# What a part of a sample draws from: a branch of the sample's generator, so that no part changes what another draws.
_COLUMNS, _NEGATIVES, _VIEWS = 1, 2, 3  # and the views after it
_NO_IMAGE = torch.empty(0, dtype=torch.uint8)


class Item(NamedTuple):
    """One pair, ready to be collated."""

    image: Tensor  # uint8 [3, H, W]
    captions: list[str]  # at least one
    label: int | None  # class index in its source
    extra: dict[str, Tensor]  # "views" uint8 [V, 3, H, W], and the columns of the source
    key: str
    notes: tuple[str, ...] = ()  # counted, but not skipped: "caption_cut", "caption_not_text", "no_negative"
    negatives: tuple[str, ...] = ()  # false captions


class Draft(NamedTuple):
    """An item whose picture is not decoded yet."""

    item: Item  # its image is empty, and it has no views
    pictures: Callable[[], list[Tensor]]  # the image, then the views

    def finished(self) -> Item:
        """The item; BadSampleError for a picture that cannot be decoded."""
        image, *views = self.pictures()
        extra = self.item.extra | ({"views": torch.stack(views)} if views else {})
        return self.item._replace(image=image, extra=extra)


def drafted(
    sample: Sample,
    *,
    captions: Captions | None,
    labels: Labels | None = None,
    preprocess: Preprocess,
    augment: Augment | None = None,
    views: Sequence[Augment] = (),
    columns: Mapping[str, Column] | None = None,
    crop: str | None = None,
    slots: int = 1,
    limits: Limits | None = None,
    rng: np.random.Generator | None = None,
) -> Draft:
    """A sample up to its pixels; BadSampleError if it cannot be used. Without `captions` its class name is the caption.

    Without `augment` (which needs `rng`, as `views` do) the picture goes through the evaluation transform. `crop` names
    the column whose box is cut out instead of a random one. slots: K, for columns with a row for each caption.
    """
    limits = limits or Limits()
    fields = Fields(sample)
    branches = {n: branch(rng, n) for n in _branches(captions, columns, views)} if rng is not None else {}
    label = labels.index(fields) if labels is not None else None
    drawn = _texts(fields, captions, labels, label, rng)
    short = [cut_bytes(text, limits.max_caption_bytes) for text in drawn.texts]
    notes = list(dict.fromkeys([*drawn.notes, *(["caption_cut"] if short != drawn.texts else [])]))
    negatives: list[str] = []
    if captions is not None and captions.negatives:
        found = captions.false_texts(fields, drawn.texts, branches.get(_NEGATIVES))
        negatives = [cut_bytes(text, limits.max_caption_bytes) for text in found]
        notes += [] if negatives else ["no_negative"]
    extra = read_columns(columns, fields, drawn, branches.get(_COLUMNS), slots=slots) if columns else {}
    item = Item(_NO_IMAGE, short, label, extra, sample.key, tuple(notes), tuple(negatives))
    picture = image_bytes(sample)
    if augment is None and not views:
        return Draft(item, lambda: [preprocess(picture, limits)])
    if rng is None:
        raise ValueError("augment needs the generator of the sample, and so do views")
    todo = [(augment or Augment(crop=False), rng)]
    todo += [(view, branches[_VIEWS + number]) for number, view in enumerate(views)]
    box = extra[crop].tolist() if crop else None
    return Draft(item, Views(picture, todo, preprocess, limits=limits, crop=box))


def _branches(captions: Captions | None, columns: Mapping[str, Column] | None, views: Sequence[Augment]) -> list[int]:
    """Numbers of the branches that something is drawn from; they are taken before anything else is drawn."""
    numbers = [_COLUMNS] if columns else []
    numbers += [_NEGATIVES] if captions is not None and captions.negatives else []
    return numbers + [_VIEWS + number for number in range(len(views))]


def _texts(
    fields: Fields,
    captions: Captions | None,
    labels: Labels | None,
    label: int | None,
    rng: np.random.Generator | None,
) -> Drawn:
    if captions is not None:
        return captions.draw(fields, rng)
    if labels is not None and label is not None:
        return Drawn(labels.texts(label, rng))
    raise ValueError("a source needs `captions`, `labels`, or both")
