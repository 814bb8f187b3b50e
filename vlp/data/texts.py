"""The captions of shards as text, for tools that read no pictures."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vlp.data.captions import Captions
from vlp.data.fields import Fields
from vlp.data.shards import Shards
from vlp.data.sources import open_records
from vlp.log import console
from vlp.types import BadSampleError


def captions_of(urls: str, *, fields: tuple[str, ...], limit: int = 0) -> Iterator[str]:
    """Every text that `fields` find in the shards, in order; samples without any are counted and told at the end.

    A `limit` above 0 takes that many samples, evenly spread over the shards.
    """
    records, stage, without = open_records(Shards(urls=urls)), Captions(fields=fields), 0
    number = min(limit, len(records)) if limit else len(records)
    for i in np.linspace(0, len(records) - 1, number).astype(int).tolist():
        try:
            yield from stage.texts(Fields(records[i]))
        except BadSampleError:
            without += 1
    if without:
        console.print(f"{without} of {number} samples have no text in {', '.join(fields)}", highlight=False)
