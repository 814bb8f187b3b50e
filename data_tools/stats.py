"""The tool `stats`: what is in a data set, counted: pictures, captions, scripts, duplicates; stats.json and plots."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from data_tools.progress import progress
from data_tools.scripts import script_of
from data_tools.shards import Raw, find_shards, samples
from data_tools.texts import CAPTION_FIELDS, captions_of, normalise, parse_json
from data_tools.verify import PICTURES
from vlp.data.decode import Limits, read_header
from vlp.data.schema import DataError, write_atomic
from vlp.registry import Part
from vlp.types import BadSampleError

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


class Stats(Part):
    """Reads every sample once; pictures by their headers only."""

    captions: tuple[str, ...] = CAPTION_FIELDS
    tokenizer: str = "clip_bpe"  # of vlp.text; empty: tokens are not counted
    context: int = Field(default=77, ge=2)
    top: int = Field(default=10, ge=0)
    limits: Limits = Limits()

    def run(self, inputs: Iterable[Path | str], out: Path | None = None) -> dict[str, Any]:
        """The numbers; with `out` also written to stats.json, and drawn to pictures.png and captions.png."""
        shards = find_shards(str(item) for item in inputs)
        if missing := [str(shard) for shard in shards if not shard.is_file()]:
            raise DataError(f"{len(missing)} shards are missing: {', '.join(missing[:5])}; see `verify`")
        tally = Tally(self)
        for shard in progress(shards, total=len(shards), label="stats"):
            for sample in samples(shard):
                tally.add(sample)
        if not tally.samples:
            raise DataError(f"{len(shards)} shards, but no sample in them; see `verify`")
        result = {"shards": len(shards), **tally.result()}
        if out is not None:
            from data_tools.plots import plot_stats

            out.mkdir(parents=True, exist_ok=True)
            write_atomic(out / "stats.json", (json.dumps(result, ensure_ascii=False, indent=1) + "\n").encode())
            plot_stats(tally, out)
        return result


@dataclass
class Tally:
    """Running counts over samples."""

    settings: Stats
    samples: int = 0
    num_bytes: int = 0
    without_caption: int = 0
    widths: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    image_bytes: list[int] = field(default_factory=list)
    captions_per_sample: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    texts: Counter[str] = field(default_factory=Counter)  # normalised caption -> how often
    spelled: dict[str, str] = field(default_factory=dict)  # normalised caption -> first spelling
    token_counts: list[int] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    members: Counter[str] = field(default_factory=Counter)
    fields: Counter[str] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    hashes: Counter[bytes] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)

    def add(self, sample: Raw) -> None:
        """Counts one sample."""
        self.samples += 1
        self.num_bytes += sum(map(len, sample.members.values()))
        self.members.update(sample.members.keys())
        facts = parse_json(sample.members)
        self.fields.update(facts.keys())
        self._picture(sample)
        self._captions(captions_of(sample.members, self.settings.captions))
        if "label" in facts or "cls" in sample.members:
            label = facts.get(
                "class", facts.get("label", sample.members.get("cls", b"").decode("utf-8", "replace").strip())
            )
            self.labels[str(label)] += 1

    def _picture(self, sample: Raw) -> None:
        data = next((sample.members[name] for name in PICTURES if name in sample.members), None)
        if data is None:
            self.bad["no_image"] += 1
            return
        self.hashes[hashlib.sha256(data).digest()] += 1
        self.image_bytes.append(len(data))
        try:
            header = read_header(data, self.settings.limits)
        except BadSampleError as error:
            self.bad[error.reason] += 1
            return
        self.formats[header.format] += 1
        self.widths.append(header.width)
        self.heights.append(header.height)

    def _captions(self, captions: Sequence[str]) -> None:
        self.captions_per_sample.append(len(captions))
        self.without_caption += not captions
        for caption in captions:
            plain = normalise(caption)
            self.texts[plain] += 1
            self.spelled.setdefault(plain, caption)
            self.words.append(len(caption.split()))
            self.scripts[script_of(caption)] += 1
        self.token_counts += self._tokens(captions)

    def _tokens(self, captions: Sequence[str]) -> list[int]:
        if not self.settings.tokenizer or not captions:
            return []
        return _tokenizer(self.settings.tokenizer, self.settings.context).lengths(captions)  # type: ignore[no-any-return]

    def result(self) -> dict[str, Any]:
        """All numbers as plain values."""
        total = sum(self.texts.values())
        return {
            "samples": self.samples,
            "bytes": self.num_bytes,
            "members": dict(self.members.most_common()),
            "json_fields": dict(self.fields.most_common()),
            "pictures": {
                "formats": dict(self.formats.most_common()),
                "width": quantiles(self.widths),
                "height": quantiles(self.heights),
                "bytes": quantiles(self.image_bytes),
                "bad": dict(self.bad),
                "duplicates": repeats(self.hashes),
            },
            "captions": {
                "total": total,
                "samples_without": self.without_caption,
                "per_sample": quantiles(self.captions_per_sample),
                "words": quantiles(self.words),
                "tokens": quantiles(self.token_counts),
                "cut_at_context": sum(n > self.settings.context for n in self.token_counts),
                "distinct": len(self.texts),
                "duplicates": repeats(self.texts),
                "scripts": dict(self.scripts.most_common()),
                "top": [[self.spelled[text], n] for text, n in self.texts.most_common(self.settings.top) if n > 1],
            },
            "labels": {"classes": len(self.labels), "largest": self.labels.most_common(self.settings.top)},
        }


def quantiles(values: Sequence[int]) -> dict[str, float]:
    """Mean and the quantiles 0, 5, 25, 50, 75, 95, 100 %, each a value that occurs; {} for no values."""
    if not values:
        return {}
    ordered = sorted(values)
    points = {f"p{round(100 * q)}": ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in QUANTILES}
    return {"mean": round(sum(ordered) / len(ordered), 3), **points}


def repeats(counts: Counter[Any]) -> int:
    """How many items are a repetition of an earlier one."""
    return sum(n - 1 for n in counts.values())


_TOKENIZERS: dict[tuple[str, int], Any] = {}


def _tokenizer(name: str, context: int) -> Any:
    if (name, context) not in _TOKENIZERS:
        from vlp.text import TOKENIZERS

        _TOKENIZERS[name, context] = TOKENIZERS.build({"name": name, "context": context}).build()
    return _TOKENIZERS[name, context]
