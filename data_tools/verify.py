"""The tool `verify`: is every shard what its manifest says, and every sample usable? Faults counted by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from data_tools.progress import progress
from data_tools.shards import find_shards, samples
from data_tools.texts import CAPTION_FIELDS, captions_of, dataset_captions, fingerprint
from vlp.data import index as shard_index
from vlp.data.decode import Limits, decode, read_header
from vlp.data.grouping import KeySplit
from vlp.data.schema import MANIFEST, DataError, ShardEntry, file_sha256, read_manifest
from vlp.registry import Part
from vlp.types import BadSampleError

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
# what a set can live with; all other reasons are faults
WARNINGS = frozenset({"no_caption", "dotted_key", "orphan_member", "meta_member", "same_caption", "no_manifest"})
EXAMPLES = 3


@dataclass
class Findings:
    """Reason -> count, and the first few places of each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, where: str, count: int = 1) -> None:
        self.counts[reason] += count
        known = self.examples.setdefault(reason, [])
        if len(known) < EXAMPLES:
            known.append(where)

    @property
    def faults(self) -> int:
        return sum(count for reason, count in self.counts.items() if reason not in WARNINGS)


class Verify(Part):
    """Strict walk of every tar, manifest against what is readable, keys, pictures, captions; `deep`: pixels, sha256."""

    deep: bool = False
    captions: tuple[str, ...] = CAPTION_FIELDS
    key_split: KeySplit = "first-dot"
    limits: Limits = Limits()
    unique_captions: bool = False  # two samples with one caption are a fault
    disjoint: tuple[Path, ...] = Field(default=())  # data sets that no caption may be shared with

    def run(self, inputs: Iterable[Path | str], out: Path | None = None) -> dict[str, Any]:
        """Counts with `manifest = readable + missing` where there is a manifest, reasons, examples, and `ok`."""
        shards = find_shards(str(item) for item in inputs)
        findings = Findings()
        keys: dict[tuple[str, str], Path] = {}
        readable = missing = 0
        manifest_total: int | None = 0
        captions = _Captions(self)
        for shard in progress(shards, total=len(shards), label="verify"):
            entry = _entry_of(shard)
            if entry is None:
                manifest_total = None
                findings.add("no_manifest", str(shard))
            elif manifest_total is not None:
                manifest_total += entry.samples
            built = self._walk(shard, entry, findings)
            here = len(built) if built is not None else 0
            readable += here
            missing += max(0, entry.samples - here) if entry else 0
            if built is not None:
                _repeats(shard, built, keys, findings)
                self._contents(shard, built, captions, findings)
        return {
            "shards": len(shards),
            "manifest": manifest_total,
            "readable": readable,
            "missing": missing,
            "faults": findings.faults,
            "reasons": dict(findings.counts),
            "examples": findings.examples,
            "ok": findings.faults == 0 and readable > 0,
        }

    def _walk(self, shard: Path, entry: ShardEntry | None, findings: Findings) -> shard_index.ShardIndex | None:
        if not shard.is_file():
            findings.add("missing_shard", str(shard))
            return None
        built = shard_index.build(shard, key_split=self.key_split)
        if built.damage is not None:
            findings.add(built.damage.reason, f"{shard} at byte {built.damage.byte}: {built.damage.detail}")
        for note in built.notes:
            findings.add(note.reason, f"{shard}: {note.example}", note.count)
        if entry is not None and entry.samples != len(built):
            findings.add("wrong_count", f"{shard}: manifest {entry.samples}, readable {len(built)}")
        if entry is not None and entry.bytes != built.bytes:
            findings.add("wrong_bytes", f"{shard}: manifest {entry.bytes}, file {built.bytes}")
        if self.deep and entry is not None and entry.sha256 and file_sha256(shard) != entry.sha256:
            findings.add("wrong_sha256", f"{shard}: its bytes are not those that were written")
        _side_index(shard, built, findings)
        return built

    def _contents(self, shard: Path, built: shard_index.ShardIndex, captions: _Captions, findings: Findings) -> None:
        only = () if self.deep else ("json", "txt", *(name for name in self.captions if "." not in name))
        extensions = [set(built.members(number)) for number in range(len(built))]
        for number, sample in enumerate(samples(shard, only=only, built=built)):
            where = f"{shard}: {sample.key}"
            pictures = [name for name in PICTURES if name in extensions[number]]
            if not pictures:
                findings.add("no_image", where)
            elif self.deep:
                self._picture(sample.members[pictures[0]], where, findings)
            captions.check(sample.members, where, findings, labelled="cls" in extensions[number])

    def _picture(self, data: bytes, where: str, findings: Findings) -> None:
        try:
            read_header(data, self.limits)
            decode(data, self.limits)
        except BadSampleError as error:
            findings.add(error.reason, f"{where}: {error.detail}")


class _Captions:
    """What captions must be: there, UTF-8, and if asked for unique and not in other sets."""

    def __init__(self, settings: Verify) -> None:
        self.settings = settings
        self.seen: dict[int, str] = {}
        self.forbidden = {fingerprint(text) for folder in settings.disjoint for text in dataset_captions(folder)}

    def check(self, members: dict[str, bytes], where: str, findings: Findings, *, labelled: bool) -> None:
        for name in ("json", "txt"):
            try:
                members.get(name, b"").decode()
            except UnicodeDecodeError:
                findings.add("not_utf8", f"{where}.{name}")
        found = captions_of(members, self.settings.captions)
        if not found and not labelled:
            findings.add("no_caption", f"{where}: nothing under {', '.join(self.settings.captions)}")
        prints = {fingerprint(text): text for text in found}
        for mark, text in prints.items():
            if mark in self.forbidden:
                findings.add("shared_caption", f'{where}: "{text[:80]}" is also in a set that must be disjoint')
            if self.settings.unique_captions and mark in self.seen:
                findings.add("repeated_caption", f'{where} and {self.seen[mark]}: "{text[:80]}"')
            if self.settings.unique_captions:
                self.seen[mark] = where


def _entry_of(shard: Path) -> ShardEntry | None:
    manifest = read_manifest(shard.parent)
    return manifest.by_file().get(shard.name) if manifest else None


def _side_index(shard: Path, built: shard_index.ShardIndex, findings: Findings) -> None:
    if not shard_index.index_path(shard).is_file():
        return
    try:
        stored = shard_index.read(shard)
    except DataError as error:
        findings.add("bad_index", str(error))
        return
    if list(stored.keys()) != list(built.keys()):
        findings.add("bad_index", f"{shard}: its side index lists other samples than the tar holds; run `index`")


def _repeats(shard: Path, built: shard_index.ShardIndex, keys: dict[tuple[str, str], Path], findings: Findings) -> None:
    home = set_of(shard)
    for key in list(built.keys()):
        first = keys.setdefault((home, key), shard)
        if first != shard:
            findings.add("dup_key", f"{key} in {first} and {shard}")


def set_of(shard: Path) -> str:
    """The data set a shard belongs to: its folder if that has a manifest, else folder and name without the number."""
    if (shard.parent / MANIFEST).is_file():
        return str(shard.parent)
    return str(shard.parent / shard.stem.rstrip("0123456789"))


def summary_rows(result: dict[str, Any]) -> Sequence[tuple[str, str, str, str]]:
    """Reason, count, kind and first example, faults first."""
    rows = [
        (reason, str(count), "warning" if reason in WARNINGS else "fault", result["examples"][reason][0])
        for reason, count in result["reasons"].items()
    ]
    return sorted(rows, key=lambda row: (row[2] != "fault", row[0]))
