"""The captions of a source as plain text, and a tokenizer trained on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlp.data.schema import DataError
from vlp.data.sources import Source, open_records
from vlp.data.stages import Captions, Fields
from vlp.text.sentence_pieces import SentencePiece
from vlp.text.train import train_sentencepiece
from vlp.types import BadSampleError


class CaptionTexts:
    """Iterates over all captions of a source's samples; `skipped` counts by reason the samples without one.

    With a `limit`, samples are taken evenly from the whole source until they have given so many captions.
    """

    def __init__(self, source: Source | dict[str, Any] | str, *, fields: Sequence[str], limit: int = 0) -> None:
        self.records = open_records(source)
        self.captions = Captions(fields=tuple(fields))
        self.limit = limit
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[str]:
        given = 0
        for i in self._order():
            try:
                texts = self.captions.texts(Fields(self.records[int(i)]))
            except BadSampleError as error:
                self.skipped[error.reason] += 1
                continue
            for text in texts:
                yield text
                given += 1
                if given == self.limit:
                    return

    def _order(self) -> Any:
        count = len(self.records)
        return np.random.default_rng(0).permutation(count) if self.limit else range(count)


def train_from_shards(
    source: Source | dict[str, Any] | str,
    out: str | Path,
    *,
    vocab_size: int,
    fields: Sequence[str] = ("caption",),
    limit: int = 0,
    kind: Literal["unigram", "bpe"] = "unigram",
    context: int = 77,
) -> SentencePiece:
    """The tokenizer part trained on the captions of a source (a part, its mapping, or a path or glob of shards)."""
    texts = CaptionTexts(source, fields=fields, limit=limit)
    try:
        return train_sentencepiece(texts, out, vocab_size=vocab_size, kind=kind, context=context)
    except ValueError as error:
        if not texts.skipped:
            raise
        counts = ", ".join(f"{count} {reason}" for reason, count in texts.skipped.most_common())
        raise DataError(f"{error}; of {len(texts.records)} samples were skipped: {counts}") from error
