"""The tool `verify`: is every shard what its manifest says, and every sample usable? Faults counted by reason."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field

from data_tools.findings import FOUND, Findings
from data_tools.progress import progress
from data_tools.shards import find_shards
from data_tools.texts import CAPTION_FIELDS, captions_of, dataset_captions, fingerprint
from vlp.data import index as shard_index
from vlp.data.captions import Captions
from vlp.data.decode import Limits, decode
from vlp.data.fields import Fields, decode_text
from vlp.data.grouping import KeySplit
from vlp.data.reader import MemberReader
from vlp.data.schema import MANIFEST, DataError, ShardEntry, file_sha256, read_manifest
from vlp.registry import Part
from vlp.types import BadSampleError, Sample

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")


class Verify(Part):
    """Strict walk of every tar, manifest against what is readable, keys, pictures, captions; `deep`: pixels, sha256."""

    deep: bool = False
    captions: tuple[str, ...] = CAPTION_FIELDS
    key_split: KeySplit = "first-dot"
    limits: Limits = Limits()
    unique_captions: bool = False  # two samples with one caption are a fault
    disjoint: tuple[Path, ...] = Field(default=())  # data sets that no caption may be shared with

    def run(self, inputs: Iterable[Path | str], out: Path | None = None) -> dict[str, Any]:
        """Counts with `manifest = readable + missing` where there is a manifest, reasons, examples, and `ok`.

        `out` gets findings.jsonl: a line for each finding with reason, shard and key.
        """
        shards = find_shards(str(item) for item in inputs)
        keys: dict[tuple[str, str], Path] = {}
        readable = missing = 0
        manifest_total: int | None = 0
        samples = _Samples(self)
        with Findings(out) as findings:
            for shard in progress(shards, total=len(shards), label="verify"):
                entry = _entry_of(shard)
                if entry is None:
                    manifest_total = None
                    findings.add("no_manifest", shard)
                elif manifest_total is not None:
                    manifest_total += entry.samples
                built = self._walk(shard, entry, findings)
                here = len(built) if built is not None else 0
                readable += here
                missing += max(0, entry.samples - here) if entry else 0
                if built is not None:
                    _repeats(shard, built, keys, findings)
                    samples.check(shard, built, findings)
        result = {
            "shards": len(shards),
            "manifest": manifest_total,
            "readable": readable,
            "missing": missing,
            "faults": findings.faults,
            "reasons": dict(findings.counts),
            "examples": findings.examples,
            "ok": findings.faults == 0 and readable > 0,
        }
        return result | ({"findings": str(out / FOUND)} if out is not None else {})

    def _walk(self, shard: Path, entry: ShardEntry | None, findings: Findings) -> shard_index.ShardIndex | None:
        if not shard.is_file():
            findings.add("missing_shard", shard)
            return None
        built = shard_index.build(shard, key_split=self.key_split)
        if built.damage is not None:
            findings.add(built.damage.reason, shard, f"at byte {built.damage.byte}: {built.damage.detail}")
        for note in built.notes:
            findings.add(note.reason, shard, note.example, count=note.count)
        if entry is not None and entry.samples != len(built):
            findings.add("wrong_count", shard, f"manifest {entry.samples}, readable {len(built)}")
        if entry is not None and entry.bytes != built.bytes:
            findings.add("wrong_bytes", shard, f"manifest {entry.bytes}, file {built.bytes}")
        if self.deep and entry is not None and entry.sha256 and file_sha256(shard) != entry.sha256:
            findings.add("wrong_sha256", shard, "its bytes are not those that were written")
        _side_index(shard, built, findings)
        return built


class _Samples:
    """What samples must be: a picture that decodes, a caption, and if asked one that no other sample or set has."""

    def __init__(self, settings: Verify) -> None:
        self.settings, self.stage = settings, Captions(fields=settings.captions)
        self.reader = MemberReader()
        self.seen: dict[int, str] = {}
        self.forbidden = {fingerprint(text) for folder in settings.disjoint for text in dataset_captions(folder)}

    def check(self, shard: Path, built: shard_index.ShardIndex, findings: Findings) -> None:
        """Adds the faults of every sample of a shard."""
        texts = {"json", "txt", *(name for name in self.settings.captions if name not in PICTURES)}
        for number, key in enumerate(built.keys()):
            places = built.members(number)
            pictures = [name for name in PICTURES if name in places]
            if not pictures:
                findings.add("no_image", shard, f"members: {', '.join(sorted(places))}", key=key)
            try:
                members = self.reader.read(shard, places, texts | set(pictures[:1] if self.settings.deep else ()))
                self._caption(Sample(key, members, str(shard), number), findings, labelled="cls" in places)
            except BadSampleError as error:  # of the picture's size, before it is read
                findings.add(error.reason, shard, error.detail, key=key)
                continue
            if pictures and self.settings.deep:
                self._picture(members[pictures[0]], shard, key, findings)
        self.reader.close()

    def _picture(self, data: bytes, shard: Path, key: str, findings: Findings) -> None:
        try:
            pixels = decode(data, self.settings.limits)
        except BadSampleError as error:
            findings.add(error.reason, shard, error.detail, key=key)
            return
        if bool((pixels == pixels[:, :1, :1]).all()):
            colour = pixels[:, 0, 0].tolist()
            findings.add("flat_image", shard, f"{pixels.shape[2]}x{pixels.shape[1]} of {colour}", key=key)

    def _caption(self, sample: Sample, findings: Findings, *, labelled: bool) -> None:
        """As training reads it, and with the same words for what is wrong."""
        try:
            for name in ("json", "txt"):
                decode_text(sample.members.get(name, b""), name)
            self.stage.texts(Fields(sample))
        except BadSampleError as error:
            if not (labelled and error.reason == "no_caption"):
                findings.add(error.reason, sample.shard, error.detail, key=sample.key)
            return
        prints = {fingerprint(text): text for text in captions_of(sample.members, self.settings.captions)}
        for mark, text in prints.items():
            if mark in self.forbidden:
                said = f'"{text[:80]}" is also in a set that must be disjoint'
                findings.add("shared_caption", sample.shard, said, key=sample.key)
            if self.settings.unique_captions and mark in self.seen:
                said = f'as {self.seen[mark]}: "{text[:80]}"'
                findings.add("repeated_caption", sample.shard, said, key=sample.key)
            if self.settings.unique_captions:
                self.seen[mark] = f"{sample.shard}: {sample.key}"


def _entry_of(shard: Path) -> ShardEntry | None:
    manifest = read_manifest(shard.parent)
    return manifest.by_file().get(shard.name) if manifest else None


def _side_index(shard: Path, built: shard_index.ShardIndex, findings: Findings) -> None:
    if not shard_index.index_path(shard).is_file():
        return
    try:
        stored = shard_index.read(shard)
    except DataError as error:
        findings.add("bad_index", shard, str(error))
        return
    if list(stored.keys()) != list(built.keys()):
        findings.add("bad_index", shard, "it lists other samples than the tar holds")


def _repeats(shard: Path, built: shard_index.ShardIndex, keys: dict[tuple[str, str], Path], findings: Findings) -> None:
    home = set_of(shard)
    for key in list(built.keys()):
        first = keys.setdefault((home, key), shard)
        if first != shard:
            findings.add("dup_key", shard, f"also in {first}", key=key)


def set_of(shard: Path) -> str:
    """The data set a shard belongs to: its folder if that has a manifest, else folder and name without the number."""
    if (shard.parent / MANIFEST).is_file():
        return str(shard.parent)
    return str(shard.parent / shard.stem.rstrip("0123456789"))
