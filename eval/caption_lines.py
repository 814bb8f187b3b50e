"""Captions of CLIP_benchmark's retrieval sets: the member `txt` holds one a line, which the folder says by its type."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from vlp.data.fields import Fields
from vlp.data.sources import Finite, Records
from vlp.types import Sample

TYPE = "dataset_type.txt"


class CaptionLines(Finite):
    """Records with the lines of `txt` as the list `captions` of their json."""

    def __init__(self, inner: Records) -> None:
        self.inner, self.sizes, self.facts, self.notes = inner, inner.sizes, inner.facts, inner.notes
        self.classes = inner.classes

    def read(self, i: int, only: Collection[str] | None = None) -> Sample:
        if only is not None and "json" not in only:
            return self.inner.read(i, only)
        sample = self.inner.read(i, None if only is None else {*only, "txt"})
        fields = Fields(sample)
        if "txt" in sample.members:
            own = fields.json()
            facts = {**(own if isinstance(own, dict) else {}), "captions": fields.find("txt").splitlines()}
            sample.members = {**sample.members, "json": json.dumps(facts, ensure_ascii=False).encode()}
        return sample

    def name(self, i: int) -> tuple[str, str]:
        return self.inner.name(i)


def with_caption_lines(root: Path, records: Records) -> Records:
    """The records, captions one a line if the folder says that it is for retrieval."""
    file = root / TYPE
    if file.is_file() and file.read_text(encoding="utf-8").strip().lower() == "retrieval":
        return CaptionLines(records)
    return records
